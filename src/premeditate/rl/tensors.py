"""What every formula here needs: enough precision, one number per sample, means over the latent dimensions.

Legend: B samples (N rows), `...` latent dimensions: packed tokens [B, tokens, channels], pictures [B, C, H, W].
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import torch
from torch import Tensor


def cast_up(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in one floating type of at least float32: bfloat16 and float16 are cast up, float64 stays."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


def per_sample(value: float | Tensor, like: Tensor, name: str) -> Tensor:
    """`value`, a number or a tensor [] or [B], as a tensor [B] of the type and device of `like` [B, ...].

    Raises ValueError for any other shape.
    """
    made = value.to(like) if isinstance(value, Tensor) else like.new_tensor(value)
    if made.ndim > 1 or (made.ndim == 1 and len(made) != len(like)):
        raise ValueError(
            f"{name} has shape {list(made.shape)} for {len(like)} samples; give one number, or one for each sample"
        )
    return made.expand(len(like))


def spread(value: Tensor, like: Tensor) -> Tensor:
    """`value` [B] as [B, 1, ...], so that it multiplies `like` [B, ...]."""
    return value.reshape(-1, *[1] * (like.ndim - 1))


def mean_dims(value: Tensor) -> Tensor:
    """The mean over all dimensions but the first: [B, ...] -> [B]."""
    return value.unsqueeze(-1).flatten(1).mean(1)


def same_shape(**tensors: Tensor) -> None:
    """Raises ValueError, naming both, where a tensor has not the shape of the first. The first must have samples."""
    (first, reference), *others = tensors.items()
    if reference.ndim == 0:
        raise ValueError(f"{first} is a single number; give [B, ...], one entry per sample")
    for name, tensor in others:
        if tensor.shape != reference.shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}, {first} has {list(reference.shape)}; they must be the same"
            )


def unknown(what: str, name: object, known: Sequence[str]) -> ValueError:
    """The error for a name that there is not, with the nearest one that there is."""
    close = get_close_matches(str(name), known, n=1, cutoff=0.0)
    return ValueError(f"there is no {what} {name!r}; did you mean {close[0]!r}? There are {', '.join(known)}")
