"""Trains an editor by reinforcement learning: puts a recipe's model, tasks, rewards and objective on the core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from premeditate import presets
from premeditate.datasets.tasks import TaskRow
from premeditate.engine.pooled import pooled
from premeditate.reasoners.base import Reasoner
from premeditate.rewards.panel import build_panel
from premeditate.training.data import data_hash, load_rows
from premeditate.training.distributed import World, shard
from premeditate.training.flow import export
from premeditate.training.flow.adapters import load_adapter
from premeditate.training.flow.cache import EncodingCache
from premeditate.training.flow.policy import FlowPolicy, Tasks
from premeditate.training.loop import Parts
from premeditate.training.lora import make_trainable
from premeditate.training.recipe import Recipe
from premeditate.training.run import TASKS, WEIGHTS, Built, OnFigures, Say, run
from premeditate.training.weights import fingerprint


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

    def build(world: World, tell: Say, stack: ExitStack) -> Built:
        rows = load_rows(recipe.data.train, recipe.data.train_count, recipe.data.seed)
        held_out = _held_out(recipe)
        panel = judge = stack.enter_context(build_panel(recipe.rewards, _reasoner))
        if recipe.evaluation.rewards:
            judge = stack.enter_context(build_panel(recipe.evaluation.rewards, _reasoner))
        policy, base = build_policy(recipe, rows, held_out, world, say=tell)
        made_of = {WEIGHTS: base, TASKS: data_hash(rows)}

        def finish(folder: Path, values: Mapping[str, Any], card: Mapping[str, Any]) -> None:
            export.write(policy.adapter, folder, recipe, card, values=values)

        return Built(Parts(policy, panel, judge, len(rows), len(held_out), made_of), finish)

    half = recipe.model.dtype != "float32"
    return run(recipe, build, device=recipe.model.device, half=half, resume=resume, say=say, on_figures=on_figures)


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
    """As `make_trainable` of the whole transformer, split over the world where the recipe says."""
    reference = recipe.algorithm.needs_reference
    transformer.requires_grad_(True)
    frozen = make_trainable(transformer, recipe.model.lora, seed=recipe.seed, reference=reference)
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
