"""What a family of instructions is, and the stage on which its scenes are set."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from premeditate.microworld.language import Ref, Step
from premeditate.microworld.scene import CELLS, Scene, Thing, random_thing

KINDS = ("explicit", "temporal", "causal", "spatial", "logical", "procedural")


@dataclass(frozen=True)
class Draft:
    """A task before it is dressed: `steps` may name things by cell only; `explanation` says why they are right."""

    source: Scene
    steps: tuple[Step, ...]
    instruction: str
    explanation: str


Build = Callable[[random.Random], Draft | None]
"""Draws a task, or None where the draw did not come out well posed (the caller draws again)."""


@dataclass(frozen=True)
class Family:
    """`held_out` families are never trained on: they make the out-of-domain split."""

    name: str
    kind: str
    build: Build
    held_out: bool = False


class Stage:
    """Sets a scene cell by cell."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.cells: list[Thing | None] = [None] * CELLS

    def free(self) -> list[int]:
        return [i for i, t in enumerate(self.cells) if t is None]

    def place(self, thing: Thing, at: int | None = None) -> int:
        """Puts a thing into a cell (a random free one by default) and returns it."""
        index = self.rng.choice(self.free()) if at is None else at
        assert self.cells[index] is None
        self.cells[index] = thing
        return index

    def fill(
        self, low: int, high: int, allow: Callable[[Thing], bool] = lambda _: True, among: Sequence[int] = ()
    ) -> None:
        """Adds `low`..`high` random things that `allow` accepts to free cells (of `among`, if given)."""
        free = [i for i in (among or range(CELLS)) if self.cells[i] is None]
        for index in self.rng.sample(free, min(len(free), self.rng.randint(low, high))):
            for _ in range(20):
                thing = random_thing(self.rng)
                if allow(thing):
                    self.cells[index] = thing
                    break

    def scene(self) -> Scene:
        return Scene(tuple(self.cells))


def ref(thing: Thing) -> str:
    """How an instruction names a thing: by colour and shape."""
    return f"the {thing.colour} {thing.shape}"


def a(words: str) -> str:
    """With its article: "a red circle", "an orange star"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def alike(one: Thing, other: Thing) -> bool:
    return (one.colour, one.shape) == (other.colour, other.shape)


def unlike(*things: Thing) -> Callable[[Thing], bool]:
    """Accepts what cannot be confused with any of these by colour and shape."""
    return lambda t: not any(alike(t, other) for other in things)


def at(index: int) -> Ref:
    return Ref(cell=index)


def recolour(index: int, colour: str) -> Step:
    return Step("recolour", at(index), value=colour)


def remove(index: int) -> Step:
    return Step("remove", at(index))


def move(index: int, to: int) -> Step:
    return Step("move", at(index), to=to)


def resize(index: int, size: str) -> Step:
    return Step("resize", at(index), value=size)


def reshape(index: int, shape: str) -> Step:
    return Step("reshape", at(index), value=shape)


def swap(one: int, other: int) -> Step:
    return Step("swap", at(one), other=at(other))


def change(index: int, thing: Thing) -> Step:
    return Step("replace", at(index), thing=thing)


def add(thing: Thing, index: int) -> Step:
    return Step("add", to=index, thing=thing)


def other_than(rng: random.Random, words: Sequence[str], *not_these: str) -> str:
    return rng.choice([w for w in words if w not in not_these])
