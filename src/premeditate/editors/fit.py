"""Brings a picture to a size that a pipeline can work at, and the result back: padded, never stretched.

Users of real editors complain most of all about edits that come back shifted or zoomed. So the picture keeps its
aspect, the rest of the working size is filled with its own border pixels, and the way back undoes the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

Size = tuple[int, int]
"""(width, height) in pixels."""
ASPECT = 6.0
"""Working sizes are no longer or taller than this; the rest is padding. FLUX.2 refuses 8, and rounding takes some."""


@dataclass(frozen=True)
class Fit:
    """`source`: the size outside. `work`: the size inside. `box`: left, top, right, bottom of the picture inside."""

    source: Size
    work: Size
    box: tuple[int, int, int, int]

    @classmethod
    def plan(cls, source: Size, side: int, multiple: int, least: int = 1, most: int | None = None) -> Fit:
        """The working size of about `side` x `side` pixels in area, near the source's aspect: see `working_size`."""
        return cls.into(source, working_size(source, side, multiple, least, most))

    @classmethod
    def into(cls, source: Size, work: Size) -> Fit:
        """A picture of any aspect, centred in a given working size."""
        scale = min(work[0] / source[0], work[1] / source[1])
        w, h = (max(1, min(b, round(s * scale))) for b, s in zip(work, source, strict=True))
        left, top = (work[0] - w) // 2, (work[1] - h) // 2
        return cls(source, work, (left, top, left + w, top + h))

    @property
    def inner(self) -> Size:
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

    def apply(self, image: Image.Image) -> Image.Image:
        """RGB `image` of the source's size (another size keeps its own aspect) -> RGB at the working size."""
        if image.size != self.source:
            return Fit.into(image.size, self.work).apply(image)
        inner = resize(image.convert("RGB"), self.inner)
        if inner.size == self.work:
            return inner
        left, top, right, bottom = self.box
        pads = ((top, self.work[1] - bottom), (left, self.work[0] - right), (0, 0))
        return Image.fromarray(np.pad(np.asarray(inner), pads, mode="edge"))

    def undo(self, image: Image.Image) -> Image.Image:
        """The pipeline's output -> RGB at the source's size, aligned with the source."""
        if image.size != self.work:
            image = resize(image, self.work)
        if self.inner != self.work:
            image = image.crop(self.box)
        return resize(image.convert("RGB"), self.source)


def working_size(source: Size, side: int, multiple: int, least: int = 1, most: int | None = None) -> Size:
    """(width, height) in multiples of `multiple`, about `side`^2 pixels, near the aspect of `source` up to `ASPECT`.

    `least`: pixels that each side has at least. `most`: pixels that the area has at most; None: any number.
    """
    size = _near(source, side, multiple, least, round)
    if most is not None and size[0] * size[1] > most:
        size = _near(source, min(side, math.isqrt(most)), multiple, least, math.floor)
    return size


def _near(source: Size, side: int, multiple: int, least: int, whole: Callable[[float], int]) -> Size:
    root = math.sqrt(min(max(source[0] / source[1], 1 / ASPECT), ASPECT))
    lowest = math.ceil(least / multiple)
    width, height = (max(1, lowest, whole(s / multiple)) * multiple for s in (side * root, side / root))
    return width, height


def resize(image: Image.Image, size: Size) -> Image.Image:
    """`image` at `size`; a reduction by a whole number averages blocks: enlarged pixel art comes back as it was."""
    if image.size == size:
        return image
    whole = all(a >= b and a % b == 0 for a, b in zip(image.size, size, strict=True))
    return image.resize(size, Image.Resampling.BOX if whole else Image.Resampling.LANCZOS)
