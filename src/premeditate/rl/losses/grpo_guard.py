"""GRPO-Guard: a ratio that is centred at 1 and varies alike at all noise levels.

    log rho = (log p - log p_old) k + mean((mu - mu_old)^2) / (2k),     k = std of the step's noise
            = mean(noise (mu - mu_old))                                 for the noise that the sample was made with
    L       = max(-A rho, -A clip(rho, 1-e, 1+e)) / (-dt)

arXiv 2510.22319, RatioNorm and gradient reweighting. The plain log-ratio has the mean -mean((mu - mu_old)^2) / (2 k^2),
so that clipping from above seldom happens; this one has the mean 0. The log-probability of "cps" lacks the factor
1 / (2 k^2); there log rho = (log p - log p_old + mean((mu - mu_old)^2)) / (2k) is the same number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from premeditate.rl.losses.clipped import Loss, clipped
from premeditate.rl.tensors import cast_up, mean_dims, per_sample, same_shape


def grpo_guard(
    log_prob: Tensor,
    old_log_prob: Tensor,
    mean: Tensor,
    old_mean: Tensor,
    std: float | Tensor,
    advantages: Tensor,
    *,
    clip_range: float,
    dt: float | Tensor | None = None,
    dynamics: str = "flow-sde",
) -> Loss:
    """The loss of N rows; metrics as `clipped`.

    `log_prob`, `old_log_prob`, `advantages`: [N]. `mean`, `old_mean`: [N, ...] of the step now and when it was sampled.
    `std`: of its noise, a number or [N]; where it is 0 the ratio is 1. `dt`: sigma_next - sigma < 0, a number or [N];
    None: not reweighted. `dynamics`: which log-probability it is.
    Gradients flow to `log_prob` and `mean`. Raises ValueError for shapes that differ, a clip range that is not positive
    and steps that do not go down.
    """
    same_shape(log_prob=log_prob, old_log_prob=old_log_prob, advantages=advantages)
    same_shape(mean=mean, old_mean=old_mean)
    log_prob, old, mean, old_mean = cast_up(log_prob, old_log_prob.detach(), mean, old_mean.detach())
    k = per_sample(std, log_prob, "std").detach()
    safe = torch.where(k > 0, k, torch.ones_like(k))
    moved = mean_dims((mean - old_mean) ** 2) / (2 * safe)
    change = log_prob - old
    log_ratio = moved + (change / (2 * safe) if dynamics == "cps" else change * safe)
    values, metrics = clipped(torch.where(k > 0, log_ratio, torch.zeros_like(log_ratio)), advantages, clip_range)
    if dt is None:
        return Loss(values, metrics)
    length = -per_sample(dt, log_prob, "dt")
    if not bool((length > 0).all()):
        raise ValueError("a dt is not negative; give sigma_next - sigma of each row's step")
    return Loss(values / length, metrics)
