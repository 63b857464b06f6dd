"""Trains an editor by reinforcement learning: puts a recipe's model, tasks, rewards and objective on the core."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from premeditate import presets
from premeditate.config import ConfigError, dump_config
from premeditate.datasets.tasks import TaskRow
from premeditate.engine.pooled import pooled
from premeditate.reasoners.base import Reasoner
from premeditate.rewards.panel import Panel, build_panel
from premeditate.training import checkpoint
from premeditate.training.data import data_hash, load_rows
from premeditate.training.distributed import World, shard
from premeditate.training.flow import export
from premeditate.training.flow.adapters import FlowAdapter, load_adapter
from premeditate.training.flow.adapters.base import fingerprint
from premeditate.training.flow.cache import EncodingCache
from premeditate.training.flow.lora import add_lora
from premeditate.training.flow.policy import FlowPolicy, Tasks
from premeditate.training.geometry import Geometry
from premeditate.training.journal import Journal
from premeditate.training.loop import Parts, Trainer
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
    if world.device.startswith("cuda") and recipe.model.dtype != "float32":
        # LoRA is held in float32 over a base of half precision; without TF32 its small products would cost the most.
        torch.set_float32_matmul_precision("high")
    tell = say if say is not None and world.first else lambda line: None
    out = Path(recipe.out)
    panels: list[Panel] = []
    journal: Journal | None = None
    try:
        # Before anything is loaded.
        Geometry.of(recipe, world.size)
        if recipe.sharding.kind != "none" and world.size == 1:
            raise ConfigError("there is one process, and nothing to shard over",
                              "start several with torchrun, or give sharding.kind=none")  # fmt: skip
        saved = checkpoint.start(out, recipe, resume=resume, say=tell)
        rows = load_rows(recipe.data.train, recipe.data.train_count, recipe.data.seed)
        held_out = _held_out(recipe)
        panels.append(build_panel(recipe.rewards, _reasoner))
        if recipe.evaluation.rewards:
            panels.append(build_panel(recipe.evaluation.rewards, _reasoner))
        policy, base = build_policy(recipe, rows, held_out, world, say=tell)
        if world.first:
            journal = Journal(out, recipe, step=saved.step if saved else 0, say=tell, on_figures=on_figures)
        data = data_hash(rows)
        made_of = {"the base model's weights": base, "the training tasks": data}
        parts = Parts(policy, panels[0], panels[-1], len(rows), len(held_out), made_of)
        trainer = Trainer(recipe, parts, world, out, journal)
        if saved is not None:
            trainer.restore(saved)
            tell(f"going on from step {saved.step} of {recipe.steps}")
        trainer.run(recipe.steps)
        found = _finish(trainer, policy.adapter, recipe, data, tell)
        world.leave()  # only now: one that fails ends at once, and torchrun ends the others
        return found
    finally:
        for panel in panels:
            panel.close()
        if journal is not None:
            journal.close()


def build_policy(
    recipe: Recipe, rows: Sequence[TaskRow], held_out: Sequence[TaskRow], world: World, *, say: Say
) -> tuple[FlowPolicy, str]:
    """The model of `recipe` with its tasks encoded, its adapters added, and its weights split over the world; and what
    names its weights before training."""
    model = recipe.model.model_copy(update={"device": world.device})
    adapter = load_adapter(recipe.model.base, model)
    watched = (
        adapter if recipe.evaluation.size in (None, recipe.model.size) else adapter.resized(recipe.evaluation.size)
    )
    folder = Path(recipe.out) / "encodings"
    share: dict[str, Any] = {"say": say, "part": (world.rank, world.size), "wait": world.wait}
    train = Tasks(adapter, rows, EncodingCache.open(folder / "train", adapter, rows, **share))
    evaluation = (
        Tasks(watched, held_out, EncodingCache.open(folder / "eval", watched, held_out, **share)) if held_out else None
    )
    adapter.release()
    base = fingerprint({"transformer": adapter.transformer})
    return FlowPolicy(recipe, train, evaluation, world, prepare(adapter.transformer, recipe, world)), base


def prepare(transformer: Any, recipe: Recipe, world: World) -> Any:
    """Makes adapters, or all of the transformer, what is trained, and splits it over the world where the recipe says.
    Returns a frozen copy of it as it was, where the objective asks for one and no adapters can be left out; else None.
    """
    frozen = None
    if recipe.model.lora is not None:
        add_lora(transformer, recipe.model.lora, seed=recipe.seed)
    else:
        transformer.requires_grad_(True)
        if recipe.algorithm.needs_reference:
            frozen = copy.deepcopy(transformer).requires_grad_(False)
    if recipe.sharding.kind == "fsdp":
        for network in filter(None, (transformer, frozen)):
            shard(network, world)
    return frozen


def _reasoner(spec: str) -> Reasoner:
    """The judge of a reward "reasoner:SPEC"; endpoints behind an address are pooled."""
    return pooled(presets.load_reasoner(spec))


def _held_out(recipe: Recipe) -> list[TaskRow]:
    if recipe.data.eval is None:
        return []
    return load_rows(recipe.data.eval, recipe.data.eval_count, recipe.data.seed)


def _finish(trainer: Trainer, adapter: FlowAdapter, recipe: Recipe, data: str, say: Say) -> dict[str, Any]:
    """Exports what was trained, with averaged weights where there are some. `data`: the hash of its tasks."""
    folder = trainer.out / "export"
    history: list[dict[str, Any]] = []
    shown = recipe.model_copy(update={"out": Recipe().out})  # where it lay is nobody's business
    with trainer.averaged():
        values = export.gathered(trainer.policy.module)
    if trainer.journal is not None:
        history = [row for row in trainer.journal.rows() if row["kind"] == "eval"]
        card = {"recipe": dump_config(shown), "data": data, "tasks": trainer.parts.rows, "evaluations": history,
                "picture": trainer.journal.curve()}  # fmt: skip
        export.write(adapter, folder, recipe, card, values=values)
        say(f"exported to {folder}")
    trainer.world.wait()
    first, last = (history[0], history[-1]) if history else ({}, {})
    return {"out": str(trainer.out), "export": str(folder), "steps": trainer.step, "before": first, "after": last}
