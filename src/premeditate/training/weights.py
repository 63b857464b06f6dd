"""The weights of a model as a whole: what names them, and what was trained of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from premeditate.training.distributed import whole


def fingerprint(parts: Mapping[str, nn.Module]) -> str:
    """SHA-256 (hex) over some of the weights of `parts`: enough to tell a retrained part from it."""
    found = hashlib.sha256()
    for name, part in parts.items():
        for key, value in part.state_dict().items():
            # 64 of a tensor's values tell; all of them would be gigabytes.
            flat = value.detach().flatten()
            some = flat[:: max(1, flat.numel() // 64)].to("cpu", torch.float64)
            found.update(f"{name}.{key} {value.dtype} {tuple(value.shape)}".encode() + some.numpy().tobytes())
    return found.hexdigest()


def gathered(module: nn.Module) -> dict[str, Tensor]:
    """The trained parameters by name, whole and on the CPU. Where they are sharded, every process has to call this; one
    then exports with them."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return {name: whole(p).detach().to("cpu", copy=True) for name, p in trained.items()}
