"""Measures how far an editor moves a picture: soft dots go in, and their centres are looked for in what comes out."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image


def dots(width: int, height: int) -> tuple[list[tuple[float, float]], float, Image.Image]:
    """Nine soft dots on black: their centres, their radius, and the picture."""
    centres = [(width * x, height * y) for x in (0.12, 0.5, 0.88) for y in (0.15, 0.5, 0.85)]
    radius = max(3.0, min(width, height) / 40)
    y, x = np.mgrid[0.5:height, 0.5:width]
    light = sum(np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * radius**2)) for cx, cy in centres)
    return centres, radius, Image.fromarray((255 * np.clip(light, 0, 1)).astype(np.uint8)).convert("RGB")


def found(image: Image.Image, centres: list[tuple[float, float]], radius: float) -> Any:
    """Where the dots near `centres` are in `image`: (9, 2), pixels."""
    light = np.asarray(image.convert("L")).astype(float)
    y, x = np.mgrid[0.5 : light.shape[0], 0.5 : light.shape[1]]
    places = []
    for cx, cy in centres:
        near = light * ((x - cx) ** 2 + (y - cy) ** 2 < (3.5 * radius) ** 2)
        places.append(((x * near).sum() / near.sum(), (y * near).sum() / near.sum()))
    return np.array(places)


def echo(pipeline: Any) -> list[Any]:
    """Makes the pipeline's autoencoder decode to the pixels that were encoded first, after checking that its own answer
    has their size; returns the list of what was encoded."""
    seen: list[Any] = []
    encode, decode = pipeline.vae.encode, pipeline.vae.decode

    def encode_and_remember(pixels: Any, *args: Any, **options: Any) -> Any:
        seen.append(pixels.clone())
        return encode(pixels, *args, **options)

    def decode_to_source(latents: Any, *args: Any, **options: Any) -> Any:
        assert decode(latents, *args, **options)[0].shape == seen[0].shape
        return (seen[0],)

    pipeline.vae.encode, pipeline.vae.decode = encode_and_remember, decode_to_source
    return seen
