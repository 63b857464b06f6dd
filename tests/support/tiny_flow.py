"""A flow policy and the training core on a FLUX Kontext of a few thousand random weights: no files, no preset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from premeditate.datasets.tasks import TaskRow
from premeditate.rewards.base import Sample
from premeditate.rewards.panel import Panel, build_panel
from premeditate.training.distributed import World
from premeditate.training.editor import prepare
from premeditate.training.flow.adapters.kontext import KontextAdapter
from premeditate.training.flow.policy import FlowPolicy, Tasks
from premeditate.training.journal import Journal
from premeditate.training.loop import Parts, Trainer
from premeditate.training.recipe import Recipe

from .tiny_editor import build_kontext

WORDS = ("a red cat", "two dogs and a bird", "remove it", "the sky is green now")


def brightness(samples: Sequence[Sample]) -> list[float | None]:
    """Mean brightness of the edit, 0-1."""
    return [float(np.asarray(sample.edit, dtype=np.float64).mean()) / 255 for sample in samples]


def even(samples: Sequence[Sample]) -> list[float | None]:
    """Brightness, but the same for all edits of every second group: one of two processes has nothing to learn."""
    return [
        0.5 if int(s.group.rpartition("/")[2] or 0) % 2 else b
        for s, b in zip(samples, brightness(samples), strict=True)
    ]


def rows(count: int = 4, *, wide: bool = False) -> list[TaskRow]:
    """Tasks of 32 px; with `wide` every second one is twice as wide as high."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        shape = (32, 64, 3) if wide and i % 2 else (32, 32, 3)
        picture = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        found.append(TaskRow(f"t{i}", (picture,), WORDS[i % len(WORDS)]))
    return found


def recipe(**parts: Any) -> Recipe:
    """A recipe of 2 groups of 3 edits with 4 steps; `parts` are merged into it."""
    base: dict[str, Any] = {
        "seed": 3,
        "model": {"base": "-", "size": 32, "lora": {"rank": 4}},
        "rewards": [{"use": "support.tiny_flow:brightness"}],
        "rollout": {"steps": 4},
        "algorithm": {"name": "flow-grpo"},
        "batch": {"groups": 2, "group_size": 3, "forward": 4},
        "optimizer": {"lr": 0.01},
        "logging": {"grids": 2},
    }
    return Recipe.model_validate(_merged(base, parts))


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    both = {k: _merged(base[k], v) if isinstance(v, Mapping) and isinstance(base.get(k), Mapping) else v
            for k, v in more.items()}  # fmt: skip
    return {**base, **both}


def panel_of(recipe: Recipe) -> Panel:
    return build_panel(recipe.rewards)


def trainer(
    recipe: Recipe,
    panel: Panel,
    out: Path = Path("."),
    *,
    tasks: Sequence[TaskRow] | None = None,
    held_out: int = 0,
    world: World | None = None,
    journal: Journal | None = None,
) -> Trainer:
    """A trainer at step 0."""
    world, tasks = world or World(), tasks or rows()
    adapter = KontextAdapter(build_kontext(), size=recipe.model.size, text_tokens=recipe.model.text_tokens)
    encodings = [adapter.encode(row.images, row.instruction) for row in tasks]
    frozen = prepare(adapter.transformer, recipe, world)
    known = Tasks(adapter, tasks, encodings)
    policy = FlowPolicy(recipe, known, known if held_out else None, world, frozen)
    return Trainer(recipe, Parts(policy, panel, panel, len(tasks), held_out), world, out, journal)
