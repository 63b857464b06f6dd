"""Logical: odd one out, patterns, comparing, counting, if-then."""

from __future__ import annotations

import random
from collections import Counter

from premeditate.microworld.families import base as f
from premeditate.microworld.families.base import Draft, Family, Stage, ref
from premeditate.microworld.language import Step
from premeditate.microworld.scene import COLOURS, GRID, SHAPES, SIZES, Thing, cell, random_thing

PLURAL = {shape: f"{shape}s" for shape in SHAPES}


def _act(rng: random.Random, index: int, thing: Thing, words: str) -> tuple[str, Step] | None:
    """A random thing to do to `words`: paint it, remove it or make it the other size."""
    match rng.randrange(3):
        case 0:
            colour = f.other_than(rng, COLOURS, thing.colour)
            return f"paint {words} {colour}", f.recolour(index, colour)
        case 1:
            return f"remove {words}", f.remove(index)
        case _:
            size = f.other_than(rng, SIZES, thing.size)
            return f"make {words} {size}", f.resize(index, size)


def _odd_one_out(rng: random.Random) -> Draft | None:
    """All alike in shape or in colour but one; the other attributes vary freely."""
    stage = Stage(rng)
    attribute = rng.choice(("shape", "colour"))
    common = random_thing(rng)
    names = SHAPES if attribute == "shape" else COLOURS
    odd_value = f.other_than(rng, names, getattr(common, attribute))
    same = [random_thing(rng)._replace(**{attribute: getattr(common, attribute)}) for _ in range(rng.randint(3, 5))]
    odd = random_thing(rng)._replace(**{attribute: odd_value})
    # The odd one must not be a matter of opinion: in no other attribute does anyone stand alone against the rest.
    for rest in {"shape", "colour", "size"} - {attribute}:
        counts = Counter(getattr(t, rest) for t in (*same, odd))
        if len(counts) == 2 and min(counts.values()) == 1:
            return None
    for thing in same:
        stage.place(thing)
    index = stage.place(odd)
    act = _act(rng, index, odd, "the odd one out")
    if act is None:
        return None
    text, step = act
    words = (
        text,
        text.replace("the odd one out", "the one that does not belong"),
        text.replace("the odd one out", "the one unlike the others"),
    )
    return Draft(stage.scene(), (step,), rng.choice(words), f"all the others share one {attribute}")


def _pattern(rng: random.Random) -> Draft | None:
    """A B A _ in a row: the last is B."""
    stage = Stage(rng)
    one, two = random_thing(rng), random_thing(rng)
    if one == two:
        return None
    line = rng.randrange(GRID)
    across = rng.random() < 0.6
    spots = [cell(k, line) if across else cell(line, k) for k in range(GRID)]
    hole = rng.randrange(GRID)
    for k, spot in enumerate(spots):
        if k != hole:
            stage.place((one, two)[k % 2], spot)
    if rng.random() < 0.5:
        stage.fill(1, 1, f.unlike(one, two), among=[i for i in stage.free() if i != spots[hole]])
    words = ("complete the pattern", "what is missing in the pattern", "fill the gap in the series")
    return Draft(
        stage.scene(),
        (f.add((one, two)[hole % 2], spots[hole]),),
        rng.choice(words),
        "two things take turns along the line",
    )


def _by_size(size: str, name: str) -> f.Build:
    def build(rng: random.Random) -> Draft | None:
        stage = Stage(rng)
        thing = random_thing(rng, size=size)
        index = stage.place(thing)
        other = f.other_than(rng, SIZES, size)
        stage.fill(2, 5, lambda t: t.size == other)
        act = _act(rng, index, thing, f"the {name} thing")
        if act is None:
            return None
        text, step = act
        words = (
            text,
            text.replace(f"the {name} thing", f"what is the {name} of all"),
            text.replace(f"the {name} thing", f"the {name} one"),
        )
        return Draft(stage.scene(), (step,), rng.choice(words), f"only one thing is {size}")

    return build


def _match_colour(rng: random.Random) -> Draft | None:
    stage = Stage(rng)
    one, two = rng.sample(SHAPES, 2)
    model, thing = random_thing(rng, shape=one), random_thing(rng, shape=two)
    if model.colour == thing.colour:
        return None
    stage.place(model)
    index = stage.place(thing)
    stage.fill(1, 3, lambda t: t.shape not in (one, two))
    words = (
        f"give the {two} the colour of the {one}",
        f"paint the {two} like the {one}",
        f"the {two} should have the same colour as the {one}",
    )
    return Draft(stage.scene(), (f.recolour(index, model.colour),), rng.choice(words), f"the {one} is {model.colour}")


def _match_shape(rng: random.Random) -> Draft | None:
    stage = Stage(rng)
    one, two = rng.sample(COLOURS, 2)
    model, thing = random_thing(rng, colour=one), random_thing(rng, colour=two)
    if model.shape == thing.shape:
        return None
    stage.place(model)
    index = stage.place(thing)
    stage.fill(1, 3, lambda t: t.colour not in (one, two))
    words = (
        f"turn the {two} thing into the same shape as the {one} one",
        f"the {two} one should have the same shape as the {one} one",
        f"give the {two} thing the shape of the {one} thing",
    )
    return Draft(
        stage.scene(), (f.reshape(index, model.shape),), rng.choice(words), f"the {one} one is a {model.shape}"
    )


def _majority(rng: random.Random) -> Draft | None:
    stage = Stage(rng)
    colour = rng.choice(COLOURS)
    shape = rng.choice(SHAPES)
    thing = random_thing(rng, shape=shape)
    if thing.colour == colour:
        return None
    index = stage.place(thing)
    for _ in range(3):
        stage.place(random_thing(rng, colour=colour)._replace(shape=f.other_than(rng, SHAPES, shape)))
    stage.fill(1, 2, lambda t: t.shape != shape and t.colour not in (colour, thing.colour))
    counts = Counter(t.colour for _, t in stage.scene().things())
    if counts.most_common(2)[1][1] >= 3:
        return None
    words = (
        f"paint the {shape} in the most common colour",
        f"give the {shape} the colour that most things have",
        f"the {shape} should take the colour of the majority",
    )
    return Draft(stage.scene(), (f.recolour(index, colour),), rng.choice(words), f"most things are {colour}")


def _if_then(rng: random.Random) -> Draft | None:
    stage = Stage(rng)
    shape = rng.choice(SHAPES)
    thing = random_thing(rng, shape=shape)
    index = stage.place(thing)
    asked = random_thing(rng)
    if asked.shape == shape:
        return None
    present = rng.random() < 0.5
    if present:
        stage.place(asked)
    stage.fill(2, 4, lambda t: t.shape != shape and not f.alike(t, asked))
    yes, no = rng.sample([c for c in COLOURS if c != thing.colour], 2)
    words = (
        "if there is {asked} , paint the {shape} {yes} , otherwise paint it {no}",
        "paint the {shape} {yes} if you see {asked} , else {no}",
        "is there {asked} ? then the {shape} becomes {yes} , if not {no}",
    )
    text = rng.choice(words).format(asked=f.a(f"{asked.colour} {asked.shape}"), shape=shape, yes=yes, no=no)
    return Draft(
        stage.scene(),
        (f.recolour(index, yes if present else no),),
        text,
        f"there is {'one' if present else 'no'} {asked.colour} {asked.shape}",
    )


def _count(rng: random.Random) -> Draft | None:
    stage = Stage(rng)
    one, two, shape = rng.sample(SHAPES, 3)
    thing = random_thing(rng, shape=shape)
    index = stage.place(thing)
    more, less = rng.randint(2, 4), rng.randint(0, 1)
    if rng.random() < 0.4:
        less = more - 1
    first_wins = rng.random() < 0.5
    for name, number in ((one, more if first_wins else less), (two, less if first_wins else more)):
        for _ in range(number):
            stage.place(random_thing(rng, shape=name))
    yes, no = rng.sample([c for c in COLOURS if c != thing.colour], 2)
    words = (
        "if there are more {one} than {two} , paint the {shape} {yes} , otherwise paint it {no}",
        "count the {one} and the {two} : with more {one} the {shape} becomes {yes} , otherwise {no}",
        "paint the {shape} {yes} if {one} outnumber {two} , else {no}",
    )
    text = rng.choice(words).format(one=PLURAL[one], two=PLURAL[two], shape=shape, yes=yes, no=no)
    return Draft(
        stage.scene(),
        (f.recolour(index, yes if first_wins else no),),
        text,
        f"there are {more if first_wins else less} {PLURAL[one]} and {less if first_wins else more} {PLURAL[two]}",
    )


def _only(rng: random.Random) -> Draft | None:
    """The only thing of its shape, named by what makes it single."""
    stage = Stage(rng)
    shape = rng.choice(SHAPES)
    thing = random_thing(rng, shape=shape)
    index = stage.place(thing)
    stage.fill(2, 5, lambda t: t.shape != shape)
    act = _act(rng, index, thing, f"the only {shape}")
    if act is None:
        return None
    text, step = act
    words = (text, text.replace(f"the only {shape}", f"the one {shape} there is"))
    return Draft(stage.scene(), (step,), rng.choice(words), f"there is one {shape}, {ref(thing)}")


FAMILIES = (
    Family("odd_one_out", "logical", _odd_one_out),
    Family("pattern", "logical", _pattern),
    Family("largest", "logical", _by_size("large", "largest")),
    Family("match_colour", "logical", _match_colour),
    Family("majority", "logical", _majority),
    Family("if_then", "logical", _if_then),
    Family("count", "logical", _count),
    Family("only", "logical", _only),
    Family("smallest", "logical", _by_size("small", "smallest"), held_out=True),
    Family("match_shape", "logical", _match_shape, held_out=True),
)
