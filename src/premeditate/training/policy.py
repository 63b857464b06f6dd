"""What the training core asks of a policy, and what passes between the two.

The core knows groups, rewards, advantages, optimiser steps and files; a policy knows its model: how to sample from it
and what a row of its loss is. A row is whatever one forward of the loss takes: a trained denoising step of one sample
here, a token sequence for a reasoner.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from premeditate.rewards.base import Sample
from premeditate.rl.losses import Loss
from premeditate.training.distributed import World
from premeditate.training.geometry import cut


@dataclass(frozen=True)
class Place:
    """A group of one step: `index` among the step's groups over all devices, `row` among the tasks."""

    step: int
    index: int
    row: int


@dataclass
class Rollout:
    """Some whole groups, sampled. `samples`: what the rewards judge, group after group, group_size of each. `data`:
    what the policy needs to train on them."""

    places: Sequence[Place]
    samples: Sequence[Sample]
    data: Any
    forwards: int = 0
    """Evaluations of the model, counted in samples."""


@dataclass
class Rows:
    """Rows of the loss. `keys`: rows with equal keys fit into one forward. `groups`: each row's group (Place.index).
    `samples`: how many a row puts into a forward."""

    keys: Sequence[Hashable]
    groups: Sequence[int]
    data: Any
    samples: int = 1
    old: dict[int, Tensor] | None = None
    """What the sampling policy said of each row, where the weights may have moved on since."""

    def __len__(self) -> int:
        return len(self.keys)


def micro_batches(rows: Rows, chosen: Sequence[int], most: int, world: World) -> Iterator[Sequence[int]]:
    """`chosen` rows in batches of at most `most` samples with one key, as equal in size as can be; then empty ones,
    until every process of `world` has had as many: the forwards of a sharded model are collective."""
    by: dict[Hashable, list[int]] = defaultdict(list)
    for i in chosen:
        by[rows.keys[i]].append(i)
    batches: list[Sequence[int]] = []
    for part in by.values():
        batches += [[part[i] for i in some] for some in cut(len(part), max(1, most // rows.samples))]
    # Asked before the first forward: from then on all processes are in step.
    count = int(world.largest(len(batches)))
    yield from batches
    yield from [()] * (count - len(batches))


class Policy(ABC):
    """A model that is trained. `module` holds it; its parameters that require gradients are trained."""

    module: nn.Module

    @abstractmethod
    def sample(self, places: Sequence[Place]) -> Iterator[Rollout]:
        """Samples a group of edits for every place, and yields them in parts, so that rewards of one part are found
        while the next is sampled. Noise depends on the place alone, not on which device samples it."""

    @abstractmethod
    def rows(self, rollouts: Sequence[Rollout], advantages: Sequence[Tensor], masks: Sequence[Tensor]) -> Rows:
        """The rows to train on: of each rollout the samples where its mask [N] is true; its advantages [N] are 0
        elsewhere. Called before any update of the step, with the weights that sampled."""

    @abstractmethod
    def loss(self, rows: Rows, indices: Sequence[int]) -> Loss:
        """The loss of some rows of one key. With no indices: a loss of no rows that still runs forward and backward,
        for a device that must keep step with the others."""

    @abstractmethod
    def evaluate(self, rows: Sequence[int]) -> Iterator[tuple[Sequence[int], Sequence[Sample]]]:
        """One deterministic edit of each held-out task, in parts: (which of `rows`, their samples)."""

    def updated(self) -> None:
        """Called after every step's updates."""
        return None

    def state(self) -> dict[str, Tensor]:
        """Tensors beyond the module's parameters that a resumed run needs."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `state` gave."""
        assert not state
