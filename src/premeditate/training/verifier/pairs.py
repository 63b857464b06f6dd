"""Preferred pairs as the training of a judge takes them: which edit won, by which principles it is judged, and pictures
that are read when they are needed."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from pydantic import ValidationError

from premeditate.datasets.preferences import BadPair, Pair, PairPaths, listed
from premeditate.errors import one_line
from premeditate.rewards.checklists.builder import ChecklistBuilder, Subject
from premeditate.trace import ChecklistItem
from premeditate.training.data import DataError, called, names_function
from premeditate.training.verifier.recipe import Data

_PORTION = 64
"""Pairs whose pictures are open at a time while principles are written."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """A pair with its principles. `first_won`: whether the first of the two edits is the preferred one."""

    pair: Pair | PairPaths
    principles: tuple[ChecklistItem, ...]

    @property
    def id(self) -> str:
        return self.pair.id

    def pictures(self) -> tuple[Image.Image, Image.Image, Image.Image]:
        """(source, preferred edit, other edit), RGB. Raises `DataError` for one that cannot be read and for two edits
        that are the same picture."""
        found = self.pair.open() if isinstance(self.pair, PairPaths) else self.pair
        if isinstance(found, BadPair):
            raise DataError(found.problem, "mend the picture, or take the pair out")
        edits = (found.first, found.second)
        return found.source, *(edits if found.preference == "first" else edits[::-1])


def load(spec: str, count: int | None, data: Data, builder: ChecklistBuilder | None, say: Say) -> list[Comparison]:
    """The first `count` pairs that `spec` names which are no ties. `builder`: writes the principles of those that bring
    none along. Raises `DataError` where none is left; what was left out, and why, is said."""
    left_out: Counter[str] = Counter()
    usable: list[tuple[Pair | PairPaths, tuple[ChecklistItem, ...] | None]] = []
    for row in _rows(spec, count, data):
        if count is not None and len(usable) == count:
            break
        if isinstance(row, BadPair):
            left_out[f"no pair ({row.problem[:120]})"] += 1
        elif row.preference == "tie":
            left_out["a tie"] += 1
        else:
            given = _given(row)
            if given is None and builder is None:
                left_out["no principles"] += 1
            else:
                usable.append((row, given))
    found = [Comparison(row, items) for row, items in _with_principles(usable, builder, left_out, say) if items]
    if left_out:
        told = "; ".join(f"{n} {why}" for why, n in left_out.most_common(5))
        say(f"{sum(left_out.values())} pairs of {spec} are left out: {told}")
    if not found:
        why = left_out.most_common(1)[0][0] if left_out else "it is empty"
        mend = ("give data.checklists=SPEC, a reasoner that writes principles" if why == "no principles"
                else "give pairs of which one edit is preferred")  # fmt: skip
        raise DataError(f"{spec} holds no pair to learn from ({why})", mend)
    return found


def digest(comparisons: Sequence[Comparison]) -> str:
    """SHA-256 of what names the pairs, who won, and their principles; pictures count where they are in hand."""
    found = hashlib.sha256()
    for one in comparisons:
        pair = one.pair
        said = [pair.id, pair.instruction, pair.preference, [item.model_dump() for item in one.principles]]
        found.update(json.dumps(said).encode())
        if isinstance(pair, Pair):
            for image in (pair.source, pair.first, pair.second):
                found.update(f"{image.size}".encode() + image.tobytes())
        else:
            found.update(json.dumps([str(pair.source), *map(str, pair.edits)]).encode())
    return found.hexdigest()


def _rows(spec: str, count: int | None, data: Data) -> Iterable[Pair | PairPaths | BadPair]:
    if names_function(spec):
        return called(spec, count, data.seed, (Pair, PairPaths, BadPair))
    return listed(Path(spec), root=None if data.root is None else Path(data.root), format=data.format)


def _given(row: Pair | PairPaths) -> tuple[ChecklistItem, ...] | None:
    """The principles that a pair brings along. Raises `DataError` for some that are none."""
    items = row.meta.get("checklist")
    if items is None:
        return None
    try:
        return tuple(ChecklistItem.model_validate(item) for item in items)
    except (ValidationError, TypeError) as error:
        why = f"{row.id}: meta.checklist is none ({one_line(error)})"
        raise DataError(why, "give a list of {question, dimension}") from None


def _with_principles(
    rows: Sequence[tuple[Pair | PairPaths, tuple[ChecklistItem, ...] | None]], builder: ChecklistBuilder | None,
    left_out: Counter[str], say: Say,
) -> list[tuple[Pair | PairPaths, tuple[ChecklistItem, ...]]]:  # fmt: skip
    lacking = [row for row, items in rows if items is None]
    written: dict[str, tuple[ChecklistItem, ...]] = {}
    for start in range(0, len(lacking), _PORTION):
        assert builder is not None
        if start:
            say(f"principles of {start} of {len(lacking)} pairs are written")
        ready: list[Pair] = []
        for row in lacking[start : start + _PORTION]:
            pair = row.open() if isinstance(row, PairPaths) else row
            if isinstance(pair, BadPair):
                left_out[f"no pair ({pair.problem[:120]})"] += 1
            else:
                ready.append(pair)
        subjects = [Subject((pair.source,), pair.instruction) for pair in ready]
        for pair, checklist in zip(ready, asyncio.run(builder.write(subjects)), strict=True):
            if checklist.status == "scored" and checklist.items:
                written[pair.id] = checklist.items
            else:
                left_out[f"principles are {checklist.status}"] += 1
    return [(row, items if items is not None else written.get(row.id, ())) for row, items in rows]
