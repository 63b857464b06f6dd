"""Several processes as one: who they are, sums over them, and how a model is split between them.

Started by torchrun, or alone. Loss terms are divided by the *global* number of rows and gradients are summed, so that
any number of processes makes the update that one would have made.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """`rank` of `size` processes; `device`: this one's."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @classmethod
    def join(cls, device: str) -> World:
        """The world that torchrun's environment describes, or one of one. Joining twice gives the same."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(device=device)
        if device.startswith("cuda"):
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
        return cls(dist.get_rank(), size, device)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes (float64)."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def largest(self, value: float) -> float:
        return self._reduce([value], dist.ReduceOp.MAX)[0]

    def _reduce(self, values: Sequence[float], how: Any) -> list[float]:
        if self.size == 1:
            return [float(v) for v in values]
        # NCCL reduces tensors of its device only.
        total = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(total, how)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value` (anything that pickles; only between our own processes), in order of rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def from_first(self, make: Callable[[Callable[[], None]], Any]) -> Any:
        """What the first process makes, on all of them (anything that pickles). What takes longer than `TIMEOUT` calls
        the function that `make` gets in between: nobody waits longer than that for a sign of life."""
        if not self.first:
            while (told := self.gather(None)[0]) is None:
                pass
            return told[0]

        def alive() -> None:
            self.gather(None)

        made = make(alive)
        self.gather((made,))
        return made

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        if self.size > 1 and dist.is_initialized():
            with suppress(Exception):  # a process whose peers died has nobody to say goodbye to
                dist.destroy_process_group()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds up gradients over all processes. Those of sharded parameters were averaged in the backward pass, since
        gloo knows no other way; they only lack the factor."""
        if self.size == 1:
            return
        plain = []
        for p in parameters:
            if not is_sharded(p):
                plain.append(p)
            elif p.grad is not None:
                p.grad.mul_(self.size)
        # A process without an informative group has no gradients. A parameter that takes no part in the output has none
        # anywhere, and the optimiser is to leave it alone.
        somewhere = self.sums([float(p.grad is not None) for p in plain])
        plain = [p for p, count in zip(plain, somewhere, strict=True) if count]
        for p in plain:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        if plain:
            grads = [p.grad for p in plain if p.grad is not None]
            flat = torch.cat([g.flatten().float() for g in grads])
            dist.all_reduce(flat)
            for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(part.view_as(grad))


def is_sharded(tensor: Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The full value of a tensor that may be sharded. Every process must ask."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard(transformer: nn.Module, world: World) -> None:
    """Splits the weights of a diffusers transformer over the world with FSDP2, block by block.

    Frozen weights and, in full fine-tuning, trained ones are sharded. Adapters stay whole on every process, for they
    are small and may have another dtype than their base. Raises ValueError in a world of one.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if world.size == 1:
        raise ValueError("there is nothing to shard over; start with torchrun, or give sharding.kind=none")
    # Blocks return views, and nothing writes into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(world.device.split(":")[0], (world.size,))
    adapters = {p for name, p in transformer.named_parameters() if "lora_" in name}
    blocks = [m for m in transformer.children() if isinstance(m, nn.ModuleList)]
    for part in [block for blocks_ in blocks for block in blocks_] + [transformer]:
        own = {p for p in part.parameters() if p in adapters}
        # The outermost part too: what it had gathered would not see averaged weights being put in their place.
        fully_shard(part, mesh=mesh, ignored_params=own, reshard_after_forward=True)
