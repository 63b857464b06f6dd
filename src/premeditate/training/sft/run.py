"""Trains a reasoning reward model on judged edits: a recipe's model and data, put on TRL's trainer."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from premeditate.config import dump_config
from premeditate.datasets import judged
from premeditate.eventlog import Writer
from premeditate.files import check_writable, write_error
from premeditate.local import quiet
from premeditate.prompts import verify_words
from premeditate.training import checkpoint
from premeditate.training.errors import TrainingError
from premeditate.training.journal import LOG, Journal
from premeditate.training.sft import checkpoints
from premeditate.training.sft.data import Encoder, Lessons, collect
from premeditate.training.sft.recipe import SftRecipe, portions
from premeditate.training.tokens import export
from premeditate.training.tokens.base import Base, load_base, resolve
from premeditate.training.weights import fingerprint

Say = Callable[[str], None]
OnFigures = Callable[[str, int, Mapping[str, float]], None]
EXPORT, ADAPTER, LESSONS = "export", "adapter", ".lessons-"


def train_sft(
    recipe: SftRecipe, *, resume: bool = False, say: Say | None = None, on_figures: OnFigures | None = None
) -> dict[str, Any]:
    """Runs `recipe` to its last step and exports the judge into recipe.out/export; with LoRA its adapters lie in
    recipe.out/adapter, too. Started by torchrun, all processes call it.

    `resume`: go on from the newest whole checkpoint in recipe.out; the run is then the one that was never stopped.
    `say`: lines for people. `on_figures`: ("step" or "eval", step, figures), as they come.

    Returns {"out", "export", "steps", "before", "after", "samples", "left_out"}: `before` and `after` are the held-out
    figures, `left_out` counts judged edits by the reason why they taught nothing. Raises `TrainingError`,
    `JudgedError`, `ImageError`, `StoreError`, `WriteError` or `ModelError`, each with the mend; the last checkpoint is
    whole then.
    """
    out, first = Path(recipe.out), os.environ.get("RANK", "0") == "0"
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    tell = say if say is not None and first else lambda line: None
    journal: Journal | None = None
    if first:
        checkpoint.check_idle(out)
    try:
        with quiet("transformers", loading=True), _room(out, first, devices) as room:
            # What can be found wrong is found wrong before a model is loaded.
            trainers = _trainers()
            portions(recipe.batch, devices)
            preset = resolve(recipe.model.base)
            for folder in filter(None, (recipe.data.train, recipe.data.eval)):
                next(judged.read(Path(folder)))
            path = checkpoints.start(out, resume=resume, say=tell)
            base = load_base(recipe.model)
            encoder = Encoder(base.processor, base.limit)
            train, held_out = _lessons(recipe, base, encoder, room, tell)
            state = {"recipe": recipe.model_dump(mode="json"), "data": train.digest,
                     "base": fingerprint({"model": base.model})}  # fmt: skip
            step = 0 if path is None else checkpoints.check_same(path, state)
            if first:
                journal = Journal(out, recipe, step=step, say=say, on_figures=on_figures)
            record = trainers.Record(journal, recipe.checkpoint.keep, state)
            trainer = trainers.build(recipe, base.model, encoder, room / "train", room / "eval" if held_out else None,
                                     record, resumed=step > 0, devices=devices)  # fmt: skip
            steps = recipe.steps or math.ceil((recipe.epochs or 1) * math.ceil(train.count / recipe.batch.size))
            tell(f"going on from step {step} of {steps}" if step else f"{steps} steps of {recipe.batch.size} samples")
            try:
                trainer.run(path)
            except OSError as error:  # transformers writes its checkpoints itself
                raise write_error(out, error) from error
            history = [] if journal is None else [row for row in journal.rows() if row["kind"] == "eval"]
            if first:
                shown = recipe.model_copy(update={"out": "runs/rrm-sft"})  # where it lay is nobody's business
                card = export.Card(recipe.model.base, preset, recipe.mode, dump_config(shown),
                                   train.line("Learnt from"), train.digest, history)  # fmt: skip
                _export(trainer, base, out, card)
                tell(f"exported to {out / EXPORT}")
            trainer.accelerator.wait_for_everyone()
    finally:
        if journal is not None:
            journal.close()
    before, after = (history[0], history[-1]) if history else ({}, {})
    return {"out": str(out), "export": str(out / EXPORT), "steps": trainer.state.global_step, "before": before,
            "after": after, "samples": train.count, "left_out": dict(train.left_out)}  # fmt: skip


# -- the rest ---------------------------------------------------------------------------------------------------------


def _trainers() -> Any:
    try:
        from premeditate.training.sft import trainer
    except ModuleNotFoundError as error:
        if error.name not in ("trl", "datasets", "accelerate"):
            raise
        raise TrainingError(f"this training needs {error.name}, which is not installed",
                            "pip install 'premeditate[train]'") from None  # fmt: skip
    return trainer


@contextmanager
def _room(out: Path, first: bool, devices: int) -> Iterator[Path]:
    """A folder for files that live as long as the training. Each process has its own; what a killed run left goes. The
    `first` process claims `out` before, so that nothing of another run's is taken for that."""
    check_writable(out / LOG)
    claim = Writer.of(out / LOG, sync=False) if first else None  # the journal's
    try:
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob(f"{LESSONS}*") if devices == 1 else ():
            shutil.rmtree(old, ignore_errors=True)
        made = tempfile.TemporaryDirectory(prefix=LESSONS, dir=out, ignore_cleanup_errors=True)
    except OSError as error:
        raise write_error(out, error) from error
    with made as room:
        yield Path(room)
    del claim  # held up to here


def _lessons(recipe: SftRecipe, base: Base, encoder: Encoder, room: Path, say: Say) -> tuple[Lessons, Lessons | None]:
    """What is learnt from and what is held out, written into `room`. Raises `TrainingError` for less than a batch."""
    words, data, size = verify_words(base.prompts), recipe.data, recipe.batch.size
    train = collect(Path(data.train), recipe, words, encoder, data.train_count, room / "train")
    say(train.line("to learn from"))
    if train.count < size:
        raise TrainingError(f"{data.train} gives {train.count} samples, and a batch has {size}",
                            f"give batch.size={train.count} or less, or more judged edits")  # fmt: skip
    if data.eval is None:
        return train, None
    held_out = collect(Path(data.eval), recipe, words, encoder, data.eval_count, room / "eval")
    say(held_out.line("held out"))
    return train, held_out


def _export(trainer: Any, base: Base, out: Path, card: export.Card) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        try:
            model.save_pretrained(out / ADAPTER)
        except OSError as error:
            raise write_error(out / ADAPTER, error) from error
        with suppress(FileNotFoundError):
            (out / ADAPTER / export.CARD).unlink()  # peft's, with blanks to fill in
        model = model.merge_and_unload()
    model.config = base.config  # a trainer switches parts of it off
    export.write(out / EXPORT, model, base.processor, base.sidecar, base.stored, card)
