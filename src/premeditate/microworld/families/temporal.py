"""Temporal: what time does. Things stand for what they look like: ice is a cyan square, water a blue circle, a tomato
a circle (green, then red), a leaf a green star, a tree a green triangle, a candle an orange square, iron a gray square,
the sun a yellow circle."""

from __future__ import annotations

import random

from premeditate.microworld.families import base as f
from premeditate.microworld.families.base import Draft, Family, Stage
from premeditate.microworld.scene import GRID, SIZES, Thing, cell, column_of, row_of

Words = tuple[str, ...]


def one_thing(
    shape: str,
    colour: str,
    words: Words,
    explanation: str,
    *,
    size: str | None = None,
    into: tuple[str | None, str | None, str | None] | None,
) -> f.Build:
    """A family in which one well-known thing becomes `into` (shape, colour, size; None keeps), or vanishes."""

    def build(rng: random.Random) -> Draft | None:
        stage = Stage(rng)
        before = Thing(shape, colour, size or rng.choice(SIZES))
        index = stage.place(before)
        stage.fill(2, 5, f.unlike(before))
        if into is None:
            step = f.remove(index)
        else:
            after = Thing(into[0] or before.shape, into[1] or before.colour, into[2] or before.size)
            changed = [a != b for a, b in zip(after, before, strict=True)]
            if changed == [False, True, False]:
                step = f.recolour(index, after.colour)
            elif changed == [False, False, True]:
                step = f.resize(index, after.size)
            else:
                step = f.change(index, after)
        return Draft(stage.scene(), (step,), rng.choice(words), explanation)

    return build


def _sunset(rng: random.Random) -> Draft | None:
    stage = Stage(rng)
    sun = Thing("circle", "yellow", rng.choice(SIZES))
    index = stage.place(sun, cell(rng.randrange(GRID), rng.randrange(GRID - 1)))
    down = cell(column_of(index), GRID - 1)
    stage.fill(2, 5, f.unlike(sun), among=[i for i in stage.free() if i != down])
    words = (
        "show the sun at the end of the day",
        "the sun goes down to the bottom row",
        "evening comes : where is the sun",
    )
    assert row_of(index) < GRID - 1
    return Draft(stage.scene(), (f.move(index, down),), rng.choice(words), "the sun sinks straight to the bottom row")


FAMILIES = (
    Family(
        "melt",
        "temporal",
        one_thing(
            "square",
            "cyan",
            (
                "show the ice after an hour in the sun",
                "what does the ice look like once it has melted",
                "it is a hot afternoon : let the ice melt",
            ),
            "ice melts into water, which is a blue circle",
            into=("circle", "blue", None),
        ),
    ),
    Family(
        "ripen",
        "temporal",
        one_thing(
            "circle",
            "green",
            ("show the tomato when it is ripe", "the unripe tomato two weeks later", "let the green tomato ripen"),
            "a ripe tomato is red",
            into=(None, "red", None),
        ),
    ),
    Family(
        "autumn",
        "temporal",
        one_thing(
            "star",
            "green",
            ("show the leaf in autumn", "what does the leaf look like in october", "summer ends and the leaf turns"),
            "an autumn leaf is orange",
            into=(None, "orange", None),
        ),
    ),
    Family(
        "grow",
        "temporal",
        one_thing(
            "triangle",
            "green",
            (
                "show the young tree ten years later",
                "what does the tree look like when it has grown",
                "ten years pass for the small tree",
            ),
            "a tree grows large",
            size="small",
            into=(None, None, "large"),
        ),
    ),
    Family(
        "burn_down",
        "temporal",
        one_thing(
            "square",
            "orange",
            (
                "show the candle after burning all night",
                "what is left of the candle in the morning",
                "the candle has burned for many hours",
            ),
            "a candle that burns gets small",
            size="large",
            into=(None, None, "small"),
        ),
    ),
    Family(
        "rust",
        "temporal",
        one_thing(
            "square",
            "gray",
            (
                "show the iron after a year in the rain",
                "what does the iron look like when it has rusted",
                "the iron was left outside for years",
            ),
            "rusty iron is orange",
            into=(None, "orange", None),
        ),
    ),
    Family("sunset", "temporal", _sunset),
)
