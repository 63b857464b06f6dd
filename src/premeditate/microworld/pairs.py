"""Pairs of edits of micro-world tasks, of which the exact checker prefers one.

An edit is made from the target by one graded damage:

    none            the target itself
    blurred cell    right, but one cell is not sharp
    extra change    right, and one cell beside the edit was changed too
    wrong colour    one changed cell holds its thing in another colour
    wrong cell      one changed thing stands elsewhere
    unedited        the source picture

The preferred edit is the one that is exactly right, else the one with the larger mean of follow, keep and quality
(`premeditate.microworld.reward.Graded`).
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image, ImageFilter

from premeditate.datasets.preferences import Pair, Preference, same
from premeditate.microworld.checker import decode_arrays
from premeditate.microworld.render import CELL, render
from premeditate.microworld.scene import CELLS, COLOURS, SIZES, Scene, Thing, column_of, random_thing, row_of
from premeditate.microworld.tasks import MicroTask, Split, sample_task

Damage = Literal["none", "blurred cell", "extra change", "wrong colour", "wrong cell", "unedited"]
DAMAGES: tuple[Damage, ...] = get_args(Damage)


class Grade(NamedTuple):
    """How good an edit is: `success` first, then `mean` of follow, keep and quality, in [0, 1]."""

    success: bool
    mean: float


def micro_pairs(n: int, seed: int = 0, split: Split = "train", *, ties: bool = False) -> list[Pair]:
    """`n` pairs; different `seed`s give different ones as long as n <= 100,000, and the same call gives the same pairs.

    Every pair is of another task; which of the two is preferred is left to chance. `ties`: pairs that the checker finds
    equally good may come too, with the preference "tie". `meta` holds the task's truth, so that the exact rewards
    can score them, and {"damages": [two], "grades": [two]}. Raises ValueError for a negative `n`.
    """
    if n < 0:
        raise ValueError(f"n is {n}; give 0 or more")
    return [_pair(sample_task(seed * 100_000 + i, split), ties) for i in range(n)]


def training_pairs(n: int, seed: int = 0) -> list[Pair]:
    """`micro_pairs` for the training of a judge: each brings its true checklist along, in meta["checklist"]."""
    return [_with_checklist(pair) for pair in micro_pairs(n, seed, "train")]


def held_out_pairs(n: int, seed: int = 0) -> list[Pair]:
    """As `training_pairs`, from test seeds."""
    return [_with_checklist(pair) for pair in micro_pairs(n, seed, "test")]


def _with_checklist(pair: Pair) -> Pair:
    return replace(pair, meta={**pair.meta, "checklist": pair.meta["microworld"]["checklist"]})


def _pair(task: MicroTask, ties: bool) -> Pair:
    rng = random.Random(f"pairs/{task.id}")
    while True:
        one, other = rng.sample(DAMAGES, 2)
        pictures = damaged(task, one, rng), damaged(task, other, rng)
        if pictures[0] is None or pictures[1] is None or same(pictures[0], pictures[1]):
            continue
        grades = grade(task, pictures[0]), grade(task, pictures[1])
        if grades[0] == grades[1] and not ties:
            continue
        preference: Preference = "tie" if grades[0] == grades[1] else "first" if grades[0] > grades[1] else "second"
        meta = {**task.meta(), "damages": [one, other], "grades": [g.mean for g in grades]}
        return Pair(task.id, task.instruction, render(task.source), pictures[0], pictures[1], preference, task.kind,
                    names=(f"{task.id}/1", f"{task.id}/2"), meta=meta)  # fmt: skip


def damaged(task: MicroTask, damage: Damage, rng: random.Random) -> Image.Image | None:
    """The edit of `task` with this damage (64x64, RGB), None where the scene has no place for it."""
    source, target = task.source, task.target
    changed = source.changed(target)
    rest = [i for i in range(CELLS) if i not in changed]
    things = [i for i in changed if target[i] is not None]
    free = [i for i in rest if target[i] is None]
    match damage:
        case "none":
            return render(target)
        case "unedited":
            return render(source)
        case "blurred cell":
            return _blurred(target, rng)
        case "wrong colour":
            if not things:
                return None
            place = rng.choice(things)
            return render(target.put(place, _recoloured(target[place], source[place], rng)))
        case "wrong cell":
            if not things or not free:
                return None
            place = rng.choice(things)
            return render(target.put(place, source[place]).put(rng.choice(free), target[place]))
        case "extra change":
            if not rest:
                return None
            place = rng.choice(rest)
            thing = target[place]
            return render(target.put(place, random_thing(rng) if thing is None else _recoloured(thing, None, rng)))


def grade(task: MicroTask, image: Image.Image) -> Grade:
    """The exact checker's word on an edit of 64x64 pixels."""
    codes, sharp, _ = (part[0] for part in decode_arrays(np.asarray(image.convert("RGB"))[None]))
    right = sharp & (codes == np.array(task.target.codes))
    changes = np.array(task.source.codes) != np.array(task.target.codes)
    parts = [part.mean() for part in (right[changes], right[~changes], sharp) if part.size]
    return Grade(bool(right.all()), float(np.mean(parts)))


def _recoloured(thing: Thing | None, not_this: Thing | None, rng: random.Random) -> Thing:
    assert thing is not None
    taken = {thing.colour} | ({not_this.colour} if not_this is not None else set())
    return thing._replace(colour=rng.choice([c for c in COLOURS if c not in taken]))


def _blurred(scene: Scene, rng: random.Random) -> Image.Image | None:
    """The scene with one thing mixed with its other size and blurred until its cell is not sharp."""
    occupied = [i for i, _ in scene.things()]
    if not occupied:
        return None
    place = rng.choice(occupied)
    thing = scene[place]
    assert thing is not None
    other = thing._replace(size=SIZES[1 - SIZES.index(thing.size)])
    mixed = Image.blend(render(scene), render(scene.put(place, other)), 0.5)
    left, top = CELL * column_of(place), CELL * row_of(place)
    box = (left, top, left + CELL, top + CELL)
    for radius in (1.5, 2.5, 4.0):
        picture = mixed.copy()
        picture.paste(mixed.crop(box).filter(ImageFilter.GaussianBlur(radius)), box)
        _, sharp, _ = decode_arrays(np.asarray(picture)[None])
        if not sharp[0][place]:
            return picture
    return None
