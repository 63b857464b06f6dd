"""Sampling: the ODE outside the window, noise and a record inside it.

Flow-GRPO-Fast and MixGRPO (arXiv 2507.21802). Members of a group that share their first noise are one and the same up
to the window, so that part is run once for the group and then copied: k steps before the window, of T, with groups of K
save k (K-1) of T K model evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from premeditate.rl.flow.solver import Solver
from premeditate.rl.flow.step import DYNAMICS, StepResult, step
from premeditate.rl.tensors import cast_up, same_shape, unknown


@dataclass(frozen=True)
class Trajectory:
    """B samples, of which S steps were recorded.

    `x` [B, ...]: the result. `states`, `nexts`, `means` [B, S, ...]: a step's start, end and mean. `log_probs` [B, S].
    `sigmas`, `sigmas_next`, `stds` [S]. `forwards`: model evaluations, counted in samples.
    """

    x: Tensor
    states: Tensor
    nexts: Tensor
    means: Tensor
    log_probs: Tensor
    sigmas: Tensor
    sigmas_next: Tensor
    stds: Tensor
    forwards: int


@torch.no_grad()
def sample(
    velocity: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    sigmas: Sequence[float] | Tensor,
    *,
    window: Sequence[int] = (),
    dynamics: str = "ode",
    noise_level: float = 0.0,
    noise: Callable[[int], Tensor] | None = None,
    solver: str = "euler",
    group: int = 1,
) -> Trajectory:
    """From noise `x` [B, ...] along the levels `sigmas` [T+1], which fall within [0, 1].

    `velocity(x [b, ...], sigma [b]) -> v [b, ...]` is the model. Steps in `window` (indices in 0..T-1) are `step`'s
    with `dynamics` and `noise_level`, and are recorded; `noise(index) -> [B, ...]` gives a step's noise and is asked
    only for those that need it. The other steps are the ODE's by `solver`, whose memory starts anew after the window.

    `group` K > 1: members of a group are neighbours in the batch and have the same `x`; up to the window the model gets
    only the first of each, b = B/K, and the whole batch, b = B, from there on.

    Calculated in float32, or float64 where `x` has it; no gradients. Raises ValueError for levels that do not fall, a
    window outside them, unknown names, and a group whose members differ.
    """
    (x,) = cast_up(x)
    levels = _levels(sigmas)
    chosen = _window(window, len(levels) - 1)
    if dynamics not in DYNAMICS:
        raise unknown("dynamics", dynamics, DYNAMICS)
    stochastic = dynamics != "ode" and noise_level > 0
    if chosen and stochastic and noise is None:
        raise ValueError(f"{dynamics} steps need noise; give noise=a function of the step's index, or dynamics='ode'")
    batch, shared = len(x), group > 1
    if shared:
        x = _firsts(x, group)
    multistep, forwards = Solver(solver), 0
    starts: list[Tensor] = []
    taken: list[StepResult] = []
    for index, (sigma, sigma_next) in enumerate(pairwise(levels)):
        recorded = index in chosen
        if shared and recorded:
            x, shared = x.repeat_interleave(group, 0), False
        v = velocity(x, x.new_full((len(x),), sigma))
        same_shape(x=x, velocity=v)
        forwards += len(x)
        if not recorded:
            x = multistep.step(x, v.to(x.dtype), sigma, sigma_next)
            continue
        fresh = noise(index) if stochastic and noise is not None else None
        starts.append(x)
        taken.append(step(x, v, sigma, sigma_next, dynamics=dynamics, noise_level=noise_level, noise=fresh))
        x = taken[-1].x_next.to(x.dtype)
        multistep.restart()
    if shared:
        x = x.repeat_interleave(group, 0)

    def stacked(tensors: list[Tensor]) -> Tensor:
        return torch.stack(tensors, 1) if tensors else x.new_zeros(batch, 0, *x.shape[1:])

    return Trajectory(
        x=x,
        states=stacked(starts),
        nexts=stacked([t.x_next for t in taken]),
        means=stacked([t.mean for t in taken]),
        log_probs=torch.stack([t.log_prob for t in taken], 1) if taken else x.new_zeros(batch, 0),
        sigmas=x.new_tensor([levels[i] for i in chosen]),
        sigmas_next=x.new_tensor([levels[i + 1] for i in chosen]),
        stds=torch.stack([t.std[0] for t in taken]) if taken else x.new_zeros(0),
        forwards=forwards,
    )


def _levels(sigmas: Sequence[float] | Tensor) -> list[float]:
    levels = [float(s) for s in sigmas]
    falling = all(a > b for a, b in pairwise(levels))
    if len(levels) < 2 or not falling or not (levels[-1] >= 0 and levels[0] <= 1):
        raise ValueError(f"the levels {levels[:8]} cannot be; give T+1 that fall from 1 (noise) to 0 (data)")
    return levels


def _window(window: Sequence[int], steps: int) -> list[int]:
    chosen = sorted(set(window))
    if chosen and not 0 <= chosen[0] <= chosen[-1] < steps:
        raise ValueError(
            f"the window {tuple(window)} does not lie in the {steps} steps; their indices are 0-{steps - 1}"
        )
    return chosen


def _firsts(x: Tensor, group: int) -> Tensor:
    """One member of each group [B/K, ...]. Raises ValueError where the others differ from it."""
    if len(x) % group:
        raise ValueError(f"{len(x)} samples are no whole groups of {group}; give a multiple of {group}")
    firsts = x[::group]
    if not torch.equal(firsts.repeat_interleave(group, 0), x):
        raise ValueError("a group's members differ in their first noise; repeat one of it for each group, or group=1")
    return firsts
