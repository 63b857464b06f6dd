"""Preferred pairs as the training of a judge takes them: which edit won, by which principles it is judged, and pictures
that are read when they are needed."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from premeditate.attribute import is_attribute
from premeditate.datasets.preferences import BadPair, Pair, PairPaths, listed, same
from premeditate.errors import PremeditateError, check_instruction, one_line
from premeditate.rewards.checklists.builder import ChecklistBuilder, Subject
from premeditate.rewards.verified import given
from premeditate.trace import Checklist, ChecklistItem
from premeditate.training.data import DataError, called
from premeditate.training.verifier.recipe import Data

_PORTION = 64
"""Pairs whose pictures are open at a time while principles are written."""
_SHOWN = 5
_NO_PRINCIPLES, _UNWRITTEN = "no principles", "principles are"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """A pair of which one edit is preferred, with the principles that both are judged by."""

    pair: Pair | PairPaths
    principles: tuple[ChecklistItem, ...]

    @property
    def id(self) -> str:
        return self.pair.id

    def pictures(self) -> tuple[Image.Image, Image.Image, Image.Image]:
        """(source, preferred edit, other edit), RGB. Raises `DataError` for a file that cannot be read and for two
        files that hold the same edit."""
        found = self.pair.open() if isinstance(self.pair, PairPaths) else self.pair
        if isinstance(found, BadPair):
            raise DataError(found.problem, "mend the picture, or take the pair out")
        edits = (found.first, found.second)
        return found.source, *(edits if found.preference == "first" else edits[::-1])


def load(spec: str, count: int | None, data: Data, builder: ChecklistBuilder | None, say: Say) -> list[Comparison]:
    """The first `count` pairs that `spec` names of which one edit is preferred. `builder`: writes the principles of
    those that bring none along; pairs for which it cannot are left out of these. What was left out, and why, is said.
    Pictures in files are read when they are needed. Raises `DataError` where no pair is left, and for principles that
    are none; what the builder raises; `PairsError` for a file that cannot be read."""
    left_out: Counter[str] = Counter()
    usable: list[Comparison] = []
    for row in _rows(spec, count, data):
        if count is not None and len(usable) == count:
            break
        pair = row if isinstance(row, BadPair) else _checked(row)
        if isinstance(pair, BadPair):
            left_out[f"no pair ({pair.problem[:120]})"] += 1
        elif pair.preference == "tie":
            left_out["a tie"] += 1
        else:
            principles = _given(pair)
            if not principles and builder is None:
                left_out[_NO_PRINCIPLES] += 1
            else:
                usable.append(Comparison(pair, principles))
    found = usable if builder is None else _with_principles(usable, builder, left_out, say)
    if left_out:
        total, most = sum(left_out.values()), left_out.most_common(_SHOWN)
        more = "" if len(most) == len(left_out) else f"; {total - sum(n for _, n in most)} others"
        say(f"{total} pairs of {spec} are left out: {'; '.join(f'{n} {why}' for why, n in most)}{more}")
    if not found:
        why = left_out.most_common(1)[0][0] if left_out else "it is empty"
        raise DataError(f"{spec} holds no pair to learn from ({why})", _mend(why))
    return found


def digest(comparisons: Sequence[Comparison]) -> str:
    """SHA-256 of what names the pairs, who won, and their principles. Of pictures in hand their pixels count, of those
    in files the names."""
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
    if is_attribute(spec, or_file=True):
        return called(spec, count, data.seed, (Pair, PairPaths, BadPair))
    return listed(Path(spec), root=None if data.root is None else Path(data.root), format=data.format)


def _checked(row: Pair | PairPaths) -> Pair | PairPaths | BadPair:
    """The pair with its instruction cleaned, or why it is none, as far as that can be told without opening files."""
    try:
        text = check_instruction(row.instruction)
    except (TypeError, AttributeError):
        return BadPair(row.id, f"{row.id}: its instruction is no text")
    except PremeditateError as error:
        return BadPair(row.id, f"{row.id}: {one_line(error)}")
    if isinstance(row, Pair) and same(row.first, row.second):
        return BadPair(row.id, f"{row.id}: the two edits are the same picture")
    return replace(row, instruction=text)


def _given(row: Pair | PairPaths) -> tuple[ChecklistItem, ...]:
    """The principles that a pair brings along, () for none. Raises `DataError` for some that are none."""
    checklist = given(row.meta)
    if checklist is not None and checklist.status != "scored":
        why = checklist.raw.partition(": ")[2]
        raise DataError(f"{row.id}: meta.checklist is none ({why})", "give a list of {question, dimension}")
    return () if checklist is None else checklist.items


def _with_principles(
    rows: Sequence[Comparison], builder: ChecklistBuilder, left_out: Counter[str], say: Say
) -> list[Comparison]:
    """`rows` without those that have no principles and get none."""
    lacking = [i for i, row in enumerate(rows) if not row.principles]
    written: dict[int, tuple[ChecklistItem, ...]] = {}
    for start in range(0, len(lacking), _PORTION):
        if start:
            say(f"principles of {start} of {len(lacking)} pairs are written")
        ready: dict[int, Pair] = {}
        for i in lacking[start : start + _PORTION]:
            row = rows[i].pair
            pair = row.open() if isinstance(row, PairPaths) else row
            if isinstance(pair, BadPair):
                left_out[f"no pair ({pair.problem[:120]})"] += 1
            else:
                ready[i] = pair
        subjects = [Subject((pair.source,), pair.instruction) for pair in ready.values()]
        for i, checklist in zip(ready, asyncio.run(builder.write(subjects)), strict=True):
            if checklist.status == "scored" and checklist.items:
                written[i] = checklist.items
            else:
                left_out[_unwritten(checklist)] += 1
    full = (replace(row, principles=row.principles or written.get(i, ())) for i, row in enumerate(rows))
    return [row for row in full if row.principles]


def _unwritten(checklist: Checklist) -> str:
    why = " ".join((checklist.note or checklist.raw).split())[:120]
    return f"{_UNWRITTEN} {checklist.status}" + (f" ({why})" if why else "")


def _mend(why: str) -> str:
    if why == _NO_PRINCIPLES:
        return "give data.checklists=SPEC, a reasoner that writes principles"
    if why.startswith(_UNWRITTEN):
        return "give another reasoner for data.checklists, or pairs that bring principles along (meta.checklist)"
    return "give pairs of which one edit is preferred"
