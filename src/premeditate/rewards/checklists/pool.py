"""The pool of examples: checklists of other pictures in a YAML (or JSON) file that anyone may edit or replace."""

from __future__ import annotations

import hashlib
import os
import random
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from premeditate.config import ConfigError
from premeditate.config.yaml12 import parse
from premeditate.errors import PremeditateError
from premeditate.prompts.checklists import Example, plain
from premeditate.prompts.general import DIMENSIONS
from premeditate.trace import ChecklistItem

SHIPPED = Path(__file__).parent / "exemplars.yaml"
MOST = 1_000_000
"""Bytes of a pool's file."""


class PoolError(PremeditateError):
    """A pool of examples that cannot be used."""


class Exemplar(BaseModel):
    """`picture`: the original in words. `follow`, `keep`, `quality`: the questions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = ""
    picture: str = Field(min_length=3)
    instruction: str = Field(min_length=3)
    follow: tuple[str, ...] = Field(min_length=1)
    keep: tuple[str, ...] = ()
    quality: tuple[str, ...] = ()

    @field_validator("picture", "instruction", "follow", "keep", "quality")
    @classmethod
    def _words(cls, value: Any) -> Any:
        for text in (value,) if isinstance(value, str) else value:
            if not text.strip() or plain(text) != " ".join(text.split()):
                raise ValueError(f"{text[:60]!r} is empty or holds reserved marks")
        return value

    def example(self) -> Example:
        items = tuple(ChecklistItem(question=q, dimension=d) for d in DIMENSIONS for q in getattr(self, d))
        return Example(self.picture, self.instruction, items)


class Pool:
    """`digest` names the content: checklists that were written with another pool are other checklists."""

    def __init__(self, exemplars: tuple[Exemplar, ...]) -> None:
        self.exemplars = exemplars
        self.digest = hashlib.sha256(repr([e.model_dump() for e in exemplars]).encode("utf-8", "replace")).hexdigest()[
            :12
        ]

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Pool:
        """From a file: a list of mappings, see `Exemplar`; None: the one in the package. Raises `PoolError`."""
        where = Path(path if path is not None else SHIPPED).expanduser()
        try:
            if where.stat().st_size > MOST:
                raise PoolError(f"the pool {where} has more than {MOST:,} bytes", "keep some dozens of examples")
            entries = parse(where.read_text(encoding="utf-8"), str(where))
        except ConfigError as error:
            raise PoolError(error.problem, error.mend) from None
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no UTF-8 text"
            raise PoolError(f"the pool {where} cannot be read: {why}", "give a YAML file") from None
        mend = f"write a list of mappings with picture, instruction, follow, keep, quality, as {SHIPPED.name} does"
        if not isinstance(entries, list) or not entries:
            raise PoolError(f"the pool {where} holds no list of examples", mend)
        found = []
        for number, entry in enumerate(entries, 1):
            try:
                found.append(Exemplar.model_validate(entry))
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"])) or "it"
                raise PoolError(f"example {number} of the pool {where}: {place}: {first['msg']}", mend) from None
        return cls(tuple(found))

    def draw(self, content: str, count: int) -> tuple[Example, ...]:
        """`count` examples (or all there are), in an order of their own, the same ones for the same `content`."""
        rng = random.Random(f"{self.digest}/{content}")
        return tuple(e.example() for e in rng.sample(self.exemplars, min(count, len(self.exemplars))))


@cache
def shipped() -> Pool:
    """The pool in the package."""
    return Pool.load()
