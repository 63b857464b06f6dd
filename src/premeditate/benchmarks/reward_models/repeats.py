"""Whether a judge says the same again, and whether it agrees with the exact checker."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from premeditate.stats import Rate
from premeditate.trace import Answer, Verdict


@dataclass(frozen=True)
class Spread:
    """N edits, scored R times. `within`: the mean variance of an edit's scores (unbiased); `between`: the variance of
    the edits' true scores that is left when that is taken off (at least 0). `reliability` = between / (between +
    within): the share of one score's variance that is about the edit, ICC(1) for equally many repeats. None where there
    are too few scores."""

    within: float | None
    between: float | None
    edits: int
    missing: int
    scores: int

    @property
    def reliability(self) -> float | None:
        if self.within is None or self.between is None or self.within + self.between == 0:
            return None
        return self.between / (self.between + self.within)

    def to_json(self) -> dict[str, Any]:
        std = None if self.within is None else math.sqrt(self.within)
        return {"variance": self.within, "std": std, "between": self.between, "reliability": self.reliability,
                "edits": self.edits, "missing": self.missing, "scores": self.scores}  # fmt: skip


def spread(scores: Any) -> Spread:
    """`scores` [R, N], NaN or None where one is missing; edits with fewer than two scores are left out. Raises
    ValueError for another shape."""
    matrix = np.array(scores, dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"scores have shape {list(matrix.shape)}; give [R, N]: R repeats of N edits")
    there = ~np.isnan(matrix)
    count = there.sum(0)
    used = count >= 2
    missing, total = int((~there).sum()), matrix.size
    if not used.any():
        return Spread(None, None, 0, missing, total)
    values, k = matrix[:, used], count[used]
    shift = np.nanmax(values, axis=0)  # equal scores have a variance of exactly 0
    offsets = np.nanmean(values - shift, axis=0)
    means, squares = shift + offsets, np.nansum((values - shift - offsets) ** 2, axis=0)
    within = float(squares.sum() / (k - 1).sum())
    between = None
    if len(k) >= 2:  # one-way analysis of variance, for unequal numbers of repeats
        n = k.sum()
        grand = (k * means).sum() / n
        size = (n - (k**2).sum() / n) / (len(k) - 1)
        between = max(0.0, float(((k * (means - grand) ** 2).sum() / (len(k) - 1) - within) / size))
    return Spread(within, between, len(k), missing, total)


@dataclass(frozen=True)
class Agreement:
    """Answers to questions of one type. `agree`: as the exact checker says. `false_yes`: said yes where the truth is
    no; `false_no` the other way round. `asked`: questions to which the checker knows the answer; `unknown`: others."""

    agree: Rate
    false_yes: Rate
    false_no: Rate
    asked: int
    unknown: int

    @property
    def coverage(self) -> Rate:
        return Rate(self.agree.n, self.asked)

    @property
    def kappa(self) -> float | None:
        """Cohen's: agreement beyond chance, 1 at best, 0 for a judge that guesses; None where chance explains all."""
        no, yes, n = self.false_yes.n, self.false_no.n, self.agree.n
        if not n:
            return None
        said_yes = self.false_yes.k + yes - self.false_no.k
        chance = (yes * said_yes + no * (n - said_yes)) / n**2
        return None if chance == 1 else (self.agree.k / n - chance) / (1 - chance)

    def to_json(self) -> dict[str, Any]:
        rates = {name: getattr(self, name).to_json() for name in ("agree", "false_yes", "false_no", "coverage")}
        return {**rates, "kappa": self.kappa, "asked": self.asked, "unknown": self.unknown}


def agreement(judged: Sequence[Verdict], exact: Sequence[Verdict]) -> Mapping[str, Agreement]:
    """Per dimension of the questions ("follow", "keep", "quality") and for "all". The two verdicts on an edit answer
    the same questions in the same order. Raises ValueError where they do not."""
    cells: dict[str, list[tuple[Answer, Answer]]] = {"all": []}
    for one, other in zip(judged, exact, strict=True):
        if [a.item for a in one.answers] != [a.item for a in other.answers]:
            raise ValueError("the judge and the checker answered different questions; ask both the same checklist")
        for said, truth in zip(one.answers, other.answers, strict=True):
            for name in ("all", said.item.dimension):
                cells.setdefault(name, []).append((said, truth))
    return {name: _agreement(pairs) for name, pairs in cells.items()}


def _agreement(pairs: Sequence[tuple[Answer, Answer]]) -> Agreement:
    known = [(s, t.yes) for s, t in pairs if t.status == "scored" and t.yes is not None]
    both = [(s.yes, t) for s, t in known if s.status == "scored" and s.yes is not None]
    return Agreement(
        Rate.of(s == t for s, t in both), Rate.of(s is True for s, t in both if not t),
        Rate.of(s is False for s, t in both if t), len(known), len(pairs) - len(known),
    )  # fmt: skip
