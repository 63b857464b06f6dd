"""The exact checker as rewards: `graded` says how near an edit came, `success` whether it is exactly right.

Of the 16 cells of a picture, C hold something else in the target than in the source and K = 16 - C hold the same:

    follow  = cells of C that hold exactly the target, sharply / |C|
    keep    = cells of K that hold exactly what they held, sharply / |K|
    quality = sharp cells / 16
    success = 1 where all 16 hold exactly the target, sharply, else 0

Every picture has cells that can be looked at, so that one which is no scene any more scores low and is not missing:
a policy that wrecks its pictures must not go unpunished. A task without its truth in `meta["microworld"]` is missing.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from premeditate.microworld.checker import decode_arrays
from premeditate.microworld.render import SIDE
from premeditate.microworld.scene import CELLS, THINGS
from premeditate.rewards.base import Sample
from premeditate.trace import Task, Verdict

NO_TRUTH = "the task does not carry its source and target scenes in meta['microworld']"


class _Exact(ABC):
    """What both have in common: all pictures of a call are read at once."""

    name: str
    dimensions: tuple[str, ...]

    async def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        """One verdict per sample, in order: "scored", or "unavailable" where the task lacks its truth."""
        start = time.perf_counter()
        truths = [truth(sample.task) for sample in samples]
        known = [i for i, codes in enumerate(truths) if codes is not None]
        scores: dict[int, dict[str, float]] = {}
        if known:
            codes, sharp, _ = decode_arrays(np.stack([pixels(samples[i].edit) for i in known]))
            source, target = np.array([truths[i] for i in known]).transpose(1, 0, 2)
            right = sharp & (codes == target)
            whole = np.array([is_scene_size(samples[i].edit) for i in known])
            scores = dict(zip(known, self._scores(right, sharp, source != target, whole), strict=True))
        seconds = (time.perf_counter() - start) / max(1, len(samples))
        return [
            Verdict(status="scored", scores=scores[i], verifier=self.name, seconds=seconds)
            if i in scores
            else Verdict(status="unavailable", verifier=self.name, reason=NO_TRUTH, seconds=seconds)
            for i in range(len(samples))
        ]

    @abstractmethod
    def _scores(self, right: Any, sharp: Any, changes: Any, whole: Any) -> list[dict[str, float]]:
        """From bool [B, 16] (holds the target sharply; is sharp; had to change) and bool [B] (has a scene's size)."""


class Graded(_Exact):
    """follow, keep and quality, each in [0, 1]. A dimension without any cell (nothing had to change) is absent."""

    name = "graded"
    dimensions = ("follow", "keep", "quality")

    def _scores(self, right: Any, sharp: Any, changes: Any, whole: Any) -> list[dict[str, float]]:
        found = []
        for held, clear, change in zip(right, sharp, changes, strict=True):
            parts = {"follow": held[change], "keep": held[~change], "quality": clear}
            found.append({name: float(part.mean()) for name, part in parts.items() if part.size})
        return found


class Success(_Exact):
    """1.0 exactly where `checker.is_exact` is true, else 0.0."""

    name = "success"
    dimensions = ("success",)

    def _scores(self, right: Any, sharp: Any, changes: Any, whole: Any) -> list[dict[str, float]]:
        return [{"success": float(done)} for done in right.all(axis=1) & whole]


graded = Graded()
success = Success()


def truth(task: Task) -> tuple[list[int], list[int]] | None:
    """The codes of the source and target scene (16 integers in 0..64 each), None where the task lacks them."""
    meta = task.meta.get("microworld")
    if not isinstance(meta, dict):
        return None
    found = (meta.get("source"), meta.get("target"))
    return found if all(map(_is_scene, found)) else None  # type: ignore[return-value]


def _is_scene(codes: object) -> bool:
    return (
        isinstance(codes, list | tuple)
        and len(codes) == CELLS
        and all(isinstance(c, int) and 0 <= c < len(THINGS) for c in codes)
    )


def is_scene_size(image: Image.Image) -> bool:
    """Whether the checker reads pictures of this size: 64x64 or a whole multiple."""
    return image.width == image.height and image.width % SIDE == 0


def pixels(image: Image.Image) -> np.ndarray:
    """uint8 [64, 64, 3], averaged down (or stretched) where the picture has another size."""
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(image.convert("RGB"))
