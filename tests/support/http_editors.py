"""Short ways to talk to an `HttpEditor`, and pictures that show where it put what."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from PIL import Image

from premeditate.editors.base import EditRequest, EditResult
from premeditate.editors.http import HttpEditor
from premeditate.remote import EndpointError, Health
from support.pictures import smooth

SIZES = [(64, 64), (128, 64), (100, 70), (33, 64), (250, 60), (31, 17), (20, 400)]


def blot(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGB", size, "white")
    image.paste((0, 0, 255), box)
    return image


def blue_to_red(image: Image.Image) -> Image.Image:
    """Marks what it finds: alignment shows in where the red is after the way back."""
    pixels = np.array(image.convert("RGB")).astype(int)
    pixels[(pixels[..., 2] - pixels[..., 0]) > 128] = (255, 0, 0)
    return Image.fromarray(pixels.astype(np.uint8))


def red_box(image: Image.Image | None) -> list[int]:
    assert image is not None
    pixels = np.asarray(image).astype(int)
    ys, xs = np.nonzero(pixels[..., 0] - pixels[..., 2] > 128)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def ask(*pictures: Image.Image, prompt: str = "paint it red", seed: int = 7, key: str = "") -> EditRequest:
    return EditRequest(pictures or (smooth(64, 64),), prompt, seed, key)


def run(editor: HttpEditor, *requests: EditRequest) -> list[EditResult]:
    async def go() -> list[EditResult]:
        try:
            return await editor.edit(requests)
        finally:
            await editor.aclose()

    return asyncio.run(go())


def fails(editor: HttpEditor, request: EditRequest | None = None, timeout: float | None = None) -> EndpointError:
    async def go() -> None:
        try:
            await editor.send(request or ask(), timeout)
        finally:
            await editor.aclose()

    with pytest.raises(EndpointError) as caught:
        asyncio.run(go())
    return caught.value


def health(editor: HttpEditor) -> Health:
    async def go() -> Health:
        try:
            return await editor.health()
        finally:
            await editor.aclose()

    return asyncio.run(go())
