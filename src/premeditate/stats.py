"""Rates with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # Student's t at 97.5 %, 1-10 freedoms


@dataclass(frozen=True)
class Rate:
    """`k` of `n`. `value` and the bounds are None where n is 0: nothing was measured, which is not zero."""

    k: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.k <= self.n:
            raise ValueError(f"{self.k} of {self.n} is not a rate")

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> Rate:
        values = list(outcomes)
        return cls(sum(values), len(values))

    @property
    def value(self) -> float | None:
        return self.k / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        return wilson(self.k, self.n) if self.n else None

    def to_json(self) -> dict[str, float | int | None]:
        low, high = self.interval or (None, None)
        return {"k": self.k, "n": self.n, "value": self.value, "low": low, "high": high}

    def __str__(self) -> str:
        return in_percent(self.value, self.interval)


def in_percent(value: float | None, interval: tuple[float, float] | None) -> str:
    """ "81.3 % [77.6, 84.5]"; "-" for what was not measured."""
    if value is None or interval is None:
        return "-"
    low, high = interval
    return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def wilson(k: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927), by default at 95 %. `n` at least 1; `k` may hold halves;
    bounds in [0, 1]."""
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"no interval for {k} of {n}")
    p, zz = k / n, z * z
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    return (0.0 if k == 0 else max(0.0, centre - half)), (1.0 if k == n else min(1.0, centre + half))


def student(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) of at least 2 values with Student's 95 % interval of the mean."""
    n = len(values)
    centre = sum(values) / n
    spread = math.sqrt(sum((v - centre) ** 2 for v in values) / (n - 1))
    half = (T975[n - 2] if n - 2 < len(T975) else 1.96 + 2.4 / (n - 1)) * spread / math.sqrt(n)
    return centre, centre - half, centre + half
