"""What of a list of samples may be cut apart, and how it is put into calls. Samples are named by their index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from premeditate.rewards.base import Sample

Unit = list[int]


def units(samples: Sequence[Sample], groupwise: bool) -> list[Unit]:
    """What may not be cut: the groups of a `groupwise` reward, else single samples. In the order of the first of each;
    a sample without a group stands alone."""
    found: dict[Any, Unit] = {}
    for i, sample in enumerate(samples):
        found.setdefault(sample.group if groupwise and sample.group else i, []).append(i)
    return list(found.values())


def batches(cut: Iterable[Unit], most: int | None) -> list[Unit]:
    """The units put into calls, in order: at most `most` samples in each (None: all in one), but for a unit that is
    larger by itself."""
    found: list[Unit] = []
    for unit in cut:
        if not found or (most and len(found[-1]) + len(unit) > most):
            found.append([])
        found[-1] += unit
    return found
