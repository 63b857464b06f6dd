"""What can be counted in judged edits, shard by shard: tallies add up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from itertools import combinations

from premeditate.datasets.judged import Candidate, JudgedEdit
from premeditate.stats import Rate
from premeditate.synthesis.shard import slot

BINS = 10


@dataclass(frozen=True)
class Agreement:
    """A judge's verdicts against gold: `tp` met and said so, `fp` not met and said to be, `tn`, `fn`."""

    tp: int = 0
    fp: int = 0
    tn: int = 0
    fn: int = 0

    @property
    def accuracy(self) -> Rate:
        return Rate(self.tp + self.tn, self.tp + self.fp + self.tn + self.fn)

    @property
    def met(self) -> Rate:
        """Of the principles that are met, those it found met."""
        return Rate(self.tp, self.tp + self.fn)

    @property
    def unmet(self) -> Rate:
        """Of those that are not met, those it found not met."""
        return Rate(self.tn, self.tn + self.fp)

    @property
    def balanced(self) -> float | None:
        """The mean of both; None where one of them is of nothing."""
        met, unmet = self.met.value, self.unmet.value
        return None if met is None or unmet is None else (met + unmet) / 2

    @property
    def kappa(self) -> float | None:
        """Cohen's: (observed - expected) / (1 - expected) agreement; None where chance alone would agree always."""
        n = self.accuracy.n
        if not n:
            return None
        said, true = (self.tp + self.fp) / n, (self.tp + self.fn) / n
        expected = said * true + (1 - said) * (1 - true)
        return None if math.isclose(expected, 1) else ((self.tp + self.tn) / n - expected) / (1 - expected)


@dataclass
class Tally:
    """Of the edits that are in the data. Keys: `gold` (dimension, met); `said` (slot, dimension, said, gold); `pairs`
    (slot, slot, same); `scores` and `all_scores` the bin 0-9 of a score in [0, 10], 10 in the last; `right` (slot,
    number of principles, number of right verdicts)."""

    edits: Counter[str] = field(default_factory=Counter)
    whole: Counter[str] = field(default_factory=Counter)
    gold: Counter[tuple[str, bool]] = field(default_factory=Counter)
    principles: Counter[int] = field(default_factory=Counter)
    said: Counter[tuple[str, str, bool, bool]] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str, bool]] = field(default_factory=Counter)
    chosen: Counter[str] = field(default_factory=Counter)
    tied: int = 0
    kept_right: Counter[tuple[int, int]] = field(default_factory=Counter)
    scores: Counter[int] = field(default_factory=Counter)
    all_scores: Counter[int] = field(default_factory=Counter)
    twice: int = 0
    """Edits whose picture an earlier edit of the same task has too."""

    @classmethod
    def of(cls, edits: Iterable[JudgedEdit]) -> Tally:
        """Of one shard's edits, or of any set that holds each task whole."""
        found = cls()
        seen: set[tuple[str, str]] = set()
        for edit in edits:
            found._add(edit)
            found.twice += (edit.task, edit.edit) in seen
            seen.add((edit.task, edit.edit))
        return found

    def __iadd__(self, other: Tally) -> Tally:
        for part in fields(self):
            setattr(self, part.name, getattr(self, part.name) + getattr(other, part.name))
        return self

    def _add(self, edit: JudgedEdit) -> None:
        self.edits[edit.editor] += 1
        self.whole[edit.editor] += all(edit.gold)
        self.principles[len(edit.principles)] += 1
        dimensions = [item.dimension for item in edit.principles]
        self.gold.update(zip(dimensions, edit.gold, strict=True))
        scored = [(slot(c), c) for c in edit.candidates if c.status == "scored"]
        for name, candidate in scored:
            self.said.update(
                (name, dimension, said, true)
                for dimension, said, true in zip(dimensions, candidate.verdicts, edit.gold, strict=True)
            )
            self.all_scores[_bin(candidate)] += 1
        for (one, first), (other, second) in combinations(scored, 2):
            self.pairs.update((one, other, a == b) for a, b in zip(first.verdicts, second.verdicts, strict=True))
        kept = edit.kept
        self.chosen[slot(kept)] += 1
        self.scores[_bin(kept)] += 1
        self.tied += sum(c.accuracy == kept.accuracy for _, c in scored) > 1
        right = sum(a == b for a, b in zip(kept.verdicts, edit.gold, strict=True))
        self.kept_right[len(edit.gold), right] += 1

    # -- figures -------------------------------------------------------------------------------------------------

    def met(self, dimension: str | None = None) -> Rate:
        """The share of principles that gold says are met."""
        mine = {key: n for key, n in self.gold.items() if dimension in (None, key[0])}
        return Rate(sum(n for (_, met), n in mine.items() if met), sum(mine.values()))

    def agreement(self, name: str, dimension: str | None = None) -> Agreement:
        def count(said: bool, true: bool) -> int:
            return sum(n for (one, d, s, t), n in self.said.items()
                       if one == name and dimension in (None, d) and (s, t) == (said, true))  # fmt: skip

        return Agreement(tp=count(True, True), fp=count(True, False), tn=count(False, False), fn=count(False, True))

    def between(self) -> dict[tuple[str, str], Rate]:
        """For each two slots, the share of principles about which they say the same, where both are scored."""
        both = list(dict.fromkeys((one, other) for one, other, _ in self.pairs))
        return {(a, b): Rate(self.pairs[a, b, True], self.pairs[a, b, True] + self.pairs[a, b, False])
                for a, b in both}  # fmt: skip

    @property
    def kept_accuracy(self) -> Rate:
        """Of the kept candidates' verdicts."""
        return Rate(
            sum(right * n for (_, right), n in self.kept_right.items()),
            sum(total * n for (total, _), n in self.kept_right.items()),
        )

    @property
    def flawless(self) -> Rate:
        """Edits whose kept candidate has every verdict right."""
        return Rate(
            sum(n for (total, right), n in self.kept_right.items() if total == right), sum(self.kept_right.values())
        )


def _bin(candidate: Candidate) -> int:
    assert candidate.score is not None
    return min(BINS - 1, int(candidate.score))
