"""The explicit edit language: eight kinds of step, written, read and carried out exactly.

    paint the red circle at b3 green          swap the red circle at b3 and the blue star at c1
    remove the red circle at b3               make the red circle at b3 large
    add a small red circle at b3              turn the red circle at b3 into a square
    move the red circle at b3 to c4           replace the red circle at b3 with a large blue star

Steps are joined by " then ". A thing may be named by its cell, by a description that fits one thing, or by both (then
the cell decides).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from premeditate.microworld.scene import CELL_NAMES, COLOURS, SHAPES, SIZES, Scene, Thing

OPERATIONS = ("recolour", "remove", "add", "move", "swap", "resize", "reshape", "replace")
JOIN = " then "


class PlanError(ValueError):
    """A step that cannot be read, or cannot be carried out in this scene."""


@dataclass(frozen=True)
class Ref:
    """Names one thing: by cell, by attributes, or both."""

    cell: int | None = None
    shape: str | None = None
    colour: str | None = None
    size: str | None = None

    def resolve(self, scene: Scene) -> int:
        """The occupied cell that is meant; PlanError if there is none or more than one."""
        if self.cell is not None:
            if scene[self.cell] is None:
                raise PlanError(f"{CELL_NAMES[self.cell]} is empty")
            return self.cell
        found = scene.find(
            lambda t: self.shape in (None, t.shape) and self.colour in (None, t.colour) and self.size in (None, t.size)
        )
        if len(found) != 1:
            raise PlanError(f"{self} fits {len(found)} things")
        return found[0]

    def __str__(self) -> str:
        words = [w for w in (self.size, self.colour, self.shape) if w]
        place = "" if self.cell is None else CELL_NAMES[self.cell]
        if not words:
            return place
        return "the " + " ".join(words) + ("" if self.shape else " one") + (f" at {place}" if place else "")


@dataclass(frozen=True)
class Step:
    """`op` of OPERATIONS. `ref`: what is changed (None for add). `to`: a cell (add, move). `other`: the second of a
    swap. `value`: a colour, size or shape. `thing`: what is added or put in its place."""

    op: str
    ref: Ref | None = None
    to: int | None = None
    other: Ref | None = None
    value: str | None = None
    thing: Thing | None = None

    def __str__(self) -> str:
        place = "" if self.to is None else CELL_NAMES[self.to]
        match self.op:
            case "recolour":
                return f"paint {self.ref} {self.value}"
            case "remove":
                return f"remove {self.ref}"
            case "add":
                return f"add a {self.thing} at {place}"
            case "move":
                return f"move {self.ref} to {place}"
            case "swap":
                return f"swap {self.ref} and {self.other}"
            case "resize":
                return f"make {self.ref} {self.value}"
            case "reshape":
                return f"turn {self.ref} into a {self.value}"
            case _:
                return f"replace {self.ref} with a {self.thing}"

    def apply(self, scene: Scene) -> Scene:
        """The scene after this step. Raises PlanError where it cannot be carried out."""
        if self.op == "add":
            assert self.to is not None and self.thing is not None
            if scene[self.to] is not None:
                raise PlanError(f"{CELL_NAMES[self.to]} is taken")
            return scene.put(self.to, self.thing)
        assert self.ref is not None
        at = self.ref.resolve(scene)
        thing = scene[at]
        assert thing is not None
        match self.op:
            case "recolour":
                return scene.put(at, thing._replace(colour=str(self.value)))
            case "remove":
                return scene.put(at, None)
            case "move":
                assert self.to is not None
                if scene[self.to] is not None:
                    raise PlanError(f"{CELL_NAMES[self.to]} is taken")
                return scene.put(at, None).put(self.to, thing)
            case "swap":
                assert self.other is not None
                there = self.other.resolve(scene)
                if there == at:
                    raise PlanError("a thing cannot be swapped with itself")
                return scene.put(at, scene[there]).put(there, thing)
            case "resize":
                return scene.put(at, thing._replace(size=str(self.value)))
            case "reshape":
                return scene.put(at, thing._replace(shape=str(self.value)))
            case _:
                return scene.put(at, self.thing)

    def located(self, scene: Scene) -> Step:
        """The same step in canonical words: things named by colour, shape and cell as `scene` has them."""

        def full(ref: Ref | None) -> Ref | None:
            if ref is None:
                return None
            at = ref.resolve(scene)
            thing = scene[at]
            assert thing is not None
            return Ref(at, thing.shape, thing.colour)

        return replace(self, ref=full(self.ref), other=full(self.other))


def canonical(scene: Scene, steps: Sequence[Step]) -> tuple[tuple[Step, ...], Scene]:
    """Steps in canonical words, each against the scene it meets, and the scene they lead to."""
    out = []
    for step in steps:
        out.append(step.located(scene))
        scene = step.apply(scene)
    return tuple(out), scene


def execute(scene: Scene, steps: Iterable[Step]) -> Scene:
    for step in steps:
        scene = step.apply(scene)
    return scene


_CELL = f"(?:{'|'.join(CELL_NAMES)})"
_SIZE, _COLOUR, _SHAPE = (f"(?:{'|'.join(words)})" for words in (SIZES, COLOURS, SHAPES))
_REF = rf"(?:{_CELL}|the(?: {_SIZE})?(?: {_COLOUR})?(?: {_SHAPE}| one| thing)(?: at {_CELL})?)"
_THING = rf"{_SIZE} {_COLOUR} {_SHAPE}"
_STEPS = {
    "recolour": rf"paint (?P<ref>{_REF}) (?P<value>{_COLOUR})",
    "remove": rf"remove (?P<ref>{_REF})",
    "add": rf"add an? (?P<thing>{_THING}) at (?P<to>{_CELL})",
    "move": rf"move (?P<ref>{_REF}) to (?P<to>{_CELL})",
    "swap": rf"swap (?P<ref>{_REF}) and (?P<other>{_REF})",
    "resize": rf"make (?P<ref>{_REF}) (?P<value>{_SIZE})",
    "reshape": rf"turn (?P<ref>{_REF}) into a (?P<value>{_SHAPE})",
    "replace": rf"replace (?P<ref>{_REF}) with an? (?P<thing>{_THING})",
}
_PATTERNS = {op: re.compile(pattern) for op, pattern in _STEPS.items()}


def parse_thing(text: str) -> Thing:
    """Reads "small red circle". Raises PlanError for anything else."""
    if not re.fullmatch(_THING, text):
        raise PlanError(f"not a thing of this world: {text[:80]!r}")
    size, colour, shape = text.split()
    return Thing(shape, colour, size)


def parse_ref(text: str) -> Ref:
    words = text.split()

    def pick(known: tuple[str, ...]) -> str | None:
        return next((w for w in words if w in known), None)

    place = pick(CELL_NAMES)
    return Ref(None if place is None else CELL_NAMES.index(place), pick(SHAPES), pick(COLOURS), pick(SIZES))


def parse_step(text: str) -> Step:
    """Reads one step. Raises PlanError for anything else."""
    clean = " ".join(text.lower().strip().rstrip(".").split())
    for op, pattern in _PATTERNS.items():
        found = pattern.fullmatch(clean)
        if found:
            part = found.groupdict()
            return Step(
                op,
                ref=parse_ref(part["ref"]) if part.get("ref") else None,
                to=CELL_NAMES.index(part["to"]) if part.get("to") else None,
                other=parse_ref(part["other"]) if part.get("other") else None,
                value=part.get("value"),
                thing=parse_thing(part["thing"]) if part.get("thing") else None,
            )
    raise PlanError(f"not an edit step: {text[:80]!r}")


def parse_plan(text: str) -> tuple[Step, ...]:
    """Reads steps joined by "then", ";" or line breaks."""
    return tuple(parse_step(part) for part in re.split(r"\s*(?:\bthen\b|[;\n])\s*", text.strip()) if part)


def to_text(steps: Sequence[Step]) -> str:
    return JOIN.join(map(str, steps))
