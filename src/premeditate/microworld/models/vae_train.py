"""The tiny editor's first half: a diffusers `AutoencoderKL` that turns each 16 px cell into a 2x2 patch of latents.

Flux packs 2x2 latents into one token, so that one token is one cell. Most training pictures are crops of 2x2 cells with
their true backgrounds (four times cheaper than whole scenes), a share are whole scenes, because group normalisation
looks at the whole picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from premeditate.microworld.checker import decode_arrays
from premeditate.microworld.render import CELL, render_codes, templates
from premeditate.microworld.scene import CELLS, GRID, THINGS

if TYPE_CHECKING:
    import torch

VAE_CONFIG: dict[str, Any] = {
    "block_out_channels": (8, 16, 32, 48),
    "layers_per_block": 1,
    "latent_channels": 8,
    "norm_num_groups": 8,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": False,
    "sample_size": CELL * GRID,
}
_PLACES = np.array([[r * GRID + c + o for o in (0, 1, GRID, GRID + 1)] for r in range(3) for c in range(3)])


def random_codes(rng: np.random.Generator, count: int, low: int = 2, high: int = 8) -> np.ndarray:
    """int [count, 16]: scenes with `low`..`high` things of all 64, in random cells."""
    codes = rng.integers(1, len(THINGS), (count, CELLS))
    order = rng.random((count, CELLS)).argsort(-1)
    return np.where(order < rng.integers(low, high + 1, (count, 1)), codes, 0)


def crops(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [count, 32, 32, 3] pictures of 2x2 neighbouring cells and their contents, int [count, 4]."""
    places = _PLACES[rng.integers(0, len(_PLACES), count)]
    codes = np.where(rng.random((count, 4)) < 0.7, rng.integers(1, len(THINGS), (count, 4)), 0)
    cells = templates()[places, codes].reshape(count, 2, 2, CELL, CELL, 3)
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(count, 2 * CELL, 2 * CELL, 3), codes


def to_model(images: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in -1..1."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """float [B, 3, H, W] in -1..1 -> uint8 [B, H, W, 3], rounded as diffusers' image processor does."""
    scaled = (images.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return (scaled * 255).round().astype("uint8")


def _weights(codes: np.ndarray, cells: int, weight: float) -> torch.Tensor:
    """float [B, 1, H, W]: `weight` on occupied cells, 1 on empty ones."""
    import torch

    grid = torch.from_numpy(np.where(codes > 0, weight, 1.0)).float().reshape(-1, 1, cells, cells)
    return grid.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)


def evaluate_vae(vae: Any, seed: int = 10_000_000, count: int = 512) -> dict[str, float]:
    """Round trips of `count` scenes: shares (0-1) of cells, occupied cells and whole scenes that decode exactly *and*
    sharply, and the root mean square pixel error (0-1)."""
    import torch

    codes = random_codes(np.random.default_rng(seed), count, 3, 6)
    pictures = render_codes(codes)
    back = []
    with torch.no_grad():
        for start in range(0, count, 64):
            z = vae.encode(to_model(pictures[start : start + 64])).latent_dist.mode()
            back.append(to_pixels(vae.decode(z).sample))
    again = np.concatenate(back)
    found, sharp, _ = decode_arrays(again)
    good = (found == codes) & sharp
    error = np.sqrt(np.mean((again.astype(float) - pictures) ** 2)) / 255
    return {
        "cells": float(good.mean()),
        "occupied": float(good[codes > 0].mean()),
        "scenes": float(good.all(-1).mean()),
        "rms": float(error),
    }


def set_scaling(vae: Any, seed: int = 7) -> None:
    """Sets `scaling_factor` and `shift_factor` so that (z - shift) * scale has mean 0 and deviation 1."""
    import torch

    with torch.no_grad():
        codes = random_codes(np.random.default_rng(seed), 512, 3, 6)
        z = vae.encode(to_model(render_codes(codes))).latent_dist.mode()
    vae.register_to_config(shift_factor=float(z.mean()), scaling_factor=float(1 / z.std()))


def train_vae(
    *,
    seconds: float = 480.0,
    steps: int | None = None,
    seed: int = 0,
    batch: int = 64,
    lr: float = 2.5e-3,
    bf16: bool = False,
    log: Callable[[dict[str, Any]], None] = print,
    every: int = 250,
) -> Any:
    """Trains an `AutoencoderKL` from nothing for `seconds` of this process's CPU time, or for `steps`, and sets its
    latent scale. Returns it in evaluation mode, float32."""
    import torch
    from diffusers import AutoencoderKL
    from torch.nn import functional as F

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = AutoencoderKL(**VAE_CONFIG)
    vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=1e-4)
    begin, step, done = time.process_time(), 0, 0.0
    while done < 1.0:
        used = time.process_time() - begin
        done = step / steps if steps else used / seconds
        rate = lr * min(1.0, (step + 1) / 100) * min(1.0, max(0.02, (1 - done) / 0.5))
        for group in optimizer.param_groups:
            group["lr"] = rate
        whole = step % 4 == 3 or done > 0.92
        if whole:
            codes = random_codes(rng, batch // 4)
            pictures = render_codes(codes)
        else:
            pictures, codes = crops(rng, batch)
        x = to_model(pictures).contiguous(memory_format=torch.channels_last)
        weight = _weights(codes, GRID if whole else 2, 3.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            dist = vae.encode(x).latent_dist
            # The decoder meets latents that a sampler drew: noise teaches it to shrug off small errors.
            z = dist.mode()
            z = z + 0.08 * z.detach().float().std() * torch.randn_like(z)
            y = vae.decode(z).sample
        error = y.float() - x
        mean, logvar = dist.mean.float(), dist.logvar.float()
        kl = (mean**2 + logvar.exp() - 1 - logvar).mean()
        loss = (weight * (error.abs() * 0.3 + error**2 * 2)).mean() + 3e-4 * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % every == 0:
            vae.eval()
            row = {"part": "vae", "step": step, "cpu_seconds": round(used, 1), "loss": float(loss.detach())}
            log({**row, "mse": float(F.mse_loss(y.detach().float(), x)), **evaluate_vae(vae, count=128)})
            vae.train()
    vae.eval()
    set_scaling(vae)
    return vae.to(memory_format=torch.contiguous_format)
