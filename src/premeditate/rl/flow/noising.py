"""The forward process: clean samples made noisy, and the velocity that a perfect model would answer."""

from __future__ import annotations

from torch import Tensor

from premeditate.rl.tensors import cast_up, per_sample, same_shape, spread


def noised(x0: Tensor, noise: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
    """(x_sigma, target) = ((1-sigma) x0 + sigma noise, noise - x0), the straight path of rectified flow.

    `x0`, `noise`: [B, ...], the noise standard normal. `sigma`: a number in [0, 1], or [B]. In float32, or float64
    where an input has it. Raises ValueError for shapes that differ and levels outside [0, 1].
    """
    same_shape(x0=x0, noise=noise)
    x0, noise = cast_up(x0, noise)
    level = per_sample(sigma, x0, "sigma")
    if not bool(((level >= 0) & (level <= 1)).all()):
        raise ValueError("sigma lies outside 0-1; 0 is data, 1 is noise")
    level = spread(level, x0)
    return (1 - level) * x0 + level * noise, noise - x0
