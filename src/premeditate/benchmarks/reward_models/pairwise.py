"""Pairwise accuracy: how often a judge prefers the edit that people prefer.

What a tie of the judge counts must be said, because judges that give whole numbers tie often (`Ties`):

    wrong   a tie is a wrong answer (EditScore's protocol)
    half    a tie counts 1/2, as a coin would on average
    drop    pairs that the judge ties leave the count
    label   a tie is the third label: right where people saw no difference, and pairs that people tie count too

Under the first three, pairs that people tie are left out. Two scores are a tie where they differ by `eps` at most.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from premeditate.datasets.preferences import SWAPPED, Preference
from premeditate.stats import Rate, in_percent, wilson

Ties = Literal["wrong", "half", "drop", "label"]
TIES: tuple[Ties, ...] = ("wrong", "half", "drop", "label")


@dataclass(frozen=True)
class Accuracy:
    """`right` of `n` pairs that count; `right` may hold halves. Of the `asked` pairs of the protocol, `missing` have no
    answer; `ties`: of those that have one, how many the judge tied."""

    right: float
    n: int
    asked: int
    missing: int = 0
    ties: int = 0

    @property
    def value(self) -> float | None:
        return self.right / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's at 95 %; with halves it errs on the wide side, as they vary less than right and wrong."""
        return wilson(self.right, self.n) if self.n else None

    @property
    def coverage(self) -> Rate:
        return Rate(self.asked - self.missing, self.asked)

    @property
    def tie_rate(self) -> Rate:
        return Rate(self.ties, self.asked - self.missing)

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval or (None, None)
        return {"right": self.right, "n": self.n, "value": self.value, "low": low, "high": high, "asked": self.asked,
                "missing": self.missing, "ties": self.ties, "coverage": self.coverage.value}  # fmt: skip

    def __str__(self) -> str:
        return in_percent(self.value, self.interval)


def label(first: float | None, second: float | None, eps: float = 0.0) -> Preference | None:
    """What two scores say; None where one is missing (None or NaN)."""
    if first is None or second is None or math.isnan(first) or math.isnan(second):
        return None
    if abs(first - second) <= eps:
        return "tie"
    return "first" if first > second else "second"


def accuracy(said: Sequence[Preference | None], truth: Sequence[Preference], ties: Ties = "wrong") -> Accuracy:
    """`said`: the judge's preference for each pair, None where it has none. `truth`: people's. Raises ValueError for
    different lengths and for a policy that there is not."""
    if ties not in TIES:
        raise ValueError(f"there is no policy {ties!r} for ties; there are {', '.join(TIES)}")
    asked = [(s, t) for s, t in zip(said, truth, strict=True) if ties == "label" or t != "tie"]
    answered = [(s, t) for s, t in asked if s is not None]
    tied = sum(s == "tie" for s, _ in answered)
    right: float = sum(s == t for s, t in answered)
    n = len(answered)
    if ties == "half":
        right += tied / 2
    elif ties == "drop":
        n -= tied
    return Accuracy(right, n, len(asked), len(asked) - len(answered), tied)


@dataclass(frozen=True)
class Orders:
    """A judge that was shown every pair in both orders. `forward`, `backward`: its accuracy in each. `both`: where its
    answers differ it counts as tying. `consistent`: the share of pairs with the same answer both times. `first_shown`:
    of the answers that decide, the share for the edit that was shown first; 1/2 is unbiased."""

    forward: Accuracy
    backward: Accuracy
    both: Accuracy
    consistent: Rate
    first_shown: Rate

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name).to_json() for name in self.__dataclass_fields__}


def both_orders(
    forward: Sequence[Preference | None], backward: Sequence[Preference | None], truth: Sequence[Preference],
    ties: Ties = "wrong",
) -> Orders:  # fmt: skip
    """`forward`: answers about (first, second); `backward`: about (second, first), as given, so that "first" is for the
    one that was shown first. A pair without both answers is missing from `both`, `consistent` and `first_shown`."""
    turned = [None if b is None else SWAPPED[b] for b in backward]
    pairs = list(zip(forward, turned, strict=True))
    known = [(f, b) for f, b in pairs if f is not None and b is not None]
    merged: list[Preference | None] = [
        None if f is None or b is None else f if f == b else "tie" for f, b in pairs
    ]  # fmt: skip
    shown = [f == "first" for f, _ in known if f != "tie"] + [b == "second" for _, b in known if b != "tie"]
    return Orders(
        accuracy(forward, truth, ties), accuracy(turned, truth, ties), accuracy(merged, truth, ties),
        Rate.of(f == b for f, b in known), Rate.of(shown),
    )  # fmt: skip


def tie_threshold(differences: Sequence[float | None], truth: Sequence[Preference]) -> float:
    """The `eps` with the best accuracy under "label" (arXiv 2305.14324): 0 or one of the |differences|, the smallest of
    equally good ones. `differences`: first score - second score. To be used on other pairs than it was found on."""
    known = [(d, t) for d, t in zip(differences, truth, strict=True) if d is not None and not math.isnan(d)]
    if not known:
        return 0.0
    size = np.abs([d for d, _ in known])
    order = np.argsort(size, kind="stable")
    right = np.array([("first" if d > 0 else "second" if d < 0 else "tie") == t for d, t in known])[order]
    tied = np.array([t == "tie" for _, t in known])[order]
    size = size[order]
    # With eps = size[k], the pairs up to k are ties and those after it are what their signs say.
    gained = np.concatenate([[0], np.cumsum(tied)])
    kept = right.sum() - np.concatenate([[0], np.cumsum(right)])
    last = np.append(size[1:] > size[:-1], True)  # of equal sizes all are ties or none
    options = [(int(gained[k + 1] + kept[k + 1]), -float(size[k])) for k in np.flatnonzero(last)]
    none = int((right & (size > 0)).sum() + (tied & (size == 0)).sum())
    return abs(max([(none, 0.0), *options])[1])


def halves(n: int, seed: int = 0) -> tuple[list[int], list[int]]:
    """The places 0 to n - 1, dealt out by chance."""
    places = list(range(n))
    random.Random(seed).shuffle(places)
    return places[::2], places[1::2]


def calibrated_labels(
    differences: Sequence[float | None], truth: Sequence[Preference], seed: int = 0
) -> tuple[list[Preference | None], tuple[float, float]]:
    """What differences say with thresholds that were found on the other half of the pairs, and the two thresholds."""
    said: list[Preference | None] = [None] * len(truth)
    parts, found = halves(len(truth), seed), []
    for half, other in (parts, parts[::-1]):
        eps = tie_threshold([differences[i] for i in other], [truth[i] for i in other])
        found.append(eps)
        for i in half:
            said[i] = label(differences[i], 0.0, eps)
    return said, (found[0], found[1])


def calibrated(
    differences: Sequence[float | None], truth: Sequence[Preference], seed: int = 0
) -> tuple[Accuracy, tuple[float, float]]:
    """Accuracy under "label" with `calibrated_labels`, and the two thresholds."""
    said, thresholds = calibrated_labels(differences, truth, seed)
    return accuracy(said, truth, "label"), thresholds
