"""Solvers of the flow's ODE dx/dsigma = v(x, sigma), one model evaluation per step.

    euler   x' = x + v dt
    ab2     x' = x + ((1 + q) v - q v_prev) dt,   q = dt / (2 dt_prev)    Adams-Bashforth, order 2, any step sizes
    dpm2m   x' = (sigma'/sigma) x + (1 - sigma'/sigma) ((1 + q) x0 - q x0_prev),   q = h / (2 h_prev)

dpm2m is DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2) for x = (1-sigma) x0 + sigma x1: x0 = x - sigma v is the data
prediction and h the growth of log((1-sigma)/sigma) in a step. Its first-order form (q = 0) is Euler's step. q is 0
without a previous step, after sigma = 1, where h_prev is infinite, and on the step to sigma = 0, which goes to x0.
Its order is 2 in that logarithm; over levels that are even in sigma, a little less, for its ends are infinite.
"""

from __future__ import annotations

import math

from torch import Tensor

from premeditate.rl.tensors import unknown

SOLVERS = ("euler", "ab2", "dpm2m")


class Solver:
    """Steps of one trajectory. It remembers the step before; `restart` forgets it (after a stochastic step)."""

    def __init__(self, kind: str) -> None:
        if kind not in SOLVERS:
            raise unknown("solver", kind, SOLVERS)
        self.kind = kind
        self._past: tuple[Tensor, float, float] | None = None  # what was extrapolated, and the step's levels

    def restart(self) -> None:
        self._past = None

    def step(self, x: Tensor, velocity: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """x [B, ...] and v [B, ...] at `sigma` -> x at `sigma_next`; 0 <= sigma_next < sigma <= 1."""
        past, dt = self._past, sigma_next - sigma
        if self.kind == "dpm2m":
            data = x - velocity * sigma
            self._past = (data, sigma, sigma_next)
            if past is not None and past[1] < 1 and sigma_next > 0:
                q = (_log_snr(sigma_next) - _log_snr(sigma)) / (2 * (_log_snr(sigma) - _log_snr(past[1])))
                guess = data + (data - past[0]) * q
                return x * (sigma_next / sigma) + guess * (1 - sigma_next / sigma)
        elif self.kind == "ab2":
            self._past = (velocity, sigma, sigma_next)
            if past is not None:
                q = dt / (2 * (past[2] - past[1]))
                return x + (velocity + (velocity - past[0]) * q) * dt
        return x + velocity * dt


def _log_snr(sigma: float) -> float:
    return math.log((1 - sigma) / sigma)
