"""Asking the same thing several times: the requests, all of them in one call of the reasoner, and what came back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from premeditate.reasoners.base import ChatRequest, Completion, Reasoner, chat_all

SAMPLED = 0.7
"""The temperature of several passes where none is given."""


@dataclass(frozen=True)
class Repeats:
    """`k` passes over one request, pass i with the seed `seed` + i. `least`: readable passes without which there is no
    score, by default more than half of `k`."""

    k: int = 1
    temperature: float = 0.0
    seed: int = 42
    least: int | None = None

    def __post_init__(self) -> None:
        if type(self.k) is not int or self.k < 1:
            raise ValueError(f"k is {self.k!r}; give a whole number of passes, at least 1")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"the temperature is {self.temperature}; give 0 or more")
        if self.k > 1 and self.temperature == 0:
            raise ValueError(f"{self.k} passes at temperature 0 are one pass; give a temperature above 0, or k = 1")
        if self.least is not None and not 1 <= self.least <= self.k:
            raise ValueError(f"least is {self.least}; give 1 to {self.k}")

    @classmethod
    def sampled(cls, k: int, temperature: float, seed: int, least: int | None) -> Repeats:
        """The same, but several passes at temperature 0 are drawn at `SAMPLED`. Raises ValueError as `Repeats` does."""
        return cls(k, SAMPLED if k != 1 and temperature == 0 else temperature, seed, least)

    @property
    def needed(self) -> int:
        return self.least if self.least is not None else self.k // 2 + 1

    def of(self, request: ChatRequest) -> list[ChatRequest]:
        """The `k` requests."""
        return [replace(request, temperature=self.temperature, seed=self.seed + i) for i in range(self.k)]


@dataclass(frozen=True)
class Votes:
    """One quantity as it was read from each pass, None where it was not."""

    values: tuple[float | None, ...]
    needed: int = 1

    @property
    def read(self) -> tuple[float, ...]:
        return tuple(value for value in self.values if value is not None)

    @property
    def missing(self) -> int:
        return len(self.values) - len(self.read)

    @property
    def enough(self) -> bool:
        return len(self.read) >= self.needed

    @property
    def mean(self) -> float | None:
        """Of the passes that could be read; None where these are too few."""
        return math.fsum(self.read) / len(self.read) if self.enough else None

    @property
    def variance(self) -> float | None:
        """The unbiased one between passes; None for fewer than two."""
        n = len(self.read)
        if n < 2:
            return None
        mean = math.fsum(self.read) / n
        return math.fsum((value - mean) ** 2 for value in self.read) / (n - 1)

    @property
    def sd(self) -> float | None:
        return None if self.variance is None else math.sqrt(self.variance)


async def ask(reasoner: Reasoner, requests: Sequence[Sequence[ChatRequest]]) -> list[list[Completion]]:
    """The completions of several lists of requests, in one call. Raises what the reasoner raises, and RuntimeError
    where it loses count."""
    rest = iter(await chat_all(reasoner, [request for part in requests for request in part]))
    return [[next(rest) for _ in part] for part in requests]
