"""Micro-world tasks as rows of the project's task format: the reasoning tasks, and explicit prompts for an editor.

What a training recipe names (`premeditate.microworld.dataset:explicit`) is called with (n, seed). The same (n, seed)
gives the same rows, on any machine. Training rows come from seeds below `TEST_SEEDS`, held-out rows from those above.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from premeditate.datasets.tasks import TaskRow, write
from premeditate.microworld.checker import checklist
from premeditate.microworld.language import JOIN, OPERATIONS
from premeditate.microworld.models.editor_data import Example, draw
from premeditate.microworld.render import render
from premeditate.microworld.scene import CELL_NAMES, CELLS, GRID, Scene, column_of, row_of
from premeditate.microworld.tasks import TEST_SEEDS, MicroTask, Split, sample_tasks

STRIDE = 100_000
"""Seeds that one (n, seed) may use up; different `seed`s never share one."""
STYLE_SHARES: Mapping[str, float] = {"canonical": 0.6, "cell": 0.2, "description": 0.2}
_GOLDEN = 0.6180339887498949


def row(task: MicroTask) -> TaskRow:
    return TaskRow(task.id, (render(task.source),), task.instruction, task.meta())


def rows(n: int, seed: int = 0, split: Split = "test") -> Iterator[TaskRow]:
    return map(row, sample_tasks(n, seed, split))


def sample(folder: Path, n: int, seed: int = 0, split: Split = "train") -> int:
    """Writes `n` tasks into `folder`. Raises ValueError where it already holds tasks."""
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    return write(folder, rows(n, seed, split))


def changed_boxes(source: Scene, target: Scene) -> list[list[float]]:
    """The cells that differ as [left, top, right, bottom] in 0-1, for rewards that look at the rest."""
    side = 1 / GRID
    return [
        [column_of(i) * side, row_of(i) * side, (column_of(i) + 1) * side, (row_of(i) + 1) * side]
        for i in source.changed(target)
    ]


def explicit(
    n: int, seed: int = 0, *, two_steps: float = 0.0, styles: Mapping[str, float] = STYLE_SHARES
) -> list[TaskRow]:
    """`n` training rows whose instruction is an explicit prompt, as the tiny editor reads it.

    The eight kinds of step come equally often; `styles` are the shares in which a thing is named by all it is and its
    cell ("canonical"), by its cell, or by a description. `two_steps`: the share of prompts with two steps, of any
    kinds. No row holds a held-out (colour, shape) pair.
    """
    return list(_explicit(n, seed, "train", two_steps, styles))


def explicit_held_out(
    n: int, seed: int = 0, *, two_steps: float = 0.0, styles: Mapping[str, float] = STYLE_SHARES
) -> list[TaskRow]:
    """As `explicit`, from test seeds: no training row was drawn from one of them."""
    return list(_explicit(n, seed, "test", two_steps, styles))


def planned(n: int, seed: int = 0) -> list[TaskRow]:
    """`n` reasoning tasks for training, whose prompt (`meta["prompt"]`) is the true plan as the engine writes it."""
    return list(map(_planned, sample_tasks(_size(n, seed), seed, "train")))


def planned_held_out(n: int, seed: int = 0) -> list[TaskRow]:
    """As `planned`, from test seeds."""
    return list(map(_planned, sample_tasks(_size(n, seed), seed, "test")))


def judged(n: int, seed: int = 0) -> list[TaskRow]:
    """`n` rows to make judged edits of (`premeditate data rrm`): in turn a reasoning task and an explicit prompt, of
    which one in three has two steps. `meta["prompt"]` is the plan, and `meta["checklist"]` the true checklist, in half
    of the rows with one or two questions more about what is kept."""
    return _judged(n, seed, "train")


def judged_held_out(n: int, seed: int = 0) -> list[TaskRow]:
    """As `judged`, from test seeds."""
    return _judged(n, seed, "test")


def _judged(n: int, seed: int, split: Split) -> list[TaskRow]:
    count = _size(n, seed)
    tasks = map(_planned, sample_tasks((count + 1) // 2, seed, split))
    prompts = _explicit(count // 2, seed, split, 1 / 3, STYLE_SHARES) if count > 1 else iter(())
    return [_with_checklist(next(prompts if i % 2 else tasks)) for i in range(count)]


def _with_checklist(made: TaskRow) -> TaskRow:
    source, target = (Scene.from_codes(made.meta["microworld"][what]) for what in ("source", "target"))
    rng = random.Random(f"judged/{made.id}")
    items = [item.model_dump() for item in checklist(source, target)]
    if rng.random() < 0.5:
        same = [i for i in range(CELLS) if i not in source.changed(target)]
        kept = [i for i in same if source[i] is not None] or same  # of empty cells there is little to keep
        asked = [_kept(i, source) for i in sorted(rng.sample(kept, min(len(kept), rng.randint(1, 2))))]
        items[-1:-1] = [{"question": question, "dimension": "keep"} for question in asked]
    more = {"prompt": made.meta.get("prompt", made.instruction), "checklist": items}
    return TaskRow(made.id, made.images, made.instruction, made.meta | more)


def _kept(place: int, scene: Scene) -> str:
    thing, name = scene[place], CELL_NAMES[place]
    return f"is {name} empty?" if thing is None else f"is there a {thing} at {name}?"


def _planned(task: MicroTask) -> TaskRow:
    made = row(task)
    boxes = changed_boxes(task.source, task.target)
    return TaskRow(
        made.id, made.images, made.instruction, made.meta | {"prompt": JOIN.join(task.plan), "changed_boxes": boxes}
    )


def _explicit(n: int, seed: int, split: str, two_steps: float, styles: Mapping[str, float]) -> Iterator[TaskRow]:
    if not 0 <= two_steps <= 1:
        raise ValueError(f"two_steps is a share in 0-1, not {two_steps}")
    if not styles or not set(styles) <= set(STYLE_SHARES) or min(styles.values()) < 0 or not sum(styles.values()) > 0:
        raise ValueError(f"styles maps {', '.join(STYLE_SHARES)} to shares, some above 0, not {dict(styles)}")
    count, first = _size(n, seed), seed * STRIDE + (TEST_SEEDS if split == "test" else 0)
    for i in range(count):
        rng = random.Random(f"explicit/{first + i}")
        style = _pick(styles, (i // len(OPERATIONS) + 0.5) * _GOLDEN % 1)
        if rng.random() < two_steps:
            example = draw(rng, steps=2, style=style)
        else:
            example = draw(rng, style=style, operation=OPERATIONS[i % len(OPERATIONS)])
        name = f"explicit-{split}-{first + i}"
        meta = _meta(example, split, first + i)
        yield TaskRow(name, (render(example.source),), example.prompt, meta)


def _meta(example: Example, split: str, seed: int) -> dict[str, Any]:
    items = [item.model_dump() for item in checklist(example.source, example.target)]
    return {
        "kind": JOIN.join(example.operations),
        "family": f"explicit-{example.style}",
        "split": split,
        "seed": seed,
        "changed_boxes": changed_boxes(example.source, example.target),
        "microworld": {
            "source": list(example.source.codes),
            "target": list(example.target.codes),
            "plan": example.prompt.split(JOIN),
            "checklist": items,
            "explanation": "",
        },
        "checklist": items,  # for judges, which know nothing of the micro world
    }


def _pick(shares: Mapping[str, float], where: float) -> str:
    """The name at `where` in 0-1 on the scale that the shares divide. Steps of the golden ratio, so that any run of
    rows holds each about as often as it should."""
    where *= sum(shares.values())
    for name, share in shares.items():
        if where < share:
            return name
        where -= share
    return max(shares, key=lambda name: shares[name])  # rounding went past the end


def _size(n: int, seed: int) -> int:
    """`n`. Raises ValueError where rows of two seeds, or of training and test, could be the same."""
    if not 1 <= n <= STRIDE:
        raise ValueError(f"n must be in 1..{STRIDE}, not {n}")
    if not 0 <= seed < TEST_SEEDS // STRIDE:
        raise ValueError(f"seed must be in 0..{TEST_SEEDS // STRIDE - 1}, not {seed}")
    return n
