"""DiffusionNFT: towards good samples and away from bad ones, without probabilities.

    r  = 1/2 + 1/2 clip(A/Z, -1, 1)                          how good the sample is
    v+ = (1-b) v_old + b v,    v- = (1+b) v_old - b v        the trained model, and its mirror image
    L  = r |v+ - target|^2 + (1-r) |v- - target|^2           means over the latent dimensions, target = noise - x0

arXiv 2509.16117; x = (1-sigma) x0 + sigma noise is a clean sample made noisy. At v = v_old the gradient is
b (2r-1) times that of |v - target|^2: the usual training loss, with the advantage as its sign and weight.

Adaptive form, of the authors' code: the errors are those of the clean guesses x - sigma v, each divided by its own mean
absolute error, so that all noise levels count alike. (The code multiplies its loss by Z/b too; the KL weights of its
recipes are to be divided by that.)
"""

from __future__ import annotations

from torch import Tensor

from premeditate.rl.losses.clipped import Loss
from premeditate.rl.tensors import cast_up, mean_dims, per_sample, same_shape, spread

SMALLEST = 1e-5
"""Mean absolute errors below this are not told apart, as in the authors' code."""


def nft(
    velocity: Tensor,
    old_velocity: Tensor,
    target: Tensor,
    advantages: Tensor,
    *,
    beta: float,
    clip: float = 5.0,
    adaptive: tuple[Tensor, float | Tensor] | None = None,
) -> Loss:
    """The loss of N rows.

    `velocity`, `old_velocity` (of the policy that sampled), `target`: [N, ...]. `advantages`: [N], normalised. `beta`:
    b, positive. `clip`: Z; an advantage of Z or more is fully good, one of -Z or less fully bad. `adaptive`: None, or
    (x [N, ...], sigma, a number or [N]) for the adaptive form.
    Gradients flow to `velocity` alone. Metrics [N]: `goodness`, r; `old_distance`, mean((v - v_old)^2).
    Raises ValueError for shapes that differ and for a `beta` or `clip` that is not positive.
    """
    if not (beta > 0 and clip > 0):
        raise ValueError(f"beta={beta:g}, clip={clip:g} cannot be; give positive ones, for example beta=1, clip=5")
    same_shape(velocity=velocity, old_velocity=old_velocity, target=target)
    velocity, old, target = cast_up(velocity, old_velocity.detach(), target.detach())
    goodness = (per_sample(advantages.detach(), velocity, "advantages") / clip).clamp(-1, 1) / 2 + 0.5
    near, far = (1 - beta) * old + beta * velocity, (1 + beta) * old - beta * velocity
    if adaptive is None:
        good, bad = mean_dims((near - target) ** 2), mean_dims((far - target) ** 2)
    else:
        same_shape(velocity=velocity, x=adaptive[0])
        good, bad = (_adaptive(v, target, *adaptive) for v in (near, far))
    metrics = {"goodness": goodness, "old_distance": mean_dims((velocity.detach() - old) ** 2)}
    return Loss(goodness * good + (1 - goodness) * bad, metrics)


def _adaptive(velocity: Tensor, target: Tensor, x: Tensor, sigma: float | Tensor) -> Tensor:
    level = spread(per_sample(sigma, velocity, "sigma").detach(), velocity)
    guess, clean = x.detach() - level * velocity, x.detach() - level * target
    return mean_dims((guess - clean) ** 2) / mean_dims((guess - clean).detach().abs()).clamp(min=SMALLEST)
