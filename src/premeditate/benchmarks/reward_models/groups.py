"""TIGER-Lab's groups and GenAI-Bench's labels from the rows of a report: what is right, of all that there is.

A pair that is none (a picture that cannot be read, two equal edits) has no row, but its group is still one of the
benchmark's: it lacks an answer.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from premeditate.benchmarks.reward_models.pairwise import Accuracy, calibrated_labels
from premeditate.benchmarks.reward_models.protocols import (
    Groups,
    Missing,
    four_calibrated,
    genai,
    tiger,
    tiger_labels,
)
from premeditate.benchmarks.reward_models.row import Row
from premeditate.datasets.preferences import BadPair

_SIZE = re.compile(r"(\d+)pair")


@dataclass(frozen=True)
class Counts:
    """One protocol's figures. `all`: what was not answered is wrong, as published; `answered`: it leaves the count.
    `thresholds`: found on the other half of the pairs, None where none is used."""

    all: Any
    answered: Any
    thresholds: tuple[Any, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        told = {} if self.thresholds is None else {"thresholds": list(self.thresholds)}
        return {"all": self.all.to_json(), "answered": self.answered.to_json(), **told}


def tiger_counts(rows: Sequence[Row], bad: Sequence[BadPair]) -> dict[str, Counts]:
    """`Groups` without a threshold for ties, and with a calibrated one where K is 2; {} where nothing is grouped."""
    chosen, names, sizes = grouped(rows, bad)
    if not sizes:
        return {}
    truth = [row.preference for row in chosen]
    strict = tiger_labels(names, [row.means for row in chosen], sizes=sizes)
    at = [i for i, name in enumerate(names) if sizes[name] == 2]
    said, thresholds = calibrated_labels([chosen[i].difference for i in at], [truth[i] for i in at])
    crossed = list(strict)
    for i, one in zip(at, said, strict=True):
        crossed[i] = one

    def counted(labels: Any, missing: Missing) -> Groups:
        return tiger(names, labels, truth, missing, sizes)

    return {
        "strict": Counts(counted(strict, "wrong"), counted(strict, "leave")),
        "calibrated": Counts(counted(crossed, "wrong"), counted(crossed, "leave"), thresholds),
    }


def grouped(rows: Sequence[Row], bad: Sequence[BadPair]) -> tuple[list[Row], list[str], dict[str, int]]:
    """The rows that belong to groups, the name of each one's group, and K of every group, those without rows included.

    Published ids are not unique: a pair that comes again is left out, and what two comparisons of one name hold is
    told apart by instruction and source."""
    members: dict[str, list[Row]] = {}
    for row in rows:
        if row.group:
            members.setdefault(row.group, []).append(row)
    lost = Counter(one.group for one in bad if one.group)
    chosen: list[Row] = []
    names: list[str] = []
    sizes: dict[str, int] = {}
    for group in (*members, *(name for name in lost if name not in members)):
        every = list({_content(row): row for row in members.get(group, [])}.values())
        size = _size(group, every, lost[group])
        pairs = size * (size - 1) // 2
        parts = {"": every}
        if len(every) + lost[group] > pairs:
            parts = {}
            for row in every:
                parts.setdefault(row.task, []).append(row)
        missing = lost[group] - sum(max(0, pairs - len(part)) for part in parts.values())
        for number in range(math.ceil(max(0, missing) / pairs)):
            parts[f"lost {number}"] = []
        for key, part in parts.items():
            name = f"{group} {key}".strip()
            sizes[name] = size
            if len(part) > pairs:  # no group of K edits: it counts as one that lacks an answer
                part = part[: pairs - 1]
            chosen += part
            names += [name] * len(part)
    return chosen, names, sizes


def _content(row: Row) -> Any:
    return (row.task, frozenset(row.names)) if all(row.names) else row.edits


def _size(group: str, rows: Sequence[Row], lost: int) -> int:
    """K: as the group's name or the rows' kind says it, else by what there is of the group."""
    for text in (group, *(row.kind for row in rows[:1])):
        if (found := _SIZE.match(text)) and int(found[1]) >= 2:
            return int(found[1])
    count = len(rows) + lost
    return math.ceil((1 + math.sqrt(1 + 8 * count)) / 2)


def genai_counts(rows: Sequence[Row], bad: Sequence[BadPair]) -> dict[str, Counts]:
    """`Accuracy` of the four labels, for scores that tie only where they are equal, and with a calibrated threshold;
    {} where people called no tie good or bad."""
    told = [row for row in rows if row.four is not None]
    if not any(row.four in ("A=B=Good", "A=B=Bad") for row in told):
        return {}
    truth = [row.four for row in told if row.four is not None]
    # Where all pairs have such a label, those that could not be read had one too.
    unread = len(bad) if len(told) == len(rows) else 0
    found = {}
    for name, ties in (("strict", False), ("calibrated", True)):
        said, thresholds = four_calibrated([row.means for row in told], truth, ties=ties)

        def counted(missing: Missing, said: Any = said) -> Accuracy:
            return genai([*said, *[None] * unread], [*truth, *["A=B=Bad"] * unread], missing)  # type: ignore[list-item]

        found[name] = Counts(counted("wrong"), counted("leave"), thresholds)
    return found
