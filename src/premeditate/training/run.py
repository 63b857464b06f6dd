"""From a recipe to its result, whatever is trained: joins the processes, finds the checkpoint to go on from, has the
parts built, trains, and has the result exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from premeditate.config import ConfigError, dump_config
from premeditate.local import pick_device
from premeditate.training import checkpoint
from premeditate.training.distributed import World
from premeditate.training.geometry import Geometry
from premeditate.training.journal import Journal
from premeditate.training.loop import Parts, Trainer
from premeditate.training.recipe import Run
from premeditate.training.weights import gathered

Say = Callable[[str], None]
WEIGHTS, TASKS = "the base model's weights", "the training tasks"
"""What a run is made of (`Parts.made_of`), in the words of the error that says what changed."""
OnFigures = Callable[[str, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Built:
    """`parts`: what the core trains. `export`: writes the result into a folder; gets the trained parameters by name,
    whole and on the CPU, and what a card says of the run (`card`)."""

    parts: Parts
    export: Callable[[Path, Mapping[str, Any], Mapping[str, Any]], None]


def run(
    recipe: Run, build: Callable[[World, Say, ExitStack], Built], *, device: str | None, half: bool = False,
    resume: bool = False, say: Say | None = None, on_figures: OnFigures | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Runs `recipe` to its last step and exports the result into recipe.out/export. Started by torchrun, all processes
    call it. `build` is called once it is known that the run can begin; what it enters into the stack is closed in the
    end. `half`: the model is held in half precision.

    Returns {"out", "export", "steps", "before", "after"}: the last two are the held-out figures. Raises what `build`
    does, `TrainingError`, `ConfigError` or `RewardError`; the last checkpoint is whole then.
    """
    world = World.join(pick_device(device))
    if world.device.startswith("cuda") and half:
        # LoRA is held in float32 over a base of half precision; without TF32 its small products would cost the most.
        torch.set_float32_matmul_precision("high")
    tell = say if say is not None and world.first else lambda line: None
    out = Path(recipe.out)
    with ExitStack() as stack:
        # Before anything is loaded.
        Geometry.of(recipe, world.size)
        if recipe.sharding.kind != "none" and world.size == 1:
            raise ConfigError("there is one process, and nothing to shard over",
                              "start several with torchrun, or give sharding.kind=none")  # fmt: skip
        saved = checkpoint.start(out, recipe, resume=resume, say=tell)
        built = build(world, tell, stack)
        journal = None
        if world.first:
            journal = Journal(out, recipe, step=saved.step if saved else 0, say=tell, on_figures=on_figures)
            stack.callback(journal.close)
        trainer = Trainer(recipe, built.parts, world, out, journal)
        if saved is not None:
            trainer.restore(saved)
            tell(f"going on from step {saved.step} of {recipe.steps}")
        trainer.run(recipe.steps)
        found = _finish(trainer, built, tell)
        world.leave()  # only now: one that fails ends at once, and torchrun ends the others
        return found


def _finish(trainer: Trainer, built: Built, say: Say) -> dict[str, Any]:
    """Exports what was trained, with averaged weights where there are some."""
    folder = trainer.out / "export"
    history: list[dict[str, Any]] = []
    with trainer.averaged():
        values = gathered(trainer.policy.module)
    if trainer.journal is not None:
        history = [row for row in trainer.journal.rows() if row["kind"] == "eval"]
        shown = trainer.recipe.model_copy(update={"out": Run().out})  # where it lay is nobody's business
        card = {"recipe": dump_config(shown), "data": built.parts.made_of[TASKS],
                "tasks": built.parts.rows, "evaluations": history, "picture": trainer.journal.curve()}  # fmt: skip
        built.export(folder, values, card)
        say(f"exported to {folder}")
    trainer.world.wait()
    first, last = (history[0], history[-1]) if history else ({}, {})
    return {"out": str(trainer.out), "export": str(folder), "steps": trainer.step, "before": first, "after": last}
