"""Trains a reasoning reward model on judged edits: a recipe's model and data, put on TRL's trainer."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from premeditate import presets
from premeditate.address import is_address
from premeditate.config import dump_config
from premeditate.datasets import judged
from premeditate.errors import ModelError
from premeditate.files import check_writable
from premeditate.local import pick_device, quiet
from premeditate.prompts import verify_words
from premeditate.qwen_processor import FAMILIES
from premeditate.reasoners.transformers import TransformersReasoner
from premeditate.training.errors import TrainingError
from premeditate.training.flow.adapters.base import fingerprint
from premeditate.training.journal import LOG, Journal
from premeditate.training.recipe import Run
from premeditate.training.sft import export
from premeditate.training.sft.data import Encoder, Lessons, collect
from premeditate.training.sft.recipe import SftRecipe

Say = Callable[[str], None]
OnFigures = Callable[[str, int, Mapping[str, float]], None]
CHECKPOINTS = "checkpoints"

FREE = (
    "name", "out", "logging", "checkpoint", "evaluation", "data.train", "data.eval", "data.eval_count", "model.device",
    "model.gradient_checkpointing", "batch.forward",
)  # fmt: skip
"""What a recipe may change while its run goes on. Of the data, the content counts."""


@dataclass(frozen=True)
class Base:
    """The model that is trained. `dtype`: of the weights as they lie. `sidecar`: what a folder of it has to say."""

    model: Any
    processor: Any
    prompts: str
    dtype: torch.dtype
    sidecar: Mapping[str, Any]


def train_sft(
    recipe: SftRecipe, *, resume: bool = False, say: Say | None = None, on_figures: OnFigures | None = None
) -> dict[str, Any]:
    """Runs `recipe` to its last step and exports the judge into recipe.out/export; with LoRA its adapters lie in
    recipe.out/adapter, too. Started by torchrun, all processes call it.

    `resume`: go on from the newest whole checkpoint in recipe.out; the run is then the one that was never stopped.
    `say`: lines for people. `on_figures`: ("step" or "eval", step, figures), as they come.

    Returns {"out", "export", "steps", "before", "after", "samples", "left_out"}: `before` and `after` are the held-out
    figures, `left_out` counts judged edits by the reason why they taught nothing. Raises `TrainingError`,
    `JudgedError`, `ImageError`, `StoreError` or `ModelError`, each with the mend; the last checkpoint is whole then.
    """
    out, first = Path(recipe.out), os.environ.get("RANK", "0") == "0"
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    tell = say if say is not None and first else lambda line: None
    with quiet("transformers", loading=True):
        trainer_module = _trl()
        trainer_module.portions(recipe, devices)
        preset = _resolve(recipe)
        next(judged.read(Path(recipe.data.train)))  # what is wrong with a folder is said before a model is loaded
        found = _found(out, resume, trainer_module, tell)
        check_writable(out / LOG)
        base = load_base(recipe)
        before = fingerprint({"model": base.model})
        (out / ".lessons").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="part-", dir=out / ".lessons") as part:
            journal: Journal | None = None
            try:
                train, held_out = _lessons(recipe, base, Path(part), tell)
                if train.count < recipe.batch.size:
                    raise TrainingError(
                        f"{recipe.data.train} gives {train.count} samples, and a batch is {recipe.batch.size}",
                        f"give batch.size={train.count} or less, or more data",
                    )
                state = {"recipe": recipe.model_dump(mode="json"), "data": train.digest, "base": before}
                step, path = 0, None
                if found is not None:
                    step, path = found
                    _check_same(path, state)
                if first:
                    journal = Journal(out, cast(Run, recipe), step=step, say=say, on_figures=on_figures)
                record = trainer_module.Record(journal, recipe.checkpoint.keep, state)
                trainer = trainer_module.build(
                    recipe, base.model, _encoder(base), Path(part) / "train.arrow",
                    Path(part) / "eval.arrow" if held_out else None, record, resumed=step > 0, devices=devices,
                )  # fmt: skip
                if step:
                    tell(f"going on from step {step}")
                trainer.train(resume_from_checkpoint=str(path) if path else None)
                return _finish(trainer, recipe, base, preset, train, journal, tell)
            finally:
                if journal is not None:
                    journal.close()
                shutil.rmtree(part, ignore_errors=True)
                _remove_empty(out / ".lessons")


def load_base(recipe: SftRecipe) -> Base:
    """The model that is trained, and how it is spoken to. Raises `ModelError`."""
    preset, wanted = _resolve(recipe), recipe.model
    device = pick_device(wanted.device)
    if device not in ("cpu", "cuda", "mps"):
        raise ModelError(f"the training of a judge takes no single device {device!r}",
                         "give model.device=cuda, and choose with CUDA_VISIBLE_DEVICES")  # fmt: skip
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    options = {**preset.options, "device": device, "revision": wanted.revision, "name": wanted.base}
    if wanted.max_pixels is not None:
        options["max_pixels"] = wanted.max_pixels
    # What is trained is held in float32: half precision swallows small steps. Under LoRA the rest may be halved.
    options["dtype"] = "float32" if wanted.lora is None else wanted.dtype
    reasoner = TransformersReasoner.load(preset.spec, **options)
    model, kind = reasoner.model, reasoner.model.config.model_type
    if kind not in FAMILIES:
        raise ModelError(f"{wanted.base} is of the family {kind}, whose judges cannot be trained yet",
                         f"give a model of one of: {', '.join(FAMILIES)}")  # fmt: skip
    size = reasoner.processor.image_processor.size
    pixels = {"max_pixels": size["longest_edge"]} if "max_pixels" in {**options, **_sidecar(preset.spec)} else {}
    model.requires_grad_(True)
    if wanted.lora is None and not wanted.vision:
        model.model.visual.requires_grad_(False)
    return Base(model, reasoner.processor, reasoner.prompts, _stored_dtype(preset.spec, wanted.revision),
                {"prompts": reasoner.prompts, **pixels})  # fmt: skip


def newest(out: Path) -> int | None:
    """The step of the newest whole checkpoint, None where there is none."""
    return max(_trl().whole(out / CHECKPOINTS), default=None)


# -- before it runs ---------------------------------------------------------------------------------------------------


def _trl() -> Any:
    try:
        from premeditate.training.sft import trainer
    except ImportError as error:
        if error.name not in ("trl", "datasets", "accelerate"):
            raise
        raise TrainingError(f"this training needs {error.name}, which is not installed",
                            "pip install 'premeditate[train]'") from None  # fmt: skip
    return trainer


def _resolve(recipe: SftRecipe) -> presets.Preset:
    base = recipe.model.base
    if is_address(base):
        raise ModelError(f"{base} is a served model, whose weights are elsewhere",
                         f"give a folder, a hub id org/name, or one of {', '.join(presets.REASONERS)}")  # fmt: skip
    return presets.resolve("reasoner", base)


def _sidecar(spec: str) -> dict[str, Any]:
    from premeditate.local import read_sidecar
    from premeditate.reasoners.transformers import SIDECAR_OPTIONS

    return read_sidecar(Path(spec), SIDECAR_OPTIONS) if Path(spec).is_dir() else {}


def _stored_dtype(spec: str, revision: str | None) -> torch.dtype:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(spec, trust_remote_code=False, revision=revision)
    found = config.dtype or getattr(config.get_text_config(), "dtype", None)
    return found if isinstance(found, torch.dtype) else torch.float32


def _found(out: Path, resume: bool, trainer: Any, say: Say) -> tuple[int, Path] | None:
    """(step, folder) of the checkpoint that the run goes on from; None for the beginning."""
    folder = out / CHECKPOINTS
    steps = trainer.whole(folder)
    if steps and not resume:
        raise TrainingError(f"{out} holds checkpoints up to step {max(steps)}",
                            "add --resume to go on with them, or give another folder (out=...)")  # fmt: skip
    if not resume:
        return None
    if not steps:
        say(f"{out} holds no whole checkpoint: starting from the beginning")
        return None
    return max(steps), folder / f"checkpoint-{max(steps)}"


def _check_same(path: Path, state: Mapping[str, Any]) -> None:
    """Raises `TrainingError` if the checkpoint is of another recipe, other data or another base."""
    from premeditate.local import SIDECAR

    saved = json.loads((path / SIDECAR).read_bytes())
    different = list(_differences(saved["recipe"], state["recipe"], ""))
    different += [what for key, what in (("data", "other judged edits"), ("base", "another base model"))
                  if saved[key] != state[key]]  # fmt: skip
    if different:
        raise TrainingError(
            f"{path} belongs to another run: {'; '.join(different[:8])}",
            "resume with the recipe of that run (recipe.yaml beside its log), or give another folder (out=...)",
        )


def _differences(before: Any, now: Any, path: str) -> Iterator[str]:
    if path in FREE:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}".lstrip("."))
    elif before != now:
        yield f"{path} was {json.dumps(before)}, is {json.dumps(now)}"


def _encoder(base: Base) -> Encoder:
    limit = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    return Encoder(base.processor, limit)


def _lessons(recipe: SftRecipe, base: Base, part: Path, say: Say) -> tuple[Lessons, Lessons | None]:
    words, encoder, data = verify_words(base.prompts), _encoder(base), recipe.data
    train = collect(Path(data.train), recipe, words, encoder, data.train_count, part / "train.arrow")
    say(train.line("to learn from"))
    if data.eval is None:
        return train, None
    held_out = collect(Path(data.eval), recipe, words, encoder, data.eval_count, part / "eval.arrow")
    say(held_out.line("held out"))
    return train, held_out


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        pass  # another process's are still there


# -- after it ---------------------------------------------------------------------------------------------------------


def _finish(
    trainer: Any, recipe: SftRecipe, base: Base, preset: presets.Preset, train: Lessons, journal: Journal | None,
    say: Say,
) -> dict[str, Any]:  # fmt: skip
    out, history = Path(recipe.out), []
    folder = out / "export"
    if journal is not None:
        history = [row for row in journal.rows() if row["kind"] == "eval"]
        model = trainer.accelerator.unwrap_model(trainer.model)
        if recipe.model.lora is not None:
            model.save_pretrained(out / "adapter")
            model = model.merge_and_unload()
        shown = recipe.model_copy(update={"out": SftRecipe.model_fields["out"].default})
        card = export.Card(preset, recipe, dump_config(shown), train.line("Learnt from"), train.digest, history)
        export.write(folder, model, base.processor, base.sidecar, base.dtype, card)
        say(f"exported to {folder}")
    trainer.accelerator.wait_for_everyone()
    first, last = (history[0], history[-1]) if history else ({}, {})
    return {"out": str(out), "export": str(folder), "steps": trainer.state.global_step, "before": first, "after": last,
            "samples": train.count, "left_out": dict(train.left_out)}  # fmt: skip
