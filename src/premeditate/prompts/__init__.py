"""Prompt sets by name. A reasoner says which one it speaks (`Reasoner.prompts`)."""

from __future__ import annotations

from premeditate.prompts import verify, verify_terse
from premeditate.prompts.base import PromptSet
from premeditate.prompts.general import General
from premeditate.prompts.terse import Terse

_SETS: dict[str, type[PromptSet]] = {"general": General, "terse": Terse}
NAMES: tuple[str, ...] = tuple(_SETS)


def get(name: str) -> PromptSet:
    """The prompt set called `name`. Raises ValueError that lists the known ones."""
    if name not in _SETS:
        raise ValueError(f"there is no prompt set {name!r}; use one of: {', '.join(_SETS)}")
    return _SETS[name]()


def verify_words(name: str) -> verify.Words:
    """How a judge that reasons over principles is asked in the prompt set called `name`. Raises ValueError as `get`."""
    get(name)
    return verify_terse if name == Terse.name else verify


__all__ = ["NAMES", "PromptSet", "get", "verify_words"]
