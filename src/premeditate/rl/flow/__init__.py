"""Flow models as a policy: stochastic denoising steps with a probability, windows of them, and the ODE around."""

from premeditate.rl.flow.noising import noised
from premeditate.rl.flow.solver import SOLVERS, Solver
from premeditate.rl.flow.step import DYNAMICS, StepResult, coefficients, step
from premeditate.rl.flow.trajectory import Trajectory, sample
from premeditate.rl.flow.window import WINDOWS, compress, window

__all__ = [
    "DYNAMICS",
    "SOLVERS",
    "WINDOWS",
    "Solver",
    "StepResult",
    "Trajectory",
    "coefficients",
    "compress",
    "noised",
    "sample",
    "step",
    "window",
]
