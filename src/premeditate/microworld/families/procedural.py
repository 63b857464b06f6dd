"""Procedural: instructions that take several steps, some of which must first be worked out."""

from __future__ import annotations

import random

from premeditate.microworld.families import base as f
from premeditate.microworld.families.base import Draft, Family, Stage, ref
from premeditate.microworld.families.spatial import free_corner
from premeditate.microworld.scene import CELL_NAMES, CELLS, COLOURS, GRID, SHAPES, SIZES, Thing, cell, random_thing


def _every(rng: random.Random, low: int = 2, high: int = 3) -> tuple[Stage, str, list[int]]:
    """A stage with two or three things of one shape among others."""
    stage = Stage(rng)
    shape = rng.choice(SHAPES)
    spots = [stage.place(random_thing(rng, shape=shape)) for _ in range(rng.randint(low, high))]
    stage.fill(1, 3, lambda t: t.shape != shape)
    return stage, shape, sorted(spots)


def _paint_every(rng: random.Random) -> Draft | None:
    stage, shape, spots = _every(rng)
    colour = rng.choice(COLOURS)
    source = stage.scene()
    if any(source[i].colour == colour for i in spots):  # type: ignore[union-attr]
        return None
    words = (f"paint every {shape} {colour}", f"all {shape}s should be {colour}", f"make each {shape} {colour}")
    return Draft(
        source, tuple(f.recolour(i, colour) for i in spots), rng.choice(words), f"there are {len(spots)} {shape}s"
    )


def _grow_every(rng: random.Random) -> Draft | None:
    stage, shape, spots = _every(rng)
    size = rng.choice(SIZES)
    source = stage.scene()
    changed = tuple(f.resize(i, size) for i in spots if source[i].size != size)  # type: ignore[union-attr]
    if not changed:
        return None
    words = (f"make every {shape} {size}", f"all {shape}s should be {size}", f"each {shape} becomes {size}")
    return Draft(source, changed, rng.choice(words), "those that are not so yet must change")


def _remove_every(rng: random.Random) -> Draft | None:
    stage, shape, spots = _every(rng)
    words = (f"remove every {shape}", f"take all {shape}s away", f"delete each {shape}")
    return Draft(stage.scene(), tuple(map(f.remove, spots)), rng.choice(words), f"there are {len(spots)} {shape}s")


def _clean_up(rng: random.Random) -> Draft | None:
    stage = Stage(rng)
    colour = rng.choice(COLOURS)
    spots = sorted(stage.place(random_thing(rng, colour=colour)) for _ in range(rng.randint(2, 3)))
    stage.fill(1, 3, lambda t: t.colour != colour)
    words = (f"clean up all {colour} things", f"remove all {colour} things", f"nothing {colour} should be left")
    return Draft(stage.scene(), tuple(map(f.remove, spots)), rng.choice(words), f"{len(spots)} things are {colour}")


def _traffic_light(rng: random.Random) -> Draft | None:
    stage = Stage(rng)
    x = rng.randrange(GRID)
    column = [cell(x, y) for y in range(GRID)]
    stage.fill(2, 4, among=[i for i in range(CELLS) if i not in column])
    name = CELL_NAMES[x][0]
    words = (
        f"build a traffic light in column {name}",
        f"column {name} becomes a traffic light",
        f"set up a traffic light in column {name}",
    )
    steps = tuple(f.add(Thing("circle", c, "large"), column[k]) for k, c in enumerate(("red", "yellow", "green")))
    return Draft(stage.scene(), steps, rng.choice(words), "red above yellow above green, from the top")


def _carry(rng: random.Random) -> Draft | None:
    """Moves a thing to the free corner, then paints it there."""
    stage, thing, index, target = free_corner(rng)
    colour = f.other_than(rng, COLOURS, thing.colour)
    words = (
        f"move {ref(thing)} to the free corner and paint it {colour}",
        f"paint {ref(thing)} {colour} and put it into the empty corner",
        f"{ref(thing)} goes to the last corner and becomes {colour}",
    )
    return Draft(
        stage.scene(),
        (f.move(index, target), f.recolour(target, colour)),
        rng.choice(words),
        f"{CELL_NAMES[target]} is the free corner",
    )


def _lore(rng: random.Random) -> Draft | None:
    """Two things that time or the elements do, one after the other."""
    known = {
        "let the ice melt": (Thing("square", "cyan", "small"), Thing("circle", "blue", "small")),
        "let the tomato ripen": (Thing("circle", "green", "small"), Thing("circle", "red", "small")),
        "pour water over the fire": (Thing("triangle", "red", "small"), None),
        "pop the balloon": (Thing("circle", "purple", "small"), None),
        "let the iron rust": (Thing("square", "gray", "small"), Thing("square", "orange", "small")),
        "show the leaf in autumn": (Thing("star", "green", "small"), Thing("star", "orange", "small")),
    }
    stage = Stage(rng)
    (text_a, (a, a2)), (text_b, (b, b2)) = rng.sample(list(known.items()), 2)
    steps = []
    for before, after in ((a, a2), (b, b2)):
        size = rng.choice(SIZES)
        index = stage.place(before._replace(size=size))
        if after is None:
            steps.append(f.remove(index))
        elif after.shape == before.shape:
            steps.append(f.recolour(index, after.colour))
        else:
            steps.append(f.change(index, after._replace(size=size)))
    stage.fill(1, 3, f.unlike(a, b))
    words = (f"first {text_a} , then {text_b}", f"{text_a} and {text_b}", f"{text_a} , after that {text_b}")
    return Draft(stage.scene(), tuple(steps), rng.choice(words), "each follows its own rule")


def _rebuild(rng: random.Random) -> Draft | None:
    """Swaps two named things and removes a third."""
    stage = Stage(rng)
    things = [random_thing(rng) for _ in range(3)]
    if f.alike(things[0], things[1]) or f.alike(things[1], things[2]) or f.alike(things[0], things[2]):
        return None
    one, two, three = (stage.place(t) for t in things)
    stage.fill(1, 2, f.unlike(*things))
    words = (
        f"swap {ref(things[0])} and {ref(things[1])} and remove {ref(things[2])}",
        f"remove {ref(things[2])} , and let {ref(things[0])} and {ref(things[1])} trade places",
        f"without {ref(things[2])} , and with {ref(things[0])} and {ref(things[1])} exchanged",
    )
    return Draft(stage.scene(), (f.swap(one, two), f.remove(three)), rng.choice(words), "the order does not matter")


FAMILIES = (
    Family("paint_every", "procedural", _paint_every),
    Family("grow_every", "procedural", _grow_every),
    Family("clean_up", "procedural", _clean_up),
    Family("traffic_light", "procedural", _traffic_light),
    Family("carry", "procedural", _carry),
    Family("lore", "procedural", _lore),
    Family("rebuild", "procedural", _rebuild),
    Family("remove_every", "procedural", _remove_every, held_out=True),
)
