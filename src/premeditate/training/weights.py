"""The weights of a model as a whole: what names them, what was trained of them, and a folder of them on the disk."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from premeditate.files import write_error
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


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` once all is written: what was there stays until
    then. Raises `WriteError` for what the system, or safetensors in its name, says inside."""
    from safetensors import SafetensorError

    old, new = (folder.with_name(f".{word}-{secrets.token_hex(6)}") for word in ("old", "new"))
    try:
        yield new
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except SafetensorError as error:
        raise write_error(folder, OSError(str(error))) from error
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        for rest in (old, new):
            shutil.rmtree(rest, ignore_errors=True)
