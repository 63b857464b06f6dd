"""What the tiny editor learns from: latents of scenes, composed from a table or really encoded, and cell labels."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from premeditate.microworld.models.editor_data import STYLE_SHARES, STYLES, Example, draw_edit, train_scene
from premeditate.microworld.models.vae_train import to_model
from premeditate.microworld.render import render_codes
from premeditate.microworld.scene import CELLS, COLOURS, SHAPES, SIZES, THINGS, Scene


def attributes() -> np.ndarray:
    """int [65, 3]: shape, colour and size of every cell content, 0 for the empty cell."""
    rows = [(0, 0, 0)]
    rows += [(1 + SHAPES.index(t.shape), 1 + COLOURS.index(t.colour), 1 + SIZES.index(t.size)) for t in THINGS if t]
    return np.array(rows)


def pack(z: Any) -> Any:
    """[B, C, 8, 8] latents -> [B, 16, 4C] tokens, in Flux's order."""
    b, c, h, w = z.shape
    return z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, CELLS, 4 * c)


def encode_codes(vae: Any, codes: np.ndarray, batch: int = 128) -> Any:
    """int [B, 16] -> normalised packed latents, float [B, 16, 32]."""
    import torch

    out = []
    with torch.no_grad():
        for start in range(0, len(codes), batch):
            z = vae.encode(to_model(render_codes(codes[start : start + batch]))).latent_dist.mode()
            out.append(pack((z - vae.config.shift_factor) * vae.config.scaling_factor))
    return torch.cat(out)


def cell_table(vae: Any, seed: int = 3, rounds: int = 60) -> Any:
    """float [16, 65, 32]: the mean latents of every content in every cell, over random neighbours."""
    import torch

    rng = np.random.default_rng(seed)
    total, count = torch.zeros(CELLS, len(THINGS), 32), torch.zeros(CELLS, len(THINGS), 1)
    places = torch.arange(CELLS)
    for _ in range(rounds):
        codes = rng.integers(1, len(THINGS), (128, CELLS))
        codes = np.where(rng.random(codes.shape) < 0.4, codes, 0)
        for row, z in zip(torch.from_numpy(codes), encode_codes(vae, codes), strict=True):
            total[places, row] += z
            count[places, row] += 1
    return total / count.clamp(min=1)


class Pool:
    """Random training scenes with their encoded latents, a few replaced on every draw."""

    def __init__(self, vae: Any, rng: random.Random, size: int, refresh: int) -> None:
        self.vae, self.rng, self.refresh = vae, rng, refresh
        self.scenes: list[Scene] = [train_scene(rng) for _ in range(size)]
        self.latents = encode_codes(vae, np.array([s.codes for s in self.scenes]))
        self.next = 0

    def draw(self, count: int, single: float) -> tuple[list[Example], Any]:
        """`count` examples (a share `single` of one step, of the rest 70 % two and 30 % three) and their sources'
        latents, float [B, 16, 32]."""
        if self.refresh:
            where = [(self.next + i) % len(self.scenes) for i in range(self.refresh)]
            self.next = (self.next + self.refresh) % len(self.scenes)
            for i in where:
                self.scenes[i] = train_scene(self.rng)
            self.latents[where] = encode_codes(self.vae, np.array([self.scenes[i].codes for i in where]))
        examples: list[Example] = []
        places: list[int] = []
        while len(examples) < count:
            many = (1 - single) * 0.7
            steps = self.rng.choices((1, 2, 3), (single, many, 1 - single - many))[0]
            place = self.rng.randrange(len(self.scenes))
            style = self.rng.choices(STYLES, STYLE_SHARES)[0]
            example = draw_edit(self.rng, self.scenes[place], steps, style)
            if example is not None:
                examples.append(example)
                places.append(place)
        return examples, self.latents[places]
