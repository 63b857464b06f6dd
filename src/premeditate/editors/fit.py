"""Brings a picture to a size that a pipeline can work at, and the result back: padded, never stretched.

Users of real editors complain most of all about edits that come back shifted or zoomed. So the picture keeps its
aspect, the rest of the working size is filled with its own border pixels, and the way back undoes the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

Size = tuple[int, int]
"""(width, height) in pixels."""


@dataclass(frozen=True)
class Fit:
    """`source`: the size outside. `work`: the size inside. `box`: left, top, right, bottom of the picture inside."""

    source: Size
    work: Size
    box: tuple[int, int, int, int]

    @classmethod
    def plan(cls, source: Size, side: int, multiple: int) -> Fit:
        """The working size of about `side` x `side` pixels in area, near the source's aspect, in whole multiples."""
        return cls.into(source, working_size(source, side, multiple))

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


def working_size(source: Size, side: int, multiple: int) -> Size:
    """(width, height) in multiples of `multiple`, about `side`^2 pixels, near the aspect of `source`.

    Iterated until the size is its own answer: pipelines that derive a size from the aspect of what they are given then
    arrive at the same one, and do not stretch the picture a second time.
    """
    size = source
    for _ in range(8):
        ratio = size[0] / size[1]
        width, height = side * math.sqrt(ratio), side / math.sqrt(ratio)
        again = (max(1, round(width / multiple)) * multiple, max(1, round(height / multiple)) * multiple)
        if again == size:
            break
        size = again
    return size


def resize(image: Image.Image, size: Size) -> Image.Image:
    """`image` at `size`; a reduction by a whole number averages blocks: enlarged pixel art comes back as it was."""
    if image.size == size:
        return image
    whole = all(a >= b and a % b == 0 for a, b in zip(image.size, size, strict=True))
    return image.resize(size, Image.Resampling.BOX if whole else Image.Resampling.LANCZOS)
