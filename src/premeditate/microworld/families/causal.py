"""Causal: what a push, wind, a flame, water, a needle, cold, a magnet or paint does."""

from __future__ import annotations

import random

from premeditate.microworld.families import base as f
from premeditate.microworld.families.base import Draft, Family, Stage, ref
from premeditate.microworld.families.temporal import one_thing
from premeditate.microworld.scene import GRID, SIZES, Scene, Thing, cell, column_of, random_thing, row_of

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MIXES = {
    ("red", "yellow"): "orange",
    ("yellow", "red"): "orange",
    ("blue", "yellow"): "green",
    ("yellow", "blue"): "green",
    ("red", "blue"): "purple",
    ("blue", "red"): "purple",
}


def slide(scene: Scene, index: int, direction: str) -> int:
    """The last free cell in a direction before the edge or another thing."""
    dx, dy = DIRECTIONS[direction]
    x, y = column_of(index), row_of(index)
    while 0 <= x + dx < GRID and 0 <= y + dy < GRID and scene[cell(x + dx, y + dy)] is None:
        x, y = x + dx, y + dy
    return cell(x, y)


def _crowd(rng: random.Random, thing: Thing) -> tuple[Scene, int]:
    stage = Stage(rng)
    index = stage.place(thing)
    stage.fill(2, 5, f.unlike(thing))
    return stage.scene(), index


def _gust(rng: random.Random) -> Draft | None:
    thing = random_thing(rng)
    source, index = _crowd(rng, thing)
    direction = rng.choice(("left", "right"))
    to = slide(source, index, direction)
    if to == index:
        return None
    words = (
        "strong wind blows {it} all the way to the {way}",
        "{it} slides {way} until something stops it",
        "wind pushes {it} as far {way} as it can go",
    )
    text = rng.choice(words).format(it=ref(thing), way=direction)
    return Draft(source, (f.move(index, to),), text, "wind moves it until the edge or another thing stops it")


def _push(rng: random.Random) -> Draft | None:
    thing = random_thing(rng)
    source, index = _crowd(rng, thing)
    direction = rng.choice(tuple(DIRECTIONS))
    dx, dy = DIRECTIONS[direction]
    x, y = column_of(index) + dx, row_of(index) + dy
    if not (0 <= x < GRID and 0 <= y < GRID) or source[cell(x, y)] is not None:
        return None
    words = (
        "push {it} one cell {way}",
        "{it} gets a gentle push {way} : it moves one cell",
        "someone nudges {it} {way} by one cell",
    )
    text = rng.choice(words).format(it=ref(thing), way=direction)
    return Draft(source, (f.move(index, cell(x, y)),), text, "a push moves it by one cell")


def _mix(rng: random.Random) -> Draft | None:
    (have, paint), mixed = rng.choice(tuple(MIXES.items()))
    thing = random_thing(rng, colour=have)
    source, index = _crowd(rng, thing)
    words = (
        "mix {paint} paint into {it}",
        "what happens when {paint} paint is stirred into {it}",
        "pour {paint} colour into {it} and mix",
    )
    text = rng.choice(words).format(it=ref(thing), paint=paint)
    return Draft(source, (f.recolour(index, mixed),), text, f"{have} and {paint} make {mixed}")


def _magnet(rng: random.Random) -> Draft | None:
    source, index = _crowd(rng, Thing("square", "gray", rng.choice(SIZES)))
    direction = rng.choice(("left", "right"))
    to = slide(source, index, direction)
    if to == index:
        return None
    words = (
        "a magnet on the {way} pulls the iron",
        "put a magnet at the {way} edge : what happens to the iron",
        "the iron follows the magnet on the {way}",
    )
    text = rng.choice(words).format(way=direction)
    return Draft(source, (f.move(index, to),), text, "the magnet pulls iron until something stops it")


FAMILIES = (
    Family("gust", "causal", _gust),
    Family("push", "causal", _push),
    Family("mix", "causal", _mix),
    Family("magnet", "causal", _magnet),
    Family(
        "flame",
        "causal",
        one_thing(
            "triangle",
            "green",
            ("a flame reaches the tree", "what is left of the tree after a fire", "hold a flame to the tree"),
            "a burnt tree leaves a small heap of ash, a small gray circle",
            into=("circle", "gray", "small"),
        ),
    ),
    Family(
        "douse",
        "causal",
        one_thing(
            "triangle",
            "red",
            ("pour water over the fire", "rain falls on the fire", "what does water do to the fire"),
            "water puts the fire, a red triangle, out",
            into=None,
        ),
    ),
    Family(
        "pop",
        "causal",
        one_thing(
            "circle",
            "purple",
            ("a needle touches the balloon", "pop the balloon", "what happens when the balloon meets a needle"),
            "the balloon, a purple circle, pops and is gone",
            into=None,
        ),
    ),
    Family(
        "freeze",
        "causal",
        one_thing(
            "circle",
            "blue",
            (
                "put the water in the freezer",
                "the water freezes over night",
                "what does the water become in the freezer",
            ),
            "water freezes to ice, which is a cyan square",
            into=("square", "cyan", None),
        ),
    ),
    Family(
        "heat_ice",
        "causal",
        one_thing(
            "square",
            "cyan",
            ("hold a flame to the ice", "a flame reaches the ice", "what is left of the ice after a fire"),
            "a flame melts ice to water, which is a blue circle",
            into=("circle", "blue", None),
        ),
        held_out=True,
    ),
)
