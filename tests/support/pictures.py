"""Pictures that show what was done to them."""

from __future__ import annotations

import numpy as np
from PIL import Image


def picture(width: int = 32, height: int = 32, seed: int = 0) -> Image.Image:
    """Noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(width: int, height: int) -> Image.Image:
    """A picture whose red says how far right a pixel is, and whose green how far down."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def difference(a: Image.Image | None, b: Image.Image | None) -> int:
    """The largest, in levels of 255, between two RGB pictures of one size."""
    assert a is not None and b is not None and a.size == b.size and a.mode == b.mode == "RGB"
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max())
