"""What all groupings share: reading a group's rewards, and the z-score.

G samples of one task, D reward dimensions. Calculated in float64, so that rounding does not depend on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ROUNDING = 8
"""A spread below this many units of the input type's relative precision (1e-6 in float32) is rounding."""

LARGEST = 1e100
"""Beyond it sums and weights could overflow."""


class Group:
    """`rewards` [G, D] (or [G]: one dimension), NaN where a reward is missing; anything that torch reads as a tensor.

    `present` [G]: the samples with all their rewards. `values` [P, D]: theirs, in float64. Raises ValueError for other
    shapes, for no rewards at all, and for infinite ones.
    """

    def __init__(self, rewards: Any) -> None:
        given = torch.as_tensor(rewards).detach()
        if given.ndim == 1:
            given = given[:, None]
        if given.ndim != 2 or 0 in given.shape:
            raise ValueError(f"rewards have shape {list(given.shape)}; give [G, D]: G samples, D rewards of each")
        self.dtype = given.dtype if given.dtype == torch.float64 else torch.float32
        self.device, self.size = given.device, len(given)
        values = given.cpu().double()
        if bool((values.abs() > LARGEST).any()):
            raise ValueError("a reward is infinite or beyond 1e100; give a finite number, or NaN where it is missing")
        self.present = ~values.isnan().any(1)
        self.values = values[self.present]

    def weights(self, weights: Sequence[float] | Tensor | None) -> Tensor:
        """[D] in float64; ones for None. Raises ValueError for another number of them and for infinite ones."""
        count = self.values.shape[1]
        if weights is None:
            return torch.ones(count, dtype=torch.float64)
        made = torch.as_tensor(weights).cpu().double()
        if made.shape != (count,) or not bool((made.abs() <= LARGEST).all()):
            raise ValueError(f"the weights {made.tolist()} do not fit; give {count} finite numbers, one per reward")
        return made

    def z_scores(self, values: Tensor, scale: Tensor) -> Tensor | None:
        """(values - mean) / std of `values` [n] in float64, population std; None where the spread is only rounding.

        `scale` [n] or []: the size of what was summed to get `values`.
        """
        tolerance = ROUNDING * torch.finfo(self.dtype).eps * float(scale.abs().max()) if values.numel() else 0.0
        if len(values) < 2 or float(values.max() - values.min()) <= tolerance:
            return None
        # Divided by the spread first: squares of tiny values would vanish, those of huge ones overflow.
        centred = values / (values.max() - values.min())
        centred = centred - centred.mean()
        return centred / centred.square().mean().sqrt()

    def result(self, advantages: Tensor | None, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(advantages [G], mask [G]) from those of the `chosen` (default: all present) samples; None masks all."""
        full, mask = torch.zeros(self.size, dtype=self.dtype), torch.zeros(self.size, dtype=torch.bool)
        if advantages is not None:
            where = self.present.nonzero()[:, 0]
            where = where if chosen is None else where[chosen]
            full[where], mask[where] = advantages.to(self.dtype), True
        return full.to(self.device), mask.to(self.device)
