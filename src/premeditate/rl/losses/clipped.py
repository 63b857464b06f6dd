"""The clipped surrogate objective that the policy gradients share.

    L = max(-A rho, -A clip(rho, 1-e, 1+e)),   rho = p(x) / p_old(x)

PPO (arXiv 1707.06347, eq. 7) with the sign of a loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from premeditate.rl.tensors import cast_up, same_shape


class Loss(NamedTuple):
    """`values` [N]: each row's loss, to be weighted and averaged by the caller. `metrics`: detached tensors, [N] where
    each row has a figure of its own, else []."""

    values: Tensor
    metrics: Mapping[str, Tensor]


def clipped(log_ratio: Tensor, advantages: Tensor, clip_range: float) -> Loss:
    """The surrogate of N rows from log(rho) [N], in which the gradient flows, and `advantages` [N].

    Metrics: `ratio` [N] and its population standard deviation `ratio_std` []; `clip_share` [N], 1 where clipping took
    the gradient; `approx_kl` [N], rho - 1 - log(rho), at least 0, whose mean over the old policy is its KL to the new.
    Raises ValueError for a clip range that is not positive, and for shapes that differ.
    """
    if not clip_range > 0:
        raise ValueError(f"a clip range of {clip_range:g} cannot be; give a positive one, for example 1e-4")
    same_shape(log_ratio=log_ratio, advantages=advantages)
    log_ratio, weight = cast_up(log_ratio, advantages.detach())
    ratio = log_ratio.exp()
    values = torch.maximum(-weight * ratio, -weight * ratio.clamp(1 - clip_range, 1 + clip_range))
    with torch.no_grad():
        cut = torch.where(weight > 0, ratio > 1 + clip_range, (ratio < 1 - clip_range) & (weight < 0))
        metrics = {
            "ratio": ratio.detach(),
            "ratio_std": ratio.std(correction=0),
            "clip_share": cut.to(ratio.dtype),
            "approx_kl": log_ratio.expm1() - log_ratio.detach(),
        }
    return Loss(values, metrics)
