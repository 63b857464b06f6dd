"""Trains an editor by reinforcement learning: puts a recipe's model, tasks, rewards and objective on the core."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from premeditate import presets
from premeditate.config import dump_config
from premeditate.datasets.tasks import TaskRow
from premeditate.engine.pooled import pooled
from premeditate.reasoners.base import Reasoner
from premeditate.rewards.panel import Panel, build_panel
from premeditate.training import checkpoint, export
from premeditate.training.adapters import FlowAdapter, load_adapter
from premeditate.training.cache import EncodingCache, build
from premeditate.training.data import data_hash, load_rows
from premeditate.training.distributed import World, shard
from premeditate.training.flow_policy import FlowPolicy, Tasks
from premeditate.training.geometry import Geometry
from premeditate.training.journal import Journal
from premeditate.training.loop import Parts, Trainer
from premeditate.training.lora import add_lora
from premeditate.training.recipe import Recipe

Say = Callable[[str], None]
OnFigures = Callable[[str, int, Mapping[str, float]], None]


def train(
    recipe: Recipe, *, resume: bool = False, say: Say | None = None, on_figures: OnFigures | None = None
) -> dict[str, Any]:
    """Runs `recipe` to its last step and exports the result into recipe.out/export. Started by torchrun, all processes
    call it.

    `resume`: go on from the newest whole checkpoint in recipe.out; the run is then the one that was never stopped.
    `say`: lines for people. `on_figures`: ("step" or "eval", step, figures), as they come.

    Returns {"out", "export", "steps", "before", "after"}: the last two are the held-out figures. Raises
    `TrainingError`, `ConfigError`, `DataError`, `RewardError` or `ModelError`, each with the mend; the last checkpoint
    is whole then.
    """
    from premeditate.local import pick_device

    world = World.join(pick_device(recipe.model.device))
    tell = say if say is not None and world.first else lambda line: None
    out = Path(recipe.out)
    panels: list[Panel] = []
    try:
        Geometry.of(recipe, world.size)  # before anything is loaded
        saved = checkpoint.start(out, recipe, resume=resume, say=tell)
        rows = load_rows(recipe.data.train, recipe.data.train_count, recipe.data.seed)
        held_out = _held_out(recipe)
        panels.append(build_panel(recipe.rewards, _reasoner))
        panels.append(build_panel(recipe.evaluation.rewards or recipe.rewards, _reasoner))
        policy = build_policy(recipe, rows, held_out, world, say=tell)
        journal = (
            Journal(out, recipe, step=saved.step if saved else 0, say=tell, on_figures=on_figures)
            if world.first
            else None
        )
        parts = Parts(policy, panel=panels[0], judge=panels[1], rows=len(rows), held_out=len(held_out))
        trainer = Trainer(recipe, parts, world, out, journal)
        if saved is not None:
            trainer.restore(saved)
            tell(f"going on from step {saved.step} of {recipe.steps}")
        trainer.run(recipe.steps)
        return _finish(trainer, policy.adapter, recipe, rows, tell)
    finally:
        for panel in panels:
            panel.close()
        world.leave()


def build_policy(
    recipe: Recipe, rows: Sequence[TaskRow], held_out: Sequence[TaskRow], world: World, *, say: Say
) -> FlowPolicy:
    """The model of `recipe` with its tasks encoded, its adapters added, and its weights split over the world."""
    model = recipe.model.model_copy(update={"device": world.device})
    adapter = load_adapter(recipe.model.base, model)
    watched = (
        adapter if recipe.evaluation.size in (None, recipe.model.size) else adapter.resized(recipe.evaluation.size)
    )
    folder = Path(recipe.out) / "encodings"
    train = Tasks(adapter, rows, _encoded(folder / "train", adapter, rows, world, say))
    evaluation = (
        Tasks(watched, held_out, _encoded(folder / "eval", watched, held_out, world, say)) if held_out else None
    )
    adapter.release()
    if recipe.model.lora is None:
        adapter.transformer.requires_grad_(True)
    else:
        add_lora(adapter.transformer, recipe.model.lora, seed=recipe.seed)
    if recipe.sharding.kind == "fsdp":
        shard(adapter.transformer, world)
    return FlowPolicy(recipe, train, evaluation, world)


def _reasoner(spec: str) -> Reasoner:
    """The judge of a reward "reasoner:SPEC"; endpoints behind an address are pooled."""
    return pooled(presets.load_reasoner(spec))


def _encoded(folder: Path, adapter: FlowAdapter, rows: Sequence[TaskRow], world: World, say: Say) -> EncodingCache:
    """Each task encoded once; the processes share the work."""
    build(folder, adapter, rows, say=say, part=(world.rank, world.size))
    world.wait()
    return EncodingCache.open(folder, adapter, rows)


def _held_out(recipe: Recipe) -> list[TaskRow]:
    if recipe.data.eval is None:
        return []
    return load_rows(recipe.data.eval, recipe.data.eval_count, recipe.data.seed)


def _finish(
    trainer: Trainer, adapter: FlowAdapter, recipe: Recipe, rows: Sequence[TaskRow], say: Say
) -> dict[str, Any]:
    """Exports what was trained, with averaged weights where there are some."""
    folder = trainer.out / "export"
    history: list[dict[str, Any]] = []
    shown = recipe.model_copy(update={"out": Recipe().out})  # where it lay is nobody's business
    with trainer.averaged():
        values = export.gathered(trainer.policy.module)
    if trainer.journal is not None:
        history = [row for row in trainer.journal.rows() if row["kind"] == "eval"]
        card = {"recipe": dump_config(shown), "data": data_hash(rows), "tasks": len(rows), "evaluations": history,
                "picture": trainer.journal.curve()}  # fmt: skip
        export.write(adapter, folder, recipe, card, values=values)
        trainer.journal.close()
        say(f"exported to {folder}")
    trainer.world.wait()
    first, last = (history[0], history[-1]) if history else ({}, {})
    return {"out": str(trainer.out), "export": str(folder), "steps": trainer.step, "before": first, "after": last}
