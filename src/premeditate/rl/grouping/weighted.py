"""Fixed weights: A_i = (s_i - mean(s)) / std(s), s_i = sum_k w_k r_i^k.

The usual fusion of several rewards: what counts depends on the rewards' scales as much as on the weights. It is what
ThinkRL-Edit (arXiv 2601.03467) calls biased, and compares its chains with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from premeditate.rl.grouping.rewards import Group


def weighted(rewards: Any, weights: Sequence[float] | Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(advantages [G], mask [G]) as `grpo`, of sums with `weights` [D]; None: all 1.

    Raises ValueError for infinite rewards, other shapes, and weights that are not D finite numbers.
    """
    group = Group(rewards)
    terms = group.values * group.weights(weights)
    return group.result(group.z_scores(terms.sum(1), terms.abs().sum(1)))
