"""One denoising step of a flow model, to sample with and to replay.

Noise level sigma falls from 1 (noise) to 0 (data): x = (1-sigma) x0 + sigma x1, the velocity v predicts x1 - x0, and
dt = sigma_next - sigma < 0. The model's guess of the noise is x1 = x + (1-sigma) v. Every dynamics is the ODE's step,
a pull along that guess, and fresh noise of standard deviation `std`:

    mean = x + v dt + c x1,        x_next = mean + std * noise

    ode        c = 0,                         std = 0
    flow-sde   c = s^2/(2 sigma) dt,          std = s sqrt(-dt),   s = a sqrt(sigma / (1-sigma))
    dance-sde  c = s^2/(2 sigma) dt,          std = s sqrt(-dt),   s = a
    cps        c = sqrt(sigma_next^2 - std^2) - sigma_next,        std = sigma_next sin(a pi/2)

a is the noise level. flow-sde: Flow-GRPO (arXiv 2505.05470); at sigma = 1 its denominator takes sigma_next for
sigma. dance-sde: DanceGRPO (arXiv 2505.07818), whose score term (x - (1-sigma) x0)/sigma^2 is x1/sigma. cps:
coefficient-preserving sampling (arXiv 2509.05952), (1-sigma_next) x0 + sqrt(sigma_next^2 - std^2) x1 + std noise, in
which data and noise keep the weights that the level sigma_next has. With a = 0 all four are the same step, to the bit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from premeditate.rl.tensors import cast_up, mean_dims, per_sample, same_shape, spread, unknown

DYNAMICS = ("flow-sde", "dance-sde", "cps", "ode")


class StepResult(NamedTuple):
    """`x_next`, `mean` [B, ...]; `log_prob` [B], averaged over the latent dimensions; `std` [B] of the step's noise."""

    x_next: Tensor
    log_prob: Tensor
    mean: Tensor
    std: Tensor


def step(
    x: Tensor,
    velocity: Tensor,
    sigma: float | Tensor,
    sigma_next: float | Tensor,
    *,
    dynamics: str,
    noise_level: float,
    noise: Tensor | None = None,
    x_next: Tensor | None = None,
) -> StepResult:
    """From `x` at noise level `sigma` to `sigma_next`; given `x_next`, how probable that step was.

    `x`, `velocity`, `noise`, `x_next`: [B, ...]. `sigma`, `sigma_next`: numbers in [0, 1], or tensors [B], so that
    steps of different levels fit into one batch. `dynamics`: one of DYNAMICS. `noise_level`: a of the formulas, at
    least 0, for "cps" at most 1. `noise`: standard normal; needed to sample where std > 0, since a hidden draw could
    not be repeated. `x_next`: the step that was taken; the result holds it as it is.

    Calculated and returned in float32, or float64 where an input has it. Gradients flow to `velocity` and `x`.
    `log_prob` is the mean over latent dimensions of log N(x_next; mean, std^2), for "cps" -(x_next - mean)^2 as
    published. A step without noise (std = 0: "ode", noise level 0, the last step of "cps") goes to its mean and has
    log_prob 0: it adds nothing to the log-ratio of a trajectory.

    Raises ValueError for unknown dynamics, shapes that differ, levels that do not fall or lie outside [0, 1], a noise
    level out of range, `noise` together with `x_next`, and for neither where noise is needed.
    """
    if noise is not None and x_next is not None:
        raise ValueError("both noise and x_next were given; give noise to sample a step, or x_next to replay one")
    given = {"x": x, "velocity": velocity, "noise": noise, "x_next": x_next}
    tensors = {name: tensor for name, tensor in given.items() if tensor is not None}
    same_shape(**tensors)
    tensors = dict(zip(tensors, cast_up(*tensors.values()), strict=True))
    x, velocity = tensors["x"], tensors["velocity"]
    level, level_next = per_sample(sigma, x, "sigma"), per_sample(sigma_next, x, "sigma_next")
    pull, std = coefficients(level, level_next, dynamics=dynamics, noise_level=noise_level)

    mean = x + velocity * spread(level_next - level, x)
    if not _deterministic(dynamics, noise_level):
        mean = mean + (x + velocity * spread(1 - level, x)) * spread(pull, x)
    if "x_next" in tensors:
        after = tensors["x_next"]
    elif "noise" in tensors:
        after = mean + tensors["noise"] * spread(std, x)
    elif _deterministic(dynamics, noise_level) or not bool((std > 0).any()):
        after = mean
    else:
        raise ValueError(
            f"a {dynamics} step with noise level {noise_level:g} needs noise; give noise=torch.randn(x.shape, ...) "
            "to sample, x_next to replay, or noise_level=0"
        )
    return StepResult(after, _log_prob(after, mean, std, dynamics), mean, std)


def coefficients(sigma: Tensor, sigma_next: Tensor, *, dynamics: str, noise_level: float) -> tuple[Tensor, Tensor]:
    """c and std of the formulas above, [B] each, for levels [B]. Raises ValueError as `step` does."""
    if dynamics not in DYNAMICS:
        raise unknown("dynamics", dynamics, DYNAMICS)
    a = float(noise_level)
    if not 0 <= a < math.inf or (dynamics == "cps" and a > 1):
        limit = "between 0 and 1" if dynamics == "cps" else "of at least 0"
        raise ValueError(f"a noise level of {a:g} cannot be; {dynamics} takes one {limit}, for example 0.7")
    if not bool(((sigma_next < sigma) & (sigma_next >= 0) & (sigma <= 1)).all()):
        raise ValueError(
            f"a step from sigma {_shown(sigma)} to {_shown(sigma_next)} cannot be; "
            "sigma falls from 1 (noise) to 0 (data): give 0 <= sigma_next < sigma <= 1"
        )
    if _deterministic(dynamics, a):
        return torch.zeros_like(sigma), torch.zeros_like(sigma)
    if dynamics == "cps":
        # sqrt(1 - sin^2) - 1 without the cancellation
        return sigma_next * (-2 * math.sin(a * math.pi / 4) ** 2), sigma_next * math.sin(a * math.pi / 2)
    dt = sigma_next - sigma
    if dynamics == "flow-sde":
        # s^2/sigma, not s: nothing is divided by a small sigma
        squared = a * a / (1 - torch.where(sigma == 1, sigma_next, sigma))
        return squared / 2 * dt, (squared * sigma * -dt).sqrt()
    return a * a / (2 * sigma) * dt, a * (-dt).sqrt()


def _deterministic(dynamics: str, noise_level: float) -> bool:
    return dynamics == "ode" or noise_level == 0


def _log_prob(after: Tensor, mean: Tensor, std: Tensor, dynamics: str) -> Tensor:
    # Of x_next - mean, never of the noise that made it: sampling and replaying then round alike.
    squared = mean_dims((after - mean) ** 2)
    if dynamics == "cps":
        value = -squared
    else:
        safe = torch.where(std > 0, std, torch.ones_like(std))
        value = -squared / (2 * safe**2) - safe.log() - math.log(2 * math.pi) / 2
    return torch.where(std > 0, value, torch.zeros_like(value))


def _shown(sigma: Tensor) -> str:
    values = sorted({round(float(v), 6) for v in sigma})
    return ", ".join(f"{v:g}" for v in values[:4]) + (", ..." if len(values) > 4 else "")
