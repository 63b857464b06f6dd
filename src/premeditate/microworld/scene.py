"""Scenes: a 4x4 grid whose cells are empty or hold one thing (shape, colour, size).

Cells are numbered row by row from the top left and named like a spreadsheet's: column letter a-d, row number 1-4.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

GRID = 4
CELLS = GRID * GRID
SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "gray")
SIZES = ("small", "large")
CELL_NAMES = tuple("abcd"[i % GRID] + str(i // GRID + 1) for i in range(CELLS))
HELD_OUT = frozenset({("purple", "star"), ("cyan", "triangle"), ("yellow", "square"), ("gray", "triangle")})
"""(colour, shape) pairs that no training task contains: the out-of-domain attribute combinations."""


class Thing(NamedTuple):
    shape: str
    colour: str
    size: str

    @property
    def code(self) -> int:
        """1..64; 0 is the empty cell."""
        return (
            1
            + (SHAPES.index(self.shape) * len(COLOURS) + COLOURS.index(self.colour)) * len(SIZES)
            + SIZES.index(self.size)
        )

    @property
    def held_out(self) -> bool:
        return (self.colour, self.shape) in HELD_OUT

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


THINGS: tuple[Thing | None, ...] = (
    None,
    *(Thing(s, c, z) for s in SHAPES for c in COLOURS for z in SIZES),
)
"""Every cell content by its code."""


def cell(column: int, row: int) -> int:
    """The cell at `column` 0-3 from the left and `row` 0-3 from the top."""
    return row * GRID + column


def column_of(index: int) -> int:
    return index % GRID


def row_of(index: int) -> int:
    return index // GRID


@dataclass(frozen=True)
class Scene:
    """16 cells, row by row. Immutable: editing returns another scene."""

    cells: tuple[Thing | None, ...]

    def __post_init__(self) -> None:
        if len(self.cells) != CELLS:
            raise ValueError(f"a scene has {CELLS} cells, not {len(self.cells)}")

    @classmethod
    def from_codes(cls, codes: object) -> Scene:
        """`codes`: 16 integers in 0..64."""
        return cls(tuple(THINGS[int(c)] for c in codes))  # type: ignore[attr-defined]

    @property
    def codes(self) -> tuple[int, ...]:
        return tuple(0 if t is None else t.code for t in self.cells)

    def __getitem__(self, index: int) -> Thing | None:
        return self.cells[index]

    def put(self, index: int, thing: Thing | None) -> Scene:
        return Scene(self.cells[:index] + (thing,) + self.cells[index + 1 :])

    def things(self) -> Iterator[tuple[int, Thing]]:
        """(cell, thing) for every occupied cell, in reading order."""
        return ((i, t) for i, t in enumerate(self.cells) if t is not None)

    def find(self, match: Callable[[Thing], bool]) -> list[int]:
        return [i for i, t in self.things() if match(t)]

    def changed(self, other: Scene) -> list[int]:
        """The cells in which two scenes differ."""
        return [i for i in range(CELLS) if self.cells[i] != other.cells[i]]

    @property
    def held_out(self) -> bool:
        return any(t.held_out for _, t in self.things())


def random_thing(rng: random.Random, **fixed: str) -> Thing:
    return Thing(
        fixed.get("shape") or rng.choice(SHAPES),
        fixed.get("colour") or rng.choice(COLOURS),
        fixed.get("size") or rng.choice(SIZES),
    )


def random_scene(rng: random.Random, low: int = 3, high: int = 6) -> Scene:
    """`low`..`high` random things in random cells."""
    cells: list[Thing | None] = [None] * CELLS
    for index in rng.sample(range(CELLS), rng.randint(low, high)):
        cells[index] = random_thing(rng)
    return Scene(tuple(cells))
