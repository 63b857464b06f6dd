"""Group-relative advantages: A_i = (s_i - mean(s)) / std(s), s_i = sum_k r_i^k.

GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2), with the population standard deviation and without a constant in
the denominator: a group without spread is masked instead.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from premeditate.rl.grouping.weighted import weighted


def grpo(rewards: Any) -> tuple[Tensor, Tensor]:
    """(advantages [G], mask [G]) of one group's `rewards` [G, D] or [G], NaN where one is missing.

    Samples without all their rewards are masked (advantage 0, mask False) and count in no mean. Everything is masked
    where fewer than two are left, or where their sums are equal up to rounding. float64 stays, all else gives float32.
    Raises ValueError for infinite rewards and other shapes.
    """
    return weighted(rewards)
