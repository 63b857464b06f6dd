"""A flow-matching editor as a policy: how it samples groups, and what its objectives train on.

Noise comes from generators that are seeded by (seed, step, group, member): the same edits whatever the batch geometry,
the number of devices or the times that the run was stopped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from premeditate.datasets.tasks import TaskRow
from premeditate.rewards.base import Sample
from premeditate.rl.flow import compress, sample, window
from premeditate.rl.losses import Loss
from premeditate.trace import Task
from premeditate.training.data import sample_seed
from premeditate.training.distributed import World
from premeditate.training.ema import Ema
from premeditate.training.errors import TrainingError
from premeditate.training.flow.adapters.base import FlowAdapter
from premeditate.training.flow.objectives import Objective, Sampled, make_objective
from premeditate.training.lora import merged, reference
from premeditate.training.policy import Place, Policy, Rollout, Rows
from premeditate.training.recipe import Recipe


class Encodings(Protocol):
    """What the adapter made of each task: `EncodingCache`, or a list."""

    def __getitem__(self, index: int, /) -> Mapping[str, Tensor]: ...


@dataclass
class Tasks:
    """Tasks with their encodings for one adapter, which fixes the working size."""

    adapter: FlowAdapter
    rows: Sequence[TaskRow]
    encodings: Encodings

    def by_shape(self, indices: Sequence[int]) -> dict[Hashable, list[int]]:
        """Positions in `indices` by what fits into one forward."""
        found: dict[Hashable, list[int]] = defaultdict(list)
        for position, i in enumerate(indices):
            found[self.adapter.shape_key(self.encodings[i])].append(position)
        return dict(found)

    @cached_property
    def uniform(self) -> bool:
        """Whether all tasks have one shape."""
        return len({self.adapter.shape_key(self.encodings[i]) for i in range(len(self.rows))}) < 2

    def sample_of(self, i: int, edit: Any, group: str) -> Sample:
        row = self.rows[i]
        task = Task(id=row.id, images=(), instruction=row.instruction, meta=row.meta)
        return Sample(task=task, source=row.images[0], edit=edit, group=group)


class FlowPolicy(Policy):
    """`train`, `held_out`: their tasks; the latter may have another adapter (size) over the same transformer.

    `frozen`: the transformer before training, where an objective asks for it and no adapters can be left out instead.

    Where the transformer is sharded, forwards are collective: every process of `world` has to run as many, whatever the
    shapes of its tasks.
    """

    def __init__(
        self, recipe: Recipe, train: Tasks, held_out: Tasks | None, world: World, frozen: nn.Module | None = None
    ) -> None:
        self.recipe, self.train, self.held_out, self.world = recipe, train, held_out, world
        self.adapter = train.adapter
        self.module: nn.Module = self.adapter.transformer
        self.objective: Objective = make_objective(recipe.algorithm, self)
        self.sharded = recipe.sharding.kind != "none"
        # What is in pieces cannot be added to.
        self.fused = recipe.model.lora is not None and recipe.rollout.merge_lora and not self.sharded
        self.frozen = frozen
        decay = recipe.algorithm.old_decay
        trained = [p for p in self.module.parameters() if p.requires_grad]
        self.old: Ema | None = Ema(trained, decay) if decay and recipe.algorithm.follows else None

    # -- sampling -----------------------------------------------------------------------------------------------------

    def sample(self, places: Sequence[Place]) -> Iterator[Rollout]:
        with self.sampling(), self._merged():
            most = max(1, self.recipe.batch.forward // self.recipe.batch.group_size)
            for part in self._parts(self.train, [p.row for p in places], most):
                yield self._groups([places[i] for i in part])

    def _parts(self, tasks: Tasks, indices: Sequence[int], most: int) -> Iterator[list[int]]:
        """Positions in `indices`, at most `most` of one shape at a time."""
        if self.sharded and not tasks.uniform:
            most = 1
        for positions in tasks.by_shape(indices).values():
            yield from (positions[start : start + most] for start in range(0, len(positions), most))

    def sampling(self) -> AbstractContextManager[Any]:
        """A context with the weights that sample: the moving average where the objective keeps one."""
        return self.old.swapped() if self.old else nullcontext()

    def _merged(self) -> AbstractContextManager[Any]:
        return merged(self.module) if self.fused else nullcontext()

    def _groups(self, places: Sequence[Place]) -> Rollout:
        recipe, adapter, members = self.recipe, self.adapter, self.recipe.batch.group_size
        encodings = [self.train.encodings[p.row] for p in places]
        sigmas, steps = self.schedule(encodings[0], places[0].step)
        batch, shape = adapter.collate(encodings), adapter.noise_shape(encodings[0])
        everyone = [(p, e, m) for p, e in zip(places, encodings, strict=True) for m in range(members)]
        shared = recipe.rollout.share_prefix
        start = [adapter.noise(e, self.seed(p, 0 if shared else m, "start")) for p, e, m in everyone]
        later = [torch.Generator().manual_seed(self.seed(p, m, "steps")) for p, _, m in everyone]

        def fresh(index: int) -> Tensor:
            return torch.stack([torch.randn(shape, generator=g) for g in later]).to(adapter.device)

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            groups = torch.arange(len(places)).repeat_interleave(len(x) // len(places))
            parts = zip(x.split(recipe.batch.forward), sigma.split(recipe.batch.forward),
                        groups.split(recipe.batch.forward), strict=True)  # fmt: skip
            return torch.cat([adapter.velocity(part, level, batch.select(g)) for part, level, g in parts])

        trajectory = sample(
            velocity, torch.stack(start).to(adapter.device), sigmas, window=steps, noise=fresh,
            dynamics=recipe.rollout.dynamics if steps else "ode", noise_level=recipe.rollout.noise_level,
            solver=recipe.rollout.solver, group=members if shared else 1,
        )  # fmt: skip
        if not trajectory.x.isfinite().all():  # a picture of it would be scored like any other
            raise TrainingError(
                f"step {places[0].step + 1}: what the model sampled is not finite",
                "start again with a lower optimizer.lr, or give model.dtype=float32",
            )
        images = self.decode(adapter, trajectory.x, [e for _, e, _ in everyone])
        samples = [
            self.train.sample_of(p.row, image, f"{p.step}/{p.index}")
            for (p, _, _), image in zip(everyone, images, strict=True)
        ]
        sampled = Sampled(adapter.shape_key(encodings[0]), places, members, encodings, trajectory)
        return Rollout(places, samples, sampled, trajectory.forwards * adapter.passes)

    def schedule(self, encoding: Mapping[str, Tensor], step: int) -> tuple[Tensor, tuple[int, ...]]:
        """Noise levels [T+1] and the window of one step of training."""
        rollout = self.recipe.rollout
        sigmas = self.adapter.sigmas(encoding, rollout.steps)
        if not self.recipe.algorithm.replays:
            return compress(sigmas, (), rollout.compress)
        w = rollout.window
        chosen = window(w.kind, rollout.steps, size=w.size, first=w.first, last=w.last, every=w.every,
                        iteration=step, seed=self.recipe.seed)  # fmt: skip
        return compress(sigmas, chosen, rollout.compress)

    def seed(self, place: Place, member: int, purpose: str) -> int:
        return sample_seed(self.recipe.seed, place.step, place.index, member, purpose)

    def generators(self, sampled: Sampled, purpose: str) -> list[torch.Generator]:
        """One per sample of `sampled`."""
        seeds = (self.seed(p, m, purpose) for p in sampled.places for m in range(sampled.members))
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    @torch.no_grad()
    def decode(self, adapter: FlowAdapter, x: Tensor, encodings: Sequence[Mapping[str, Tensor]]) -> list[Any]:
        most = self.recipe.batch.forward
        return [
            image
            for start in range(0, len(x), most)
            for image in adapter.decode(x[start : start + most], encodings[start : start + most])
        ]

    # -- training -----------------------------------------------------------------------------------------------------

    def rows(self, rollouts: Sequence[Rollout], advantages: Sequence[Tensor], masks: Sequence[Tensor]) -> Rows:
        return self.objective.rows(rollouts, advantages, masks)

    def loss(self, rows: Rows, indices: Sequence[int]) -> Loss:
        return (
            self.objective.loss(rows, indices)
            if indices
            else Loss(self.idle(self.recipe.algorithm.needs_reference).flatten()[:1] * 0, {})
        )

    def idle(self, reference: bool) -> Tensor:
        """A forward that takes part in the others' and stands for nothing; with `reference` two, as theirs."""
        encoding = self.train.encodings[0]
        x = torch.zeros(1, *self.adapter.noise_shape(encoding), device=self.adapter.device)
        batch = self.adapter.collate([encoding])
        v = self.adapter.velocity(x, x.new_ones(1), batch)
        return v + self.reference_velocity(x, x.new_ones(1), batch) * 0 if reference else v

    @torch.no_grad()
    def reference_velocity(self, x: Tensor, sigma: Tensor, batch: Any) -> Tensor:
        """The velocity of the model before training."""
        if self.frozen is not None:
            return self.adapter.velocity(x, sigma, batch, network=self.frozen)
        with reference(self.module):
            return self.adapter.velocity(x, sigma, batch)

    def updated(self) -> None:
        if self.old:
            self.old.update()

    # -- looking and keeping ------------------------------------------------------------------------------------------

    def evaluate(self, rows: Sequence[int]) -> Iterator[tuple[Sequence[int], Sequence[Sample]]]:
        held_out = self.held_out
        assert held_out is not None
        adapter = held_out.adapter
        with self._merged():
            for positions in self._parts(held_out, rows, self.recipe.batch.forward):
                part = [rows[i] for i in positions]
                encodings = [held_out.encodings[i] for i in part]
                sigmas = adapter.sigmas(encodings[0], self.recipe.evaluation.steps or self.recipe.rollout.steps)
                seeds = [sample_seed(self.recipe.data.seed, 0, i, 0, "evaluation") for i in part]
                x = torch.stack([adapter.noise(e, s) for e, s in zip(encodings, seeds, strict=True)])
                batch = adapter.collate(encodings)
                done = sample(lambda x, s, b=batch: adapter.velocity(x, s, b), x.to(adapter.device), sigmas)
                images = self.decode(adapter, done.x, encodings)
                yield part, [held_out.sample_of(i, im, "") for i, im in zip(part, images, strict=True)]

    def state(self) -> dict[str, Tensor]:
        return self.old.state() if self.old else {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        if self.old:
            self.old.restore(state)
