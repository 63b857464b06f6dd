"""What a judge's own judgements are worth, as rewards of the training core: its score, and whether it orders a pair
as people do. Both stand in `task.meta`, where the policy puts them: no picture is looked at again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from premeditate.rewards.base import Sample
from premeditate.trace import Verdict

JUDGED = "judged"


class Stated:
    """`score` in [0, 1]: what one trace says of its edit. A trace that cannot be read has none."""

    name = "rrm"
    dimensions = ("score",)

    async def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        return [_verdict(self.name, sample, lambda scores: {"score": scores[0]}) for sample in samples]


class Ordered:
    """Of a pair, judged greedily once each: `accuracy` 1 where the preferred edit gets the higher score, else 0;
    `ties_half` the same with 1/2 for equal scores; `margin`, the difference, in [-1, 1]. None where either judgement
    cannot be read."""

    name = "pairs"
    dimensions = ("accuracy", "ties_half", "margin")

    async def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        return [_verdict(self.name, sample, _ordered) for sample in samples]


def _ordered(scores: Sequence[float]) -> dict[str, float]:
    winner, loser = scores
    return {"accuracy": float(winner > loser), "ties_half": (winner > loser) + 0.5 * (winner == loser),
            "margin": winner - loser}  # fmt: skip


def _verdict(name: str, sample: Sample, scores: Callable[[Sequence[float]], dict[str, float]]) -> Verdict:
    """From the sample's judgements, each {"status", "score", "reason"}."""
    parts: Sequence[Mapping[str, Any]] = sample.task.meta[JUDGED]
    bad = next((part for part in parts if part["status"] != "scored"), None)
    if bad is not None:
        return Verdict(status=bad["status"], verifier=name, reason=bad["reason"])
    return Verdict(status="scored", verifier=name, scores=scores([part["score"] for part in parts]))
