"""The exact checker: any picture back to a scene, and any checklist to its true answers. No model is asked.

A cell is *sharp* where it is close to one drawing and clearly closer to it than to any other; a blurred, mixed or
damaged cell is not, and fails the quality item.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from premeditate.microworld.language import PlanError, parse_thing
from premeditate.microworld.render import CELL, SIDE, cells_of, templates
from premeditate.microworld.scene import CELL_NAMES, CELLS, Scene
from premeditate.trace import ChecklistItem

MAX_DISTANCE = 0.12
"""Root mean square pixel difference (0-1) to the nearest drawing above which a cell is not sharp."""
MAX_RATIO = 0.72
"""Distance to the nearest drawing over distance to the next above which a cell is ambiguous."""
NOT_A_SCENE = 0.30
"""Median cell distance above which a picture is no scene at all."""


class NotAScene(ValueError):
    """The picture is not a micro-world scene."""


@dataclass(frozen=True)
class Decoded:
    """`scene`: the nearest scene. `sharp`: per cell. `distance`: per cell, rms in 0-1."""

    scene: Scene
    sharp: tuple[bool, ...]
    distance: tuple[float, ...]


_TABLE: dict[str, np.ndarray] = {}


def _table() -> tuple[np.ndarray, np.ndarray]:
    if not _TABLE:
        flat = templates().reshape(CELLS, -1, CELL * CELL * 3).astype(np.float32) / 255
        _TABLE["flat"], _TABLE["norm"] = flat, (flat**2).sum(-1)
    return _TABLE["flat"], _TABLE["norm"]


def decode_arrays(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 [B, 64, 64, 3] -> codes int [B, 16], sharp bool [B, 16], rms distance float [B, 16]."""
    flat, norm = _table()
    x = cells_of(images).reshape(len(images), CELLS, -1).astype(np.float32) / 255
    square = (x**2).sum(-1)[..., None] - 2 * np.einsum("bcd,ckd->bck", x, flat, optimize=True) + norm
    distance = np.sqrt(np.maximum(square, 0) / flat.shape[-1])
    two = np.partition(distance, 1, axis=-1)[..., :2]
    codes = distance.argmin(-1)
    sharp = (two[..., 0] <= MAX_DISTANCE) & (two[..., 0] <= MAX_RATIO * two[..., 1])
    return codes, sharp, two[..., 0]


def decode(image: Image.Image) -> Decoded:
    """Reads a picture of 64x64 pixels or a whole multiple. Raises NotAScene for anything else."""
    width, height = image.size
    if width != height or width % SIDE:
        raise NotAScene(f"a scene is {SIDE}x{SIDE} pixels or a whole multiple, this picture is {width}x{height}")
    if width != SIDE:
        image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    codes, sharp, distance = (a[0] for a in decode_arrays(np.asarray(image.convert("RGB"))[None]))
    if float(np.median(distance)) > NOT_A_SCENE or sharp.sum() < CELLS // 4:
        raise NotAScene("the picture does not look like a micro-world scene")
    return Decoded(Scene.from_codes(codes), tuple(map(bool, sharp)), tuple(map(float, distance)))


def checklist(source: Scene, target: Scene) -> tuple[ChecklistItem, ...]:
    """The true checklist of an edit: what each changed cell must hold, that the rest is kept, and that all is sharp."""
    changed = source.changed(target)
    items = []
    for index in changed:
        thing, name = target[index], CELL_NAMES[index]
        question = f"is {name} empty?" if thing is None else f"is there a {thing} at {name}?"
        items.append(ChecklistItem(question=question, dimension="follow"))
    keep = f"is everything except {' and '.join(CELL_NAMES[i] for i in changed)} unchanged?"
    items.append(ChecklistItem(question=keep, dimension="keep"))
    items.append(ChecklistItem(question="is every shape sharp?", dimension="quality"))
    return tuple(items)


_NAME = f"(?:{'|'.join(CELL_NAMES)})"
_THERE = re.compile(rf"is there an? (?P<thing>[a-z]+ [a-z]+ [a-z]+) at (?P<cell>{_NAME})")
_EMPTY = re.compile(rf"is (?P<cell>{_NAME}) empty")
_KEEP = re.compile(rf"is everything except (?P<cells>{_NAME}(?: and {_NAME})*) unchanged")
_SHARP = re.compile(r"is every shape sharp")


def _clean(question: str) -> str:
    return " ".join(question.lower().strip().rstrip("?").split())


def answer(question: str, source: Scene, edit: Decoded) -> bool | None:
    """The true answer, or None for a question the checker cannot read."""
    text = _clean(question)
    if found := _THERE.fullmatch(text):
        try:
            return edit.scene[CELL_NAMES.index(found["cell"])] == parse_thing(found["thing"])
        except PlanError:
            return None
    if found := _EMPTY.fullmatch(text):
        return edit.scene[CELL_NAMES.index(found["cell"])] is None
    if found := _KEEP.fullmatch(text):
        free = {CELL_NAMES.index(name) for name in found["cells"].split(" and ")}
        return all(i in free for i in source.changed(edit.scene))
    if _SHARP.fullmatch(text):
        return all(edit.sharp)
    return None


def is_exact(target: Scene, edit: Decoded) -> bool:
    """Success: every cell holds what it must, sharply. The same as an all-yes true checklist."""
    return edit.scene == target and all(edit.sharp)


def same_checklist(one: Sequence[ChecklistItem], other: Sequence[ChecklistItem]) -> bool:
    """Equal as sets of questions, wording normalised and cells of a keep item in any order."""

    def key(item: ChecklistItem) -> tuple[str, ...]:
        text = _clean(item.question)
        found = _KEEP.fullmatch(text)
        return ("keep", *sorted(found["cells"].split(" and "))) if found else (text,)

    return {key(i) for i in one} == {key(i) for i in other}
