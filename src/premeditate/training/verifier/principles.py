"""The principles of pairs that bring none along: written by a reasoner when a run begins, by its first process for all,
and kept in the run's folder, so that a run that goes on has the pairs that it began with and asks nobody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from premeditate import presets
from premeditate.datasets.preferences import BadPair, Pair, PairPaths
from premeditate.engine.pooled import pooled
from premeditate.files import check_writable, write_atomic
from premeditate.reasoners.base import close
from premeditate.rewards.checklists.builder import ChecklistBuilder, Subject
from premeditate.trace import Checklist, ChecklistItem
from premeditate.training.distributed import World
from premeditate.training.errors import TrainingError
from premeditate.training.verifier.pairs import UNWRITTEN, Principles, Say, key, no_pair
from premeditate.training.verifier.recipe import Data

FILE = "principles.jsonl"
_PORTION = 64
"""Pairs whose pictures are open at a time while principles are written."""
_FEW = 4
"""Where fewer tasks than these got no answer, they may be at fault and not the reasoner."""


def principles(
    rows: Sequence[Pair | PairPaths], data: Data, out: Path, world: World, say: Say, *, resumed: bool
) -> list[Principles | str]:
    """The principles of each of `rows`, or why there are none. All processes call it; the first asks data.checklists
    and writes what came of it into `out`. `resumed`: what is found there holds, failures included, and only pairs of
    which it knows nothing are asked for (those of another data.eval). Raises `TrainingError` where the reasoner answers
    nothing, and for a file that is damaged; `WriteError`; what loading the reasoner and writing a checklist raise."""

    def make(alive: Callable[[], None]) -> list[Principles | str]:
        path = check_writable(out / FILE)
        known = _read(path) if resumed and path.exists() else {}
        keys = [key(row) for row in rows]
        named = dict(zip(keys, rows, strict=True))
        if lacking := {name: row for name, row in named.items() if name not in known}:
            model = pooled(presets.load_reasoner(str(data.checklists)))
            builder = ChecklistBuilder(model, folder=data.folder)
            made = asyncio.run(_written(builder, list(lacking.values()), say, alive))
            found = {name: (row.id, one) for (name, row), one in zip(lacking.items(), made, strict=True)}
            known |= found
            write_atomic(path, "".join(_line(name, *one) for name, one in known.items()).encode())
        return [known[name][1] for name in keys]

    return list(world.from_first(make))


async def _written(
    builder: ChecklistBuilder, rows: Sequence[Pair | PairPaths], say: Say, alive: Callable[[], None]
) -> list[Principles | str]:
    """`alive` is called after each portion. The reasoner is closed in the end."""
    found: list[Principles | str] = []
    try:
        for start in range(0, len(rows), _PORTION):
            if start:
                say(f"principles of {start} of {len(rows)} pairs are written")
            found += await _portion(builder, rows[start : start + _PORTION])
            alive()
    finally:
        await close(builder.reasoner)
    return found


async def _portion(builder: ChecklistBuilder, rows: Sequence[Pair | PairPaths]) -> list[Principles | str]:
    opened = [row.open() if isinstance(row, PairPaths) else row for row in rows]
    subjects = [Subject((pair.source,), pair.instruction) for pair in opened if isinstance(pair, Pair)]
    before = builder.asked
    written = await builder.write(subjects)
    lost = {s.content(): c for s, c in zip(subjects, written, strict=True) if c.status == "unavailable"}
    if _FEW <= len(lost) == builder.asked - before:  # all that were asked for; some may have lain in the folder
        kept = "" if builder.folder is None else "; what was written is kept in data.folder"
        raise TrainingError(
            f"{builder.reasoner.name}, which is to write principles, answered none of {len(lost)} times "
            f"({_why(next(iter(lost.values())))})",
            f"put that right and start again, or give another data.checklists{kept}",
        )
    made = iter(written)
    return [
        no_pair(pair, row) if isinstance(pair, BadPair) else _items(next(made))
        for row, pair in zip(rows, opened, strict=True)
    ]


def _items(checklist: Checklist) -> Principles | str:
    if checklist.status == "scored" and checklist.items:
        return checklist.items
    # What cannot be read is another text for each pair.
    why = _why(checklist) if checklist.status == "unavailable" else checklist.note[:120]
    return f"{UNWRITTEN} {checklist.status}" + (f" ({why})" if why else "")


def _why(checklist: Checklist) -> str:
    return " ".join((checklist.note or checklist.raw).split())[:120]


def _line(name: str, id: str, made: Principles | str) -> str:
    what = {"left_out": made} if isinstance(made, str) else {"principles": [item.model_dump() for item in made]}
    return json.dumps({"pair": name, "id": str(id), **what}) + "\n"


def _read(path: Path) -> dict[str, tuple[str, Principles | str]]:
    found: dict[str, tuple[str, Principles | str]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            made = row.get("left_out")
            if not isinstance(made, str):
                made = tuple(ChecklistItem.model_validate(item) for item in row["principles"])
            found[row["pair"]] = (row["id"], made)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        why = f"line {len(found) + 1} of {path}, the principles of this run, cannot be read ({type(error).__name__})"
        raise TrainingError(why, "put the file back as it was, or start again in another folder (out=...)") from None
    return found
