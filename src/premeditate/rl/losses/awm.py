"""Advantage weighted matching: the clipped surrogate, with the flow-matching error as the log-probability.

    l = |v - target|^2 (mean over the latent dimensions),   target = noise - x0
    log p = -w l                                            power p = 1
    log p = -w ((l + e)^p - e^p) / p,   e = 1e-10           generalised Huber: large errors count less
    L = max(-A rho, -A clip(rho, 1-c, 1+c)),                rho = exp(log p - log p_old), same noise for both

arXiv 2509.25050, and its code for the generalised Huber, which takes w = sigma and p = 1/4.
"""

from __future__ import annotations

from torch import Tensor

from premeditate.rl.losses.clipped import Loss, clipped
from premeditate.rl.losses.kl import velocity_kl
from premeditate.rl.tensors import per_sample

SMALL = 1e-10


def awm(
    velocity: Tensor,
    old_velocity: Tensor,
    target: Tensor,
    advantages: Tensor,
    *,
    clip_range: float,
    power: float = 1.0,
    weight: float | Tensor = 1.0,
) -> Loss:
    """The loss of N rows; metrics as `clipped`, and `error` [N], l.

    `velocity`, `old_velocity`, `target`: [N, ...]. `advantages`: [N]. `power`: p, in (0, 1]. `weight`: w, a number or
    [N]. Gradients flow to `velocity` alone. Raises ValueError for shapes that differ, a clip range that is not positive
    and a power outside (0, 1].
    """
    if not 0 < power <= 1:
        raise ValueError(f"a power of {power:g} cannot be; give one in (0, 1]: 1 for the plain error, 0.25 for ghuber")
    error, before = velocity_kl(velocity, target.detach()), velocity_kl(old_velocity.detach(), target.detach())
    weighting = per_sample(weight, error, "weight").detach()
    loss = clipped(weighting * (_shaped(before, power) - _shaped(error, power)), advantages, clip_range)
    return Loss(loss.values, {**loss.metrics, "error": error.detach()})


def _shaped(error: Tensor, power: float) -> Tensor:
    return error if power == 1 else ((error + SMALL) ** power - SMALL**power) / power
