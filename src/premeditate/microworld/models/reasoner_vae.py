"""Pictures as an editor's autoencoder gives them back, so that the reasoner reads slightly imperfect edits rightly."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHIPPED = Path(__file__).parents[1] / "weights" / "editor" / "vae"


def round_trip(folder: Path, rng: random.Random, share: float = 0.2) -> Callable[[np.ndarray], np.ndarray]:
    """A function uint8 [64, 64, 3] -> the same: encodes and decodes a `share` of what it is given with the diffusers
    AutoencoderKL in `folder`, half of these with a little noise on the latents, as a denoiser leaves. Raises ValueError
    where there is no autoencoder."""
    import torch
    from diffusers import AutoencoderKL

    if not (folder / "config.json").exists():
        raise ValueError(f"no autoencoder in {folder}: train the editor first, or pass vae=None")
    vae: Any = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()

    @torch.no_grad()
    def apply(image: np.ndarray) -> np.ndarray:
        if rng.random() >= share:
            return image
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float().div(127.5).sub(1)
        latents = vae.encode(pixels).latent_dist.mean
        if rng.random() < 0.5:
            noise = torch.from_numpy(np.random.default_rng(rng.getrandbits(32)).standard_normal(latents.shape)).float()
            latents = latents + noise * latents.std() * rng.uniform(0, 0.15)
        back = vae.decode(latents).sample[0].permute(1, 2, 0).add(1).mul(127.5)
        return back.round().clamp(0, 255).to(torch.uint8).numpy()

    return apply
