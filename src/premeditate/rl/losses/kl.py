"""How far a policy is from a reference, per denoising step, averaged over the latent dimensions.

    gaussian_kl    mean((mu - mu_ref)^2) / (2 std^2)          KL of the step's two Gaussians, exact: std = s sqrt(-dt)
    published_kl   mean((mu - mu_ref)^2) / (2 s^2)            of Flow-GRPO's code: (-dt) times the exact one
    velocity_kl    mean((v - v_ref)^2)                        the same up to a factor that depends on the step only

Flow-GRPO (arXiv 2505.05470). For "flow-sde" and "dance-sde" the exact KL is
(-dt)/2 (1/s + s (1-sigma)/(2 sigma))^2 mean((v - v_ref)^2). Summed over the steps and dimensions of trajectories, and
averaged over those that the policy samples, it is the KL of the two policies' trajectories.
"""

from __future__ import annotations

import torch
from torch import Tensor

from premeditate.rl.tensors import cast_up, mean_dims, per_sample, same_shape


def gaussian_kl(mean: Tensor, ref_mean: Tensor, std: float | Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(ref_mean, std^2)) per dimension, [N], from means [N, ...] and `std`, a number or [N].

    0 where std is 0: such a step has no density, and adds nothing. Gradients flow to both means. Raises ValueError for
    shapes that differ.
    """
    same_shape(mean=mean, ref_mean=ref_mean)
    mean, ref_mean = cast_up(mean, ref_mean)
    deviation = per_sample(std, mean, "std")
    safe = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    value = mean_dims((mean - ref_mean) ** 2) / (2 * safe**2)
    return torch.where(deviation > 0, value, torch.zeros_like(value))


def published_kl(mean: Tensor, ref_mean: Tensor, std: float | Tensor, dt: float | Tensor) -> Tensor:
    """`gaussian_kl` times -dt, [N]; `dt` = sigma_next - sigma < 0, a number or [N]. Raises ValueError as it does, and
    for steps that do not go down."""
    exact = gaussian_kl(mean, ref_mean, std)
    length = -per_sample(dt, exact, "dt")
    if not bool((length > 0).all()):
        raise ValueError("a dt is not negative; give sigma_next - sigma of each row's step")
    return exact * length


def velocity_kl(velocity: Tensor, ref_velocity: Tensor) -> Tensor:
    """Mean squared difference [N] of velocities [N, ...]. Raises ValueError for shapes that differ."""
    same_shape(velocity=velocity, ref_velocity=ref_velocity)
    velocity, ref_velocity = cast_up(velocity, ref_velocity)
    return mean_dims((velocity - ref_velocity) ** 2)
