"""Examples for the tiny editor: a scene, an explicit prompt, and the scene that the prompt asks for.

No training example holds a held-out (colour, shape) pair, in its source, on the way or in its target. Training seeds
are below `TEST_SEEDS`, test seeds are not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from premeditate.microworld.language import JOIN, OPERATIONS, PlanError, Ref, Step
from premeditate.microworld.scene import CELL_NAMES, COLOURS, SHAPES, SIZES, Scene, Thing, random_scene, random_thing

TEST_SEEDS = 1_000_000_000
STYLES = ("canonical", "cell", "description")
STYLE_SHARES = (0.55, 0.15, 0.30)
OPERATION_SHARES = {"swap": 1.6, "move": 1.5, "reshape": 1.1}
"""How often a kind of step is drawn in training, relative to the others (1)."""


@dataclass(frozen=True)
class Example:
    source: Scene
    target: Scene
    prompt: str
    operations: tuple[str, ...]
    style: str


def _other(rng: random.Random, words: Sequence[str], word: str) -> str:
    return rng.choice([w for w in words if w != word])


def _describe(rng: random.Random, scene: Scene, index: int) -> Ref | None:
    """A reference without a cell that fits one thing, from most usual to least, or None."""
    thing = scene[index]
    assert thing is not None
    forms = [
        Ref(shape=thing.shape, colour=thing.colour),
        Ref(shape=thing.shape, colour=thing.colour, size=thing.size),
        Ref(shape=thing.shape),
        Ref(colour=thing.colour),
    ]
    order = [0, 1] if rng.random() < 0.75 else rng.sample(range(4), 4)
    for form in (forms[i] for i in order):
        try:
            form.resolve(scene)
        except PlanError:
            continue
        return form
    return None


def _name(rng: random.Random, scene: Scene, index: int, style: str) -> Ref | None:
    thing = scene[index]
    assert thing is not None
    if style == "canonical":
        return Ref(index, thing.shape, thing.colour)
    return Ref(index) if style == "cell" else _describe(rng, scene, index)


def draw_step(rng: random.Random, scene: Scene, operation: str, style: str) -> Step | None:
    """One step of that kind that changes the scene, or None where the draw has none."""
    taken = [i for i, _ in scene.things()]
    free = [i for i, t in enumerate(scene.cells) if t is None]
    if operation == "add":
        return Step("add", to=rng.choice(free), thing=random_thing(rng)) if free else None
    if not taken or (operation == "swap" and len(taken) < 2) or (operation == "move" and not free):
        return None
    at = rng.choice(taken)
    thing, ref = scene[at], _name(rng, scene, at, style)
    assert thing is not None
    if ref is None:
        return None
    match operation:
        case "recolour":
            return Step(operation, ref, value=_other(rng, COLOURS, thing.colour))
        case "resize":
            return Step(operation, ref, value=_other(rng, SIZES, thing.size))
        case "reshape":
            return Step(operation, ref, value=_other(rng, SHAPES, thing.shape))
        case "move":
            return Step(operation, ref, to=rng.choice(free))
        case "swap":
            there = rng.choice([i for i in taken if i != at])
            other = _name(rng, scene, there, style)
            return Step(operation, ref, other=other) if other and scene[there] != thing else None
        case "replace":
            new: Thing = random_thing(rng)
            return Step(operation, ref, thing=new) if new != thing else None
        case _:
            return Step(operation, ref)


def draw(
    rng: random.Random,
    *,
    steps: int = 1,
    style: str | None = None,
    operation: str | None = None,
    held_out: bool = False,
    low: int = 2,
    high: int = 8,
) -> Example:
    """An example with `steps` steps in one style. `operation` fixes the kind of every step. `held_out`: whether its
    source or target holds a held-out pair (scenes in between never do in training)."""
    weights = [OPERATION_SHARES.get(op, 1.0) for op in OPERATIONS]
    while True:
        chosen = style or rng.choices(STYLES, STYLE_SHARES)[0]
        source = scene = random_scene(rng, low, high)
        if not held_out and scene.held_out:
            continue
        texts: list[str] = []
        operations: list[str] = []
        touched = scene.held_out
        while len(texts) < steps:
            kind = operation or rng.choices(OPERATIONS, weights)[0]
            step = draw_step(rng, scene, kind, chosen)
            if step is None:
                break
            scene = step.apply(scene)
            touched = touched or scene.held_out
            texts.append(str(step))
            operations.append(kind)
        if len(texts) < steps or scene == source or touched != held_out:
            continue
        return Example(source, scene, JOIN.join(texts), tuple(operations), chosen)


def draw_edit(rng: random.Random, source: Scene, steps: int, style: str) -> Example | None:
    """As `draw`, from a given `source`; None where the draw did not come out."""
    weights = [OPERATION_SHARES.get(op, 1.0) for op in OPERATIONS]
    scene, texts, operations = source, [], []
    for kind in rng.choices(OPERATIONS, weights, k=steps):
        step = draw_step(rng, scene, kind, style)
        if step is None:
            return None
        scene = step.apply(scene)
        if scene.held_out:
            return None
        texts.append(str(step))
        operations.append(kind)
    if scene == source:
        return None
    return Example(source, scene, JOIN.join(texts), tuple(operations), style)


def binding(prompt: str) -> list[tuple[int, int]]:
    """Per word of `prompt`: the cell that its step is about (0-15, or -100 where the step names none) and the number of
    its step; (-100, -100) for "then". In a step with two cells the words after the first belong to the second."""
    out: list[tuple[int, int]] = []
    for number, text in enumerate(prompt.split(JOIN)):
        words = text.split()
        places = [k for k, word in enumerate(words) if word in CELL_NAMES]
        cells = [CELL_NAMES.index(words[k]) for k in places] or [-100]
        first = places[0] if places else 0
        out += [(cells[0] if k <= first else cells[-1], number) for k in range(len(words))]
        out.append((-100, -100))
    return out[:-1]


def train_scene(rng: random.Random) -> Scene:
    """A scene of 2..8 things without held-out pairs."""
    while True:
        scene = random_scene(rng, 2, 8)
        if not scene.held_out:
            return scene


def test_rng(seed: int) -> random.Random:
    """The generator of a test example; ValueError for a seed that training may have seen."""
    if seed < TEST_SEEDS:
        raise ValueError(f"a test seed is at least {TEST_SEEDS}, not {seed}")
    return random.Random(seed)
