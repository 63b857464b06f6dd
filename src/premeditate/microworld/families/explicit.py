"""Explicit edits: what is wanted is said outright, by description. Eight operations, and sequences of two and three."""

from __future__ import annotations

import random

from premeditate.microworld.families import base as f
from premeditate.microworld.families.base import Draft, Family, ref
from premeditate.microworld.language import OPERATIONS, Step, canonical
from premeditate.microworld.scene import (
    CELL_NAMES,
    COLOURS,
    SHAPES,
    SIZES,
    Scene,
    random_scene,
    random_thing,
)


def random_step(rng: random.Random, scene: Scene, op: str | None = None) -> Step | None:
    """A random step that can be carried out in `scene` and changes it; things are named by cell. None if impossible."""
    op = op or rng.choice(OPERATIONS)
    full = [i for i, _ in scene.things()]
    free = [i for i, t in enumerate(scene.cells) if t is None]
    if op == "add":
        return f.add(random_thing(rng), rng.choice(free)) if free else None
    if not full:
        return None
    index = rng.choice(full)
    thing = scene[index]
    assert thing is not None
    match op:
        case "recolour":
            return f.recolour(index, f.other_than(rng, COLOURS, thing.colour))
        case "remove":
            return f.remove(index)
        case "move":
            return f.move(index, rng.choice(free)) if free else None
        case "resize":
            return f.resize(index, f.other_than(rng, SIZES, thing.size))
        case "reshape":
            return f.reshape(index, f.other_than(rng, SHAPES, thing.shape))
        case "replace":
            new = random_thing(rng)
            return f.change(index, new) if new != thing else None
        case _:
            others = [i for i in full if scene[i] != thing]
            return f.swap(index, rng.choice(others)) if others else None


_WORDS = {
    "recolour": ("paint {it} {value}", "make {it} {value}", "change the colour of {it} to {value}"),
    "remove": ("remove {it}", "take {it} away", "delete {it}"),
    "add": ("add a {thing} at {to}", "put a {thing} at {to}", "place a {thing} at {to}"),
    "move": ("move {it} to {to}", "bring {it} to {to}", "shift {it} to {to}"),
    "swap": ("swap {it} and {other}", "let {it} and {other} trade places", "exchange {it} and {other}"),
    "resize": ("make {it} {value}", "change the size of {it} to {value}", "let {it} be {value}"),
    "reshape": ("turn {it} into a {value}", "make {it} a {value}", "change {it} to a {value}"),
    "replace": ("replace {it} with a {thing}", "put a {thing} in place of {it}", "change {it} to a {thing}"),
}


def describe_step(rng: random.Random, scene: Scene, step: Step) -> str | None:
    """An instruction for one step that names things by colour and shape; None where that would be ambiguous."""

    def name(index: int) -> str | None:
        thing = scene[index]
        assert thing is not None
        return ref(thing) if len(scene.find(lambda t: f.alike(t, thing))) == 1 else None

    it = None if step.ref is None else name(step.ref.resolve(scene))
    other = None if step.other is None else name(step.other.resolve(scene))
    if (step.ref and not it) or (step.other and not other):
        return None
    to = "" if step.to is None else CELL_NAMES[step.to]
    return rng.choice(_WORDS[step.op]).format(it=it, other=other, to=to, value=step.value, thing=step.thing)


def _sequence(ops: tuple[str | None, ...]) -> f.Build:
    def build(rng: random.Random) -> Draft | None:
        source = scene = random_scene(rng)
        steps, words = [], []
        for op in ops:
            step = random_step(rng, scene, op)
            text = step and describe_step(rng, scene, step)
            if not step or not text:
                return None
            steps.append(step)
            words.append(text)
            scene = step.apply(scene)
        joined = " , then ".join(words) if rng.random() < 0.5 else " and then ".join(words)
        return Draft(source, canonical(source, steps)[0], joined, "the instruction says so outright")

    return build


FAMILIES = (
    *(Family(op, "explicit", _sequence((op,))) for op in OPERATIONS),
    Family("two_steps", "explicit", _sequence((None, None))),
    Family("three_steps", "explicit", _sequence((None, None, None))),
)
