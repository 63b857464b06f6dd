"""An editor that knows the micro world's rules and breaks them by degrees: right edits, and partly wrong ones.

It carries out the plan that its prompt is, and then spoils the outcome. What is spoilt depends on the seed alone:

    nothing           the edit is right
    unedited          the source picture
    1 to 3 damages    each in a cell of its own: a change that was not made, that went to another cell or came out in
                      another colour, shape or size; or, beside the edit, a thing that was changed, lost or put there;
                      and at most one thing that is not sharp

`premeditate data rrm ... --editor premeditate.microworld.damages:editor` makes edits whose principles fail one by one.
"""

from __future__ import annotations

import random

from PIL import Image

from premeditate.editors.callable import CallableEditor
from premeditate.microworld.checker import decode
from premeditate.microworld.language import execute, parse_plan
from premeditate.microworld.pairs import damaged
from premeditate.microworld.render import render
from premeditate.microworld.scene import CELLS, COLOURS, SHAPES, SIZES, Scene, Thing, random_thing
from premeditate.microworld.tasks import MicroTask

COUNTS = {0: 0.22, 1: 0.42, 2: 0.2, 3: 0.1, None: 0.06}
"""Shares of edits with so many damages; None: unedited."""
EDITED = {"not made": 3.0, "elsewhere": 2.0, "colour": 2.0, "shape": 1.0, "size": 1.0}
BESIDE = {"changed": 1.0, "lost": 1.0, "put there": 1.0}
"""Weights of the damages in a cell that the plan changes, and in one that it does not."""
ON_EDITED, BLURRED = 0.6, 0.2
"""Shares of damages in a changed cell, and of those that are a blur."""


def damaging(image: Image.Image, prompt: str, seed: int) -> Image.Image:
    """The edit of `image` (a scene) by the plan `prompt`, damaged as `seed` says (64 x 64 pixels, RGB). Raises
    `PlanError` for a prompt that is no plan or cannot be carried out, `NotAScene` for another picture."""
    source = decode(image).scene
    target = execute(source, parse_plan(prompt))
    rng = random.Random(f"damages/{seed}")
    count = rng.choices(list(COUNTS), list(COUNTS.values()))[0]
    return render(source) if count is None else _damaged(source, target, count, rng)


def _damaged(source: Scene, target: Scene, count: int, rng: random.Random) -> Image.Image:
    changed = source.changed(target)
    scene, free, blurred = target, set(range(CELLS)), False
    for _ in range(count):
        if not blurred and rng.random() < BLURRED:
            blurred = True
            continue
        edited = [i for i in changed if i in free]
        beside = [i for i in range(CELLS) if i in free and i not in changed]
        if edited and rng.random() < ON_EDITED:
            scene, used = _spoil(scene, source, rng.choice(edited), beside, rng)
        else:
            scene, used = _disturb(scene, rng.choice(beside), rng)
        free -= used
    if not blurred:
        return render(scene)
    task = MicroTask("", "", "", source, scene, (), "", 0, "train")
    return damaged(task, "blurred cell", rng) or render(scene)


def _spoil(scene: Scene, source: Scene, place: int, beside: list[int], rng: random.Random) -> tuple[Scene, set[int]]:
    """One change of the plan that is missing or wrong, and the cells that this took."""
    thing = scene[place]
    damage = rng.choices(list(EDITED), list(EDITED.values()))[0]
    if damage == "elsewhere" and thing is not None:
        empty = [i for i in beside if scene[i] is None]
        if empty:
            there = rng.choice(empty)
            return scene.put(place, source[place]).put(there, thing), {place, there}
    if damage in ("not made", "elsewhere") or thing is None:
        return scene.put(place, source[place]), {place}
    return scene.put(place, _other(thing, damage, source[place], rng)), {place}


def _disturb(scene: Scene, place: int, rng: random.Random) -> tuple[Scene, set[int]]:
    """One change that the plan does not ask for."""
    thing = scene[place]
    if thing is None:
        return scene.put(place, random_thing(rng)), {place}
    damage = rng.choices(list(BESIDE), list(BESIDE.values()))[0]
    if damage == "lost":
        return scene.put(place, None), {place}
    if damage == "changed":
        return scene.put(place, _other(thing, rng.choice(("colour", "shape", "size")), None, rng)), {place}
    return scene.put(place, rng.choice([t for t in (random_thing(rng) for _ in range(9)) if t != thing])), {place}


def _other(thing: Thing, what: str, not_this: Thing | None, rng: random.Random) -> Thing:
    """The thing with another colour, shape or size. It may become `not_this` only where nothing else is left."""
    known = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}[what]
    found = [thing._replace(**{what: word}) for word in known if word != getattr(thing, what)]
    return rng.choice([t for t in found if t != not_this] or found)


editor = CallableEditor(damaging, name="damages")
