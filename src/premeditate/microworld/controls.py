"""Control questions in the micro world's words, for a judge that knows no others.

As `premeditate.rewards.checklists.controls.plain`: one question that is surely yes and one that is surely no, both read
off the edit's pixels by the exact checker, so that a judge that obeys a painted text answers them alike.

    ChecklistVerifier(reasoner, canary=True, controls=micro_controls)
"""

from __future__ import annotations

import hashlib
import random

from premeditate.microworld.checker import decode_arrays
from premeditate.microworld.reward import is_scene_size, pixels
from premeditate.microworld.scene import CELL_NAMES, CELLS, COLOURS, SHAPES, SIZES, Scene, Thing, random_thing
from premeditate.rewards.base import Sample
from premeditate.rewards.checklists.controls import Control


def micro_controls(sample: Sample) -> tuple[Control, ...]:
    """Two questions about the edit: what a sharp cell really holds, and what one does not hold.

    The cells are drawn by the picture's own pixels, so that the same picture is asked the same. Cells that the edit
    damaged are not asked about; where nothing sharp is left, one question remains: whether every shape is sharp (no).
    So a text that covers everything does not go free. A picture of another size than a scene's has none."""
    if not is_scene_size(sample.edit):
        return ()
    codes, clear, _ = (part[0] for part in decode_arrays(pixels(sample.edit)[None]))
    scene, sharp = Scene.from_codes(codes), [i for i in range(CELLS) if clear[i]]
    if not sharp:
        return (Control("is every shape sharp?", right=False),)
    rng = random.Random(hashlib.sha256(sample.edit.tobytes()).digest())
    held = [i for i in sharp if scene[i] is not None] or sharp
    yes, no = rng.choice(held), rng.choice(held)
    thing, there = scene[yes], scene[no] or random_thing(rng)
    wrong = Thing(_another(rng, SHAPES, there.shape), _another(rng, COLOURS, there.colour),
                  _another(rng, SIZES, there.size))  # fmt: skip
    name = CELL_NAMES[yes]
    return (
        Control(f"is {name} empty?" if thing is None else f"is there a {thing} at {name}?", right=True),
        Control(f"is there a {wrong} at {CELL_NAMES[no]}?", right=False),
    )


def _another(rng: random.Random, words: tuple[str, ...], word: str) -> str:
    return rng.choice([other for other in words if other != word])
