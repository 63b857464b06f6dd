"""Flow-GRPO: the policy gradient of a denoising step.

    L = max(-A rho, -A clip(rho, 1-e, 1+e)),   rho = exp(log p(x'|x) - log p_old(x'|x))

arXiv 2505.05470. log p is the mean over the latent's d dimensions, as in its code, so that rho is the d-th
root of the true ratio: hence clip ranges of 1e-4 and below.
"""

from __future__ import annotations

from torch import Tensor

from premeditate.rl.losses.clipped import Loss, clipped
from premeditate.rl.tensors import cast_up, same_shape


def flow_grpo(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, *, clip_range: float) -> Loss:
    """The loss of N rows (samples x steps), all arguments [N]; metrics as `clipped`.

    Gradients flow to `log_prob` alone. With log_prob = old_log_prob the value is -A and its gradient -A grad log p.
    Raises ValueError for shapes that differ and a clip range that is not positive.
    """
    same_shape(log_prob=log_prob, old_log_prob=old_log_prob, advantages=advantages)
    log_prob, old = cast_up(log_prob, old_log_prob.detach())
    return clipped(log_prob - old, advantages, clip_range)
