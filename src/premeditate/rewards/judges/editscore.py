"""EditScore (arXiv 2509.23909): the questions of VIEScore on a scale of 25, averaged over k sampled passes.

What the published code does and this does not: it fills an answer that it cannot read with 12.5 on a scale of 10; its
reduction "average_first" takes the first score instead of SC in one of two code paths; and its sampler also cuts the
distribution (top_p 0.9, top_k 20). The published models are adapters of Qwen-VL models: serve one behind the chat API,
or merge it into a folder, and give that as the reasoner.
"""

from __future__ import annotations

from collections.abc import Sequence

from premeditate.reasoners.base import Reasoner
from premeditate.rewards.judges.interval import IntervalJudge, Reduction
from premeditate.rewards.judges.votes import Repeats

SCORE_RANGE, TEMPERATURE, SEED = 25, 0.7, 42


class EditScore(IntervalJudge):
    """overall in [0, 1]: the published reward O / 10, or the parts that `dimensions` names. `k`: passes with the seeds
    `seed` + i. `least`: readable passes without which there is no score, by default more than half."""

    def __init__(
        self, reasoner: Reasoner, *, k: int = 4, dimensions: Sequence[str] = ("overall",),
        reduction: Reduction = "average_last", score_range: int = SCORE_RANGE, temperature: float = TEMPERATURE,
        seed: int = SEED, least: int | None = None, name: str = "editscore",
    ) -> None:  # fmt: skip
        """Raises `ModelError` or ValueError for settings that cannot be."""
        super().__init__(reasoner, name=name, dimensions=dimensions, top=score_range, reduction=reduction,
                         repeats=Repeats(k, temperature, seed, least))  # fmt: skip
