"""Pictures for a page: data URIs of a sensible size, and difference maps. Nothing here touches the network."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from premeditate import images
from premeditate.trace import ImageRef

CRISP = 256
"""Longer side in pixels up to which a picture is enlarged with hard pixel edges; photographs are larger."""
CHANGED = 20 / 255
"""Largest channel difference (0-1) above which a pixel counts as changed: above what JPEG or a VAE adds unseen."""
_RAMP = np.array([[22, 20, 44], [92, 24, 110], [190, 50, 90], [244, 120, 40], [255, 226, 120]], dtype=np.float64)


class Images(Protocol):
    """Where pictures come from: a `RunStore`, or anything else that finds an image by its reference."""

    def get_image(self, ref: ImageRef) -> Image.Image: ...


@dataclass(frozen=True)
class Picture:
    """A picture ready for a page. `uri` is None where it could not be read, and `problem` says why. Sizes in pixels
    are the picture's own, not the page's. On difference maps only: `changed`, the share of changed pixels (0-1), and
    `centre`, how far from the left (0-1) the middle of the change lies."""

    uri: str | None
    width: int
    height: int
    problem: str = ""
    changed: float | None = None
    centre: float = 0.5

    @property
    def crisp(self) -> bool:
        return max(self.width, self.height) <= CRISP


def data_uri(image: Image.Image, longest: int) -> str:
    """The picture as a data URI, scaled down to `longest` pixels if it is larger. Small ones are lossless."""
    if max(image.size) <= longest and max(image.size) <= 2 * CRISP:
        kind, data = "png", images.encode(image, "PNG")
    else:
        image = image.copy()
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        kind, data = "webp", images.encode(image, "WEBP", quality=86)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def difference(before: Image.Image, after: Image.Image) -> tuple[Image.Image, float, float]:
    """Where and how much two pictures differ: a heat map over the faded first, the share of changed pixels, and
    how far from the left (0-1) the middle of the change lies.

    A pixel's heat is the largest difference of its three channels. `after` is scaled to `before`'s size if need be.
    """
    if after.size != before.size:
        after = after.resize(before.size, Image.Resampling.LANCZOS)
    one, two = (np.asarray(i.convert("RGB"), dtype=np.float64) / 255 for i in (before, after))
    heat = np.abs(one - two).max(axis=-1)
    place = heat.clip(0, 1) * (len(_RAMP) - 1)
    low = np.floor(place).astype(int).clip(0, len(_RAMP) - 2)
    share = (place - low)[..., None]
    colour = _RAMP[low] * (1 - share) + _RAMP[low + 1] * share
    grey = (one @ np.array([0.299, 0.587, 0.114]))[..., None]
    ground = _RAMP[0] + grey * 58  # the source stays readable under its changes
    weight = np.sqrt(heat.clip(0, 1))[..., None]
    mixed = ground * (1 - weight) + np.maximum(colour, ground) * weight
    weight_x = (heat**2).sum(axis=0)  # squared: faint noise everywhere must not pull the middle away from the change
    centre = float(weight_x @ (np.arange(len(weight_x)) + 0.5) / weight_x.sum() / len(weight_x)) if heat.any() else 0.5
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8)), float((heat > CHANGED).mean()), centre


class Album:
    """Pictures of one page, each read and encoded once. `longest`: the largest side in pixels that is embedded."""

    def __init__(self, source: Images, longest: int = 1024) -> None:
        self._source, self._longest = source, longest
        self._images: dict[str, Image.Image | str] = {}
        self._pictures: dict[str, Picture] = {}
        self._maps: dict[tuple[str, str], Picture] = {}

    def _get(self, ref: ImageRef) -> Image.Image | str:
        if ref.sha256 not in self._images:
            try:
                self._images[ref.sha256] = self._source.get_image(ref)
            except (ValueError, OSError) as error:  # a page about a damaged run must still open, and say so
                self._images[ref.sha256] = str(error)
        return self._images[ref.sha256]

    def picture(self, ref: ImageRef) -> Picture:
        if ref.sha256 not in self._pictures:
            image = self._get(ref)
            self._pictures[ref.sha256] = (
                Picture(None, ref.width, ref.height, image)
                if isinstance(image, str)
                else Picture(data_uri(image, self._longest), *image.size)
            )
        return self._pictures[ref.sha256]

    def difference(self, before: ImageRef, after: ImageRef) -> Picture:
        key = before.sha256, after.sha256
        if key not in self._maps:
            one, two = self._get(before), self._get(after)
            if isinstance(one, str) or isinstance(two, str):
                self._maps[key] = Picture(None, before.width, before.height, one if isinstance(one, str) else str(two))
            else:
                heat, changed, centre = difference(one, two)
                self._maps[key] = Picture(data_uri(heat, self._longest), *heat.size, changed=changed, centre=centre)
        return self._maps[key]
