"""An exponential moving average of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Ema:
    """mean <- d mean + (1 - d) parameter after every update, with d = min(decay, (1 + n) / (10 + n)) at update n = 1,
    2, ...: short of memory at first, so that the start is soon forgotten.

    `parameters`: the live ones, which stay where they are. The mean is kept in at least float32: near decay 1 a step of
    it would round to nothing in bfloat16. `decay` in [0, 1]; 0 follows the parameters at once.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"a decay of {decay} cannot be; give 0 to 1, for example 0.99")
        self.parameters, self.decay, self.updates = list(parameters), decay, 0
        self.mean = [p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """To be called once after each optimiser step."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for mean, p in zip(self.mean, self.parameters, strict=True):
            mean.lerp_(p.detach().to(mean.dtype), weight)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """A context in which the parameters hold the mean; at its end they are bit for bit what they were."""
        kept = [p.detach().clone() for p in self.parameters]
        self._set(self.mean)
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for p, value in zip(self.parameters, values, strict=True):
            p.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """The mean of each parameter, by its position, and how many updates made it."""
        return {str(i): mean for i, mean in enumerate(self.mean)} | {"updates": torch.tensor(self.updates)}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `state` gave, whole or sharded as the parameters are."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        if len(state) != len(self.mean) + 1:
            raise ValueError(f"{len(state) - 1} averages for {len(self.mean)} parameters; restore the same model's")
        for i, mean in enumerate(self.mean):
            value = state[str(i)].to(mean.device)
            if isinstance(mean, DTensor) and not isinstance(value, DTensor):
                value = distribute_tensor(value, mean.device_mesh, mean.placements)
            mean.copy_(value)
        self.updates = int(state["updates"])
