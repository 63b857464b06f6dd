"""Drawing: scenes to 64x64 RGB pictures, exactly and fast (a table of 16 places x 65 contents).

Things are drawn anti-aliased (8x supersampled) with a darker rim. The background is a pale gradient, so that every
cell's pixels also say where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from premeditate.microworld.scene import CELLS, GRID, THINGS, Scene, Thing

CELL = 16
SIDE = GRID * CELL
PALETTE = {
    "red": (222, 54, 48),
    "orange": (244, 140, 30),
    "yellow": (248, 212, 46),
    "green": (46, 160, 74),
    "cyan": (84, 204, 226),
    "blue": (44, 88, 208),
    "purple": (148, 66, 184),
    "gray": (118, 118, 122),
}
RADIUS = {"small": 5.0, "large": 7.2}
_SCALE = 8


def _outline(shape: str, radius: float, centre: float) -> list[tuple[float, float]]:
    """The polygon of a shape, with an area that reads as the same size."""
    if shape == "circle":
        angles, radii = np.linspace(0, 2 * np.pi, 64, endpoint=False), np.full(64, radius)
    elif shape == "square":
        angles, radii = np.pi / 4 + np.arange(4) * np.pi / 2, np.full(4, radius * 1.27)
    elif shape == "triangle":
        angles, radii = -np.pi / 2 + np.arange(3) * 2 * np.pi / 3, np.full(3, radius * 1.22)
        centre_y = centre + radius * 0.22
        return [(centre + r * np.cos(a), centre_y + r * np.sin(a)) for a, r in zip(angles, radii, strict=True)]
    else:
        angles = -np.pi / 2 + np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, radius * 1.14, radius * 0.53)
    return [(centre + r * np.cos(a), centre + r * np.sin(a)) for a, r in zip(angles, radii, strict=True)]


def _sprite(thing: Thing) -> tuple[np.ndarray, np.ndarray]:
    """Premultiplied RGB [16, 16, 3] and coverage [16, 16, 1], float in 0-1."""
    side, middle, radius = CELL * _SCALE, CELL * _SCALE / 2, RADIUS[thing.size] * _SCALE
    colour = np.array(PALETTE[thing.colour]) / 255
    masks = []
    for inset in (0.0, 0.9 * _SCALE):
        mask = Image.new("L", (side, side), 0)
        shrink = (radius - inset) / radius
        points = [
            (middle + (x - middle) * shrink, middle + (y - middle) * shrink)
            for x, y in _outline(thing.shape, radius, middle)
        ]
        ImageDraw.Draw(mask).polygon(points, fill=255)
        cover = np.asarray(mask, dtype=np.float64) / 255
        masks.append(cover.reshape(CELL, _SCALE, CELL, _SCALE).mean(axis=(1, 3))[..., None])
    whole, inner = masks
    return inner * colour + (whole - inner).clip(0) * colour * 0.62, whole


@cache
def _background() -> np.ndarray:
    """[64, 64, 3] float in 0-1: paler at the top left, warmer to the right, cooler downwards, with faint grid lines."""
    y, x = np.meshgrid(np.linspace(0, 1, SIDE), np.linspace(0, 1, SIDE), indexing="ij")
    image = np.stack([0.98 - 0.20 * y, 0.97 - 0.07 * x - 0.05 * y, 0.98 - 0.24 * x], axis=-1)
    for line in range(CELL, SIDE, CELL):
        image[line, :] *= 0.95
        image[:, line] *= 0.95
    return image


@cache
def templates() -> np.ndarray:
    """uint8 [16 cells, 65 contents, 16, 16, 3]: what each content looks like in each cell."""
    ground = _background().reshape(GRID, CELL, GRID, CELL, 3).transpose(0, 2, 1, 3, 4).reshape(CELLS, CELL, CELL, 3)
    table = np.repeat(ground[:, None], len(THINGS), axis=1)
    for code, thing in enumerate(THINGS):
        if thing is not None:
            paint, cover = _sprite(thing)
            table[:, code] = ground * (1 - cover) + paint
    return np.round(table * 255).astype(np.uint8)


def render_codes(codes: np.ndarray) -> np.ndarray:
    """int [B, 16] -> uint8 [B, 64, 64, 3]."""
    cells: np.ndarray = templates()[np.arange(CELLS), codes]
    grid = cells.reshape(-1, GRID, GRID, CELL, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(grid.reshape(-1, SIDE, SIDE, 3))


def render(scene: Scene) -> Image.Image:
    """A 64x64 RGB picture."""
    return Image.fromarray(render_codes(np.array([scene.codes]))[0])


def cells_of(images: np.ndarray) -> np.ndarray:
    """[B, 64, 64, 3] -> [B, 16, 16, 16, 3], one picture per cell."""
    batch = len(images)
    split = images.reshape(batch, GRID, CELL, GRID, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
    return split.reshape(batch, CELLS, CELL, CELL, 3)


def contact_sheet(rows: Sequence[Sequence[Image.Image]], scale: int = 3, gap: int = 6) -> Image.Image:
    """Pictures in rows, enlarged crisply, on white."""
    side = SIDE * scale
    sheet = Image.new("RGB", (max(map(len, rows)) * (side + gap) + gap, len(rows) * (side + gap) + gap), "white")
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            tile = image.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(tile, (gap + c * (side + gap), gap + r * (side + gap)))
    return sheet
