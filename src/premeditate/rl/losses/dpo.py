"""Online DPO for flows: the better of two samples should become relatively easier to denoise.

    L = -log sigmoid(-b/2 ((e_w - e_w_ref) - (e_l - e_l_ref))),   e = |v - target|^2 (mean over the latent dimensions)

Diffusion-DPO (arXiv 2311.12908, eq. 14) on velocities, with a weight that does not depend on sigma, which Flow-DPO
(arXiv 2501.13918) found the better one. Winner and loser have the same noise and level.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from premeditate.rl.losses.clipped import Loss
from premeditate.rl.tensors import cast_up, same_shape


def dpo(
    winner_error: Tensor,
    loser_error: Tensor,
    ref_winner_error: Tensor,
    ref_loser_error: Tensor,
    *,
    beta: float,
) -> Loss:
    """The loss of N pairs from their velocity errors [N] under the trained and the reference model.

    `beta`: b, positive; since errors are means, values of 100-5000 are usual. Gradients flow to the trained model's
    errors. Metrics [N]: `margin`, the argument of the sigmoid; `accuracy`, 1 where it is positive.
    Raises ValueError for shapes that differ and for a `beta` that is not positive.
    """
    if not beta > 0:
        raise ValueError(f"beta={beta:g} cannot be; give a positive one, for example 1000")
    same_shape(winner_error=winner_error, loser_error=loser_error, ref_winner_error=ref_winner_error,
               ref_loser_error=ref_loser_error)  # fmt: skip
    winner, loser, ref_winner, ref_loser = cast_up(
        winner_error, loser_error, ref_winner_error.detach(), ref_loser_error.detach()
    )
    margin = -beta / 2 * ((winner - ref_winner) - (loser - ref_loser))
    metrics = {"margin": margin.detach(), "accuracy": (margin.detach() > 0).to(margin.dtype)}
    return Loss(-logsigmoid(margin), metrics)


def pairs(rewards: Any) -> Tensor:
    """The best and the worst sample of each group: [P, 2] indices (winner, loser) into the n K samples, group by group.

    `rewards`: [n, K], or [K] for one group; NaN where one is missing: such samples are in no pair. A group with fewer
    than two rewards, or with equal ones only, gives no pair. Of equally good (or bad) samples the first is taken.
    Raises ValueError for infinite rewards and other shapes.
    """
    given = torch.as_tensor(rewards).detach()
    table = (given[None] if given.ndim == 1 else given).to(torch.promote_types(given.dtype, torch.float32))
    if table.ndim != 2 or bool(table.isinf().any()):
        raise ValueError(f"rewards of shape {list(given.shape)} do not fit; give [n, K] finite ones, NaN where missing")
    missing = table.isnan()
    high = table.masked_fill(missing, -torch.inf)
    low = table.masked_fill(missing, torch.inf)
    offset = torch.arange(len(table), device=table.device) * table.shape[1]
    found = torch.stack([high.argmax(1) + offset, low.argmin(1) + offset], 1)
    return found[high.amax(1) > low.amin(1)]
