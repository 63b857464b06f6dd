"""Each reward normalised for itself: A_i = sum_k w_k (r_i^k - mean(r^k)) / std(r^k).

GDPO (arXiv 2601.05242): rewards of different scales and spreads count alike. The paper then normalises over the batch;
a group knows no batch, so that step is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from premeditate.rl.grouping.rewards import Group


def gdpo(rewards: Any, weights: Sequence[float] | Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(advantages [G], mask [G]) of one group's `rewards` [G, D] or [G], NaN where one is missing; `weights` [D], None:
    all 1.

    Samples without all their rewards are masked (advantage 0, mask False) and count in no mean. A dimension that is
    equal for all up to rounding adds 0. Everything is masked where fewer than two samples are left, where no dimension
    has a spread, and where the dimensions cancel each other for every sample. float64 stays, all else gives float32.
    Raises ValueError for infinite rewards, other shapes, and weights that are not D finite numbers.
    """
    group = Group(rewards)
    used = group.weights(weights)
    total = torch.zeros(len(group.values), dtype=torch.float64)
    size = torch.zeros_like(total)
    for values, weight in zip(group.values.T, used, strict=True):
        scores = group.z_scores(values, values)
        if scores is not None:
            total, size = total + weight * scores, size + (weight * scores).abs()
    informative = group.z_scores(total, size) is not None
    return group.result(total if informative else None)
