"""Micro-world tasks as rows of the project's task format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from premeditate.datasets.tasks import TaskRow, write
from premeditate.microworld.render import render
from premeditate.microworld.tasks import MicroTask, Split, sample_tasks


def row(task: MicroTask) -> TaskRow:
    return TaskRow(task.id, (render(task.source),), task.instruction, task.meta())


def rows(n: int, seed: int = 0, split: Split = "test") -> Iterator[TaskRow]:
    return map(row, sample_tasks(n, seed, split))


def sample(folder: Path, n: int, seed: int = 0, split: Split = "train") -> int:
    """Writes `n` tasks into `folder`. Raises ValueError where it already holds tasks."""
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    return write(folder, rows(n, seed, split))
