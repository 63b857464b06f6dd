"""Preferred pairs as the training of a judge takes them: which edit won, by which principles it is judged, and pictures
that are read when they are needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from premeditate.attribute import is_attribute
from premeditate.datasets.preferences import BadPair, Pair, PairPaths, instruction_of, listed, same
from premeditate.errors import PremeditateError, one_line
from premeditate.rewards.verified import given
from premeditate.trace import ChecklistItem
from premeditate.training.data import DataError, called
from premeditate.training.verifier.recipe import Data

_SHOWN = 5
_NO_PRINCIPLES, _NONE, UNWRITTEN = "no principles", "principles that are none (meta.checklist)", "principles are"
Principles = tuple[ChecklistItem, ...]
Say = Callable[[str], None]
Write = Callable[[Sequence[Pair | PairPaths]], Sequence[Principles | str]]
"""The principles of each pair, or why there are none."""


@dataclass(frozen=True)
class Comparison:
    """A pair of which one edit is preferred, with the principles that both are judged by."""

    pair: Pair | PairPaths
    principles: Principles

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


def load(data: Data, write: Write | None, say: Say) -> tuple[list[Comparison], list[Comparison]]:
    """The pairs to train on and those held out: the first data.train_count (data.eval_count) that the SPEC names of
    which one edit is preferred. `write`: gives the principles of those that bring none along, called once for all;
    pairs for which it has none are left out of these. What was left out, and why, is said. Pictures in files are read
    when they are needed. Raises `DataError` where no pair is left; what `write` raises; `PairsError` for a file that
    cannot be read."""
    wanted = [(data.train, data.train_count)]
    if data.eval is not None:
        wanted.append((data.eval, data.eval_count))
    found = [_selected(spec, count, data, write is not None) for spec, count in wanted]
    for one in found:
        if not one.rows:
            one.tell(say)  # before anybody is asked for principles
    lacking = [row for one in found for row in one.rows if not row.principles]
    made = iter(write([row.pair for row in lacking]) if write is not None and lacking else ())
    for one in found:
        one.fill(made)
        one.tell(say)
    train, *held_out = (one.rows for one in found)
    return train, held_out[0] if held_out else []


@dataclass
class _Found:
    """The usable pairs of `spec`, those without principles among them; and the ids of those left out, by reason."""

    spec: str
    rows: list[Comparison] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave(self, pair: Pair | PairPaths | BadPair, why: str) -> None:
        self.left_out.setdefault(why, []).append(pair.id)

    def fill(self, made: Iterator[Principles | str]) -> None:
        """Gives the pairs without principles what was made for them, in order, and leaves out those without."""
        rows, self.rows = self.rows, []
        for row in rows:
            principles: Principles | str = row.principles or next(made)
            if isinstance(principles, str):
                self.leave(row.pair, principles)
            else:
                self.rows.append(replace(row, principles=principles))

    def tell(self, say: Say) -> None:
        """Says what is left out. Raises `DataError` where nothing else is there."""
        reasons = sorted(self.left_out.items(), key=lambda reason: -len(reason[1]))
        if reasons:
            total, rest = sum(len(ids) for _, ids in reasons), sum(len(ids) for _, ids in reasons[_SHOWN:])
            shown = "; ".join(f"{len(ids)} {why}, first {ids[0]}" for why, ids in reasons[:_SHOWN])
            say(f"{total} pairs of {self.spec} are left out: {shown}" + (f"; {rest} others" if rest else ""))
        if not self.rows:
            why = reasons[0][0] if reasons else "it is empty"
            raise DataError(f"{self.spec} holds no pair to learn from ({why})", _mend(why))


def key(pair: Pair | PairPaths) -> str:
    """SHA-256 of what names a pair, and who won. Of pictures in hand their pixels count, of those in files the
    names."""
    found = hashlib.sha256(json.dumps([pair.id, pair.instruction, pair.preference]).encode())
    _add_pictures(found, pair)
    return found.hexdigest()


def digest(comparisons: Sequence[Comparison]) -> str:
    """SHA-256 of what names the pairs, who won, and their principles. Of pictures in hand their pixels count, of those
    in files the names."""
    found = hashlib.sha256()
    for one in comparisons:
        pair = one.pair
        said = [pair.id, pair.instruction, pair.preference, [item.model_dump() for item in one.principles]]
        found.update(json.dumps(said).encode())
        _add_pictures(found, pair)
    return found.hexdigest()


def _add_pictures(found: hashlib._Hash, pair: Pair | PairPaths) -> None:
    if isinstance(pair, Pair):
        for image in (pair.source, pair.first, pair.second):
            found.update(f"{image.size}".encode() + image.tobytes())
    else:
        found.update(json.dumps([str(pair.source), *map(str, pair.edits)]).encode())


def _selected(spec: str, count: int | None, data: Data, written: bool) -> _Found:
    """`written`: pairs without principles will get some."""
    found = _Found(spec)
    for row in _rows(spec, count, data):
        if count is not None and len(found.rows) == count:
            break
        pair = row if isinstance(row, BadPair) else _checked(row)
        if isinstance(pair, BadPair):
            found.leave(pair, no_pair(pair))
        elif pair.preference == "tie":
            found.leave(pair, "a tie")
        else:
            principles = _given(pair)
            if principles is None:
                found.leave(pair, _NONE)
            elif not principles and not written:
                found.leave(pair, _NO_PRINCIPLES)
            else:
                found.rows.append(Comparison(pair, principles))
    return found


def no_pair(bad: BadPair, row: Pair | PairPaths | None = None) -> str:
    """Why a pair is left out, without its place and the names of the files of `row`: so that equal reasons add up."""
    problem = bad.problem.removeprefix(str(bad.id)).lstrip(": ")
    if isinstance(row, PairPaths):
        for name in (row.source, *row.edits):
            problem = problem.replace(str(row.root / name), "its picture") if isinstance(name, str) else problem
    return f"no pair ({problem[:120]})"


def _rows(spec: str, count: int | None, data: Data) -> Iterable[Pair | PairPaths | BadPair]:
    if is_attribute(spec, or_file=True):
        return called(spec, count, data.seed, (Pair, PairPaths, BadPair))
    return listed(Path(spec), root=None if data.root is None else Path(data.root), format=data.format)


def _checked(row: Pair | PairPaths) -> Pair | PairPaths | BadPair:
    """The pair with its instruction cleaned, or why it is none, as far as that can be told without opening files."""
    try:
        text = instruction_of(row)
    except PremeditateError as error:
        return BadPair(row.id, f"{row.id}: {one_line(error)}")
    if isinstance(row, Pair) and same(row.first, row.second):
        return BadPair(row.id, f"{row.id}: the two edits are the same picture")
    return replace(row, instruction=text)


def _given(row: Pair | PairPaths) -> Principles | None:
    """The principles that a pair brings along, () for none; None for some that are none."""
    checklist = given(row.meta)
    if checklist is None:
        return ()
    return checklist.items if checklist.status == "scored" else None


def _mend(why: str) -> str:
    if why == _NO_PRINCIPLES:
        return "give data.checklists=SPEC, a reasoner that writes principles"
    if why == _NONE:
        return "give a list of {question, dimension}"
    if why.startswith(UNWRITTEN):
        return "give another reasoner for data.checklists, or pairs that bring principles along (meta.checklist)"
    return "give pairs of which one edit is preferred"
