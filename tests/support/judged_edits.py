"""Judged edits of the micro world, made up: pictures and principles are true, judgements are drawn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from premeditate.datasets import judged
from premeditate.datasets.judged import Candidate, JudgedEdit
from premeditate.microworld.checker import checklist
from premeditate.microworld.render import render
from premeditate.microworld.tasks import sample_tasks

THOUGHTS = ("good", "the red circle is missing", "b2 is wrong and c3 is blurred", "nothing was changed")


def write(folder: Path, edits: Sequence[JudgedEdit]) -> Path:
    """A folder of one shard."""
    (folder / judged.SHARDS).mkdir(parents=True, exist_ok=True)
    (folder / judged.SHARDS / "00000.jsonl").write_text("".join(f"{edit.model_dump_json()}\n" for edit in edits))
    return folder


def edits(folder: Path, count: int, seed: int = 0) -> list[JudgedEdit]:
    """`count` edits, whose pictures are put into `folder`."""
    rng, found = random.Random(seed), []
    for i, task in enumerate(sample_tasks(count, seed, "train")):
        items = tuple(checklist(task.source, task.target))
        verdicts = tuple(rng.random() < 0.5 for _ in items)
        kept = Candidate(judge="a", thought=THOUGHTS[i % len(THOUGHTS)], verdicts=verdicts, accuracy=1.0,
                         score=round(rng.uniform(0, 10), 1))  # fmt: skip
        other = Candidate(judge="b", status="refused", problem="no")
        found.append(JudgedEdit(
            id=f"edit-{i}", task=task.id, instruction=task.instruction, source=judged.put(folder, render(task.source)),
            edit=judged.put(folder, render(task.target if i % 2 else task.source)), principles=items, gold=verdicts,
            candidates=(other, kept), chosen=1,
        ))  # fmt: skip
    return found


def with_kept(edit: JudgedEdit, **changes: Any) -> JudgedEdit:
    """`edit` with another kept candidate."""
    some = list(edit.candidates)
    some[edit.chosen] = edit.kept.model_copy(update=changes)
    return edit.model_copy(update={"candidates": tuple(some)})


def resized(folder: Path, edit: JudgedEdit, source: tuple[int, int], result: tuple[int, int]) -> JudgedEdit:
    """`edit` with its pictures in other sizes."""

    def put(name: str, size: tuple[int, int]) -> str:
        return judged.put(folder, judged.picture(folder, name).resize(size, Image.Resampling.NEAREST))

    return edit.model_copy(update={"source": put(edit.source, source), "edit": put(edit.edit, result)})
