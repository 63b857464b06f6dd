"""Spatial: gravity, mirrors, rows, orders, corners, between, beside."""

from __future__ import annotations

import random

from premeditate.microworld.families import base as f
from premeditate.microworld.families.base import Draft, Family, Stage, ref
from premeditate.microworld.families.causal import DIRECTIONS, slide
from premeditate.microworld.scene import CELL_NAMES, CELLS, GRID, Thing, cell, column_of, random_thing, row_of

CORNERS = (0, GRID - 1, CELLS - GRID, CELLS - 1)


def _gravity(rng: random.Random) -> Draft | None:
    stage = Stage(rng)
    thing = random_thing(rng)
    index = stage.place(thing, cell(rng.randrange(GRID), rng.randrange(GRID - 1)))
    stage.fill(2, 5, f.unlike(thing))
    source = stage.scene()
    to = slide(source, index, "down")
    if to == index:
        return None
    words = ("let {it} fall", "gravity pulls {it} down", "drop {it} : where does it land")
    return Draft(
        source,
        (f.move(index, to),),
        rng.choice(words).format(it=ref(thing)),
        "it falls until the ground or another thing stops it",
    )


def _mirror(axis: str) -> f.Build:
    def build(rng: random.Random) -> Draft | None:
        stage = Stage(rng)
        thing = random_thing(rng)
        index = stage.place(thing)
        x, y = column_of(index), row_of(index)
        to = cell(GRID - 1 - x, y) if axis == "right" else cell(x, GRID - 1 - y)
        stage.fill(2, 5, f.unlike(thing), among=[i for i in stage.free() if i != to])
        if axis == "right":
            words = (
                "mirror {it} left to right",
                "flip {it} to the other side , left to right",
                "move {it} to its mirror place from left to right",
            )
        else:
            words = (
                "mirror {it} top to bottom",
                "flip {it} to the other side , top to bottom",
                "move {it} to its mirror place from top to bottom",
            )
        return Draft(
            stage.scene(),
            (f.move(index, to),),
            rng.choice(words).format(it=ref(thing)),
            "the mirror place is as far from the other edge",
        )

    return build


def _align(rng: random.Random) -> Draft | None:
    stage = Stage(rng)
    row, hole = rng.randrange(GRID), rng.randrange(GRID)
    shape = random_thing(rng).shape
    for x in range(GRID):
        if x != hole:
            stage.place(random_thing(rng, shape=shape), cell(x, row))
    away = rng.choice([r for r in range(GRID) if r != row])
    index = stage.place(random_thing(rng, shape=shape), cell(hole, away))
    words = (
        f"line up the {shape}s in one row",
        f"put the stray {shape} back in line",
        f"bring all {shape}s into a row",
    )
    return Draft(
        stage.scene(),
        (f.move(index, cell(hole, row)),),
        rng.choice(words),
        f"three stand in row {row + 1}, the stray one belongs in its gap",
    )


def _extremes(rng: random.Random) -> Draft | None:
    stage = Stage(rng)
    stage.fill(3, 6)
    source = stage.scene()
    columns = sorted(column_of(i) for i, _ in source.things())
    if len(columns) < 2 or columns[0] == columns[1] or columns[-1] == columns[-2]:
        return None
    left, right = (next(i for i, _ in source.things() if column_of(i) == c) for c in (columns[0], columns[-1]))
    if source[left] == source[right]:
        return None
    words = (
        "swap the leftmost and the rightmost thing",
        "let the leftmost and rightmost things trade places",
        "exchange the outermost things , left and right",
    )
    return Draft(source, (f.swap(left, right),), rng.choice(words), "they are alone in the outer columns")


def _between(rng: random.Random) -> Draft | None:
    stage = Stage(rng)
    pair = random_thing(rng)
    x, row = rng.randrange(GRID - 2), rng.randrange(GRID)
    horizontal = rng.random() < 0.5
    spots = [cell(x + k, row) if horizontal else cell(row, x + k) for k in range(3)]
    stage.place(pair._replace(size=rng.choice(("small", "large"))), spots[0])
    stage.place(pair._replace(size=rng.choice(("small", "large"))), spots[2])
    stage.fill(1, 4, f.unlike(pair), among=[i for i in stage.free() if i != spots[1]])
    new = random_thing(rng)
    words = (
        "put a {new} between the two {pair}s",
        "add a {new} in the gap between the {pair}s",
        "a {new} stands between the two {pair}s",
    )
    return Draft(
        stage.scene(),
        (f.add(new, spots[1]),),
        rng.choice(words).format(new=new, pair=f"{pair.colour} {pair.shape}"),
        f"{CELL_NAMES[spots[1]]} lies between them",
    )


def free_corner(rng: random.Random) -> tuple[Stage, Thing, int, int]:
    """A stage with one free corner and a thing elsewhere: the stage, the thing, its cell, the free corner."""
    stage = Stage(rng)
    target = rng.choice(CORNERS)
    thing = random_thing(rng)
    index = stage.place(thing, rng.choice([i for i in range(CELLS) if i not in CORNERS]))
    for corner in CORNERS:
        if corner != target:
            while f.alike(other := random_thing(rng), thing):
                pass
            stage.place(other, corner)
    return stage, thing, index, target


def _corner(rng: random.Random) -> Draft | None:
    stage, thing, index, target = free_corner(rng)
    words = ("move {it} to the free corner", "{it} goes to the only empty corner", "fill the last corner with {it}")
    return Draft(
        stage.scene(),
        (f.move(index, target),),
        rng.choice(words).format(it=ref(thing)),
        f"{CELL_NAMES[target]} is the free corner",
    )


def _beside(rng: random.Random) -> Draft | None:
    stage = Stage(rng)
    thing = random_thing(rng)
    index = stage.place(thing)
    stage.fill(2, 4, f.unlike(thing))
    side = rng.choice(("left of", "right of", "above", "below"))
    way = {"left of": "left", "right of": "right", "above": "up", "below": "down"}[side]
    dx, dy = DIRECTIONS[way]
    x, y = column_of(index) + dx, row_of(index) + dy
    if not (0 <= x < GRID and 0 <= y < GRID) or stage.cells[cell(x, y)] is not None:
        return None
    new = random_thing(rng)
    words = (
        "put a {new} directly {side} {it}",
        "add a {new} just {side} {it}",
        "directly {side} {it} there is a {new}",
    )
    return Draft(
        stage.scene(),
        (f.add(new, cell(x, y)),),
        rng.choice(words).format(new=new, side=side, it=ref(thing)),
        f"{CELL_NAMES[cell(x, y)]} is {side} it",
    )


def _order(rng: random.Random) -> Draft | None:
    stage = Stage(rng)
    thing = random_thing(rng)
    row = rng.randrange(GRID)
    left, right = sorted(rng.sample(range(GRID), 2))
    first = rng.choice(("small", "large"))
    second = f.other_than(rng, ("small", "large"), first)
    stage.place(thing._replace(size=first), cell(left, row))
    stage.place(thing._replace(size=second), cell(right, row))
    stage.fill(1, 4, lambda t: t.shape != thing.shape)
    words = (
        "order the {it}s so that the {second} one is on the left",
        "the {second} {it} should be left of the {first} one",
        "put the two {it}s in order , {second} before {first}",
    )
    return Draft(
        stage.scene(),
        (f.swap(cell(left, row), cell(right, row)),),
        rng.choice(words).format(it=thing.shape, first=first, second=second),
        "the two stand the wrong way round",
    )


FAMILIES = (
    Family("gravity", "spatial", _gravity),
    Family("mirror", "spatial", _mirror("right")),
    Family("align", "spatial", _align),
    Family("extremes", "spatial", _extremes),
    Family("between", "spatial", _between),
    Family("corner", "spatial", _corner),
    Family("beside", "spatial", _beside),
    Family("order", "spatial", _order),
    Family("mirror_vertical", "spatial", _mirror("bottom"), held_out=True),
)
