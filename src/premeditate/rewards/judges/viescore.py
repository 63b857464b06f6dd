"""VIEScore for edits (arXiv 2312.14867), as GEdit-Bench uses it: two questions, greedy, scores from 0 to 10.

The vague interval score that a checklist is to be compared with. The formulas are in `interval`.
"""

from __future__ import annotations

from collections.abc import Sequence

from premeditate.reasoners.base import Reasoner
from premeditate.rewards.judges.interval import IntervalJudge
from premeditate.rewards.judges.votes import Repeats


class VIEScore(IntervalJudge):
    """overall = sqrt(SC PQ) / 10 in [0, 1], or the parts that `dimensions` names. `k`: passes; above 1 they are sampled
    at `temperature` (0 means 0.7 then). `top`: of the scale that is asked for."""

    def __init__(
        self, reasoner: Reasoner, *, dimensions: Sequence[str] = ("overall",), k: int = 1, temperature: float = 0.0,
        seed: int = 42, least: int | None = None, top: int = 10, name: str = "viescore",
    ) -> None:  # fmt: skip
        """Raises `ModelError` or ValueError for settings that cannot be."""
        repeats = Repeats.sampled(k, temperature, seed, least)
        super().__init__(reasoner, name=name, dimensions=dimensions, top=top, repeats=repeats)
