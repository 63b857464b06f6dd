"""A flow-matching editor as a policy: how it samples groups, and what its objectives train on.

Noise comes from generators that are seeded by (seed, step, group, member): the same edits whatever the batch geometry,
the number of devices or the times that the run was stopped.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from premeditate.datasets.tasks import TaskRow
from premeditate.rewards.base import Sample
from premeditate.rl.flow import Trajectory, compress, sample, window
from premeditate.trace import Task
from premeditate.training.adapters.base import FlowAdapter
from premeditate.training.cache import EncodingCache
from premeditate.training.data import prompt_of, sample_seed
from premeditate.training.ema import Ema
from premeditate.training.lora import merged, reference
from premeditate.training.objectives import Objective, make_objective
from premeditate.training.policy import Loss, Place, Policy, Rollout, Rows
from premeditate.training.recipe import Recipe


@dataclass
class Tasks:
    """Tasks with their encodings for one adapter, which fixes the working size."""

    adapter: FlowAdapter
    rows: Sequence[TaskRow]
    encodings: EncodingCache

    def by_shape(self, indices: Sequence[int]) -> dict[Hashable, list[int]]:
        """Positions in `indices` by what fits into one forward."""
        found: dict[Hashable, list[int]] = defaultdict(list)
        for position, i in enumerate(indices):
            found[self.adapter.shape_key(self.encodings[i])].append(position)
        return dict(found)

    def sample_of(self, i: int, edit: Any, group: str) -> Sample:
        row = self.rows[i]
        task = Task(id=row.id, images=(), instruction=prompt_of(row), meta=row.meta)
        return Sample(task=task, source=row.images[0], edit=edit, group=group)


@dataclass
class Sampled:
    """Groups of one shape. `members`: edits of each. `encodings`: one per group."""

    key: Hashable
    places: Sequence[Place]
    members: int
    encodings: list[Mapping[str, Tensor]]
    trajectory: Trajectory


class FlowPolicy(Policy):
    """`train`, `held_out`: their tasks; the latter may have another adapter (size) over the same transformer. `fused`:
    LoRA weights may be added to their base while sampling, which a sharded base does not allow."""

    def __init__(self, recipe: Recipe, train: Tasks, held_out: Tasks | None, *, fused: bool = True) -> None:
        self.recipe, self.train, self.held_out = recipe, train, held_out
        self.adapter = train.adapter
        self.module: nn.Module = self.adapter.transformer
        self.objective: Objective = make_objective(recipe.algorithm, self)
        self.fused = fused and recipe.model.lora is not None and recipe.rollout.merge_lora
        self.frozen: nn.Module | None = None
        if self.objective.needs_reference and recipe.model.lora is None:
            self.frozen = copy.deepcopy(self.module).requires_grad_(False)
        decay = recipe.algorithm.old_decay
        trained = [p for p in self.module.parameters() if p.requires_grad]
        self.old: Ema | None = Ema(trained, decay) if decay and self.objective.follows else None

    # -- sampling -----------------------------------------------------------------------------------------------------

    def sample(self, places: Sequence[Place]) -> Iterator[Rollout]:
        with self.sampling(), self._merged():
            for positions in self.train.by_shape([p.row for p in places]).values():
                most = max(1, self.recipe.batch.forward // self.recipe.batch.group_size)
                for start in range(0, len(positions), most):
                    yield self._groups([places[i] for i in positions[start : start + most]])

    def sampling(self) -> AbstractContextManager[Any]:
        """A context with the weights that sample: the moving average where the objective keeps one."""
        return self.old.swapped() if self.old else nullcontext()

    def _merged(self) -> AbstractContextManager[Any]:
        return merged(self.module) if self.fused else nullcontext()

    def _groups(self, places: Sequence[Place]) -> Rollout:
        recipe, adapter, members = self.recipe, self.adapter, self.recipe.batch.group_size
        encodings = [self.train.encodings[p.row] for p in places]
        sigmas, steps = self.schedule(encodings[0], places[0].step)
        shape, device = adapter.noise_shape(encodings[0]), adapter.device
        everyone = [(p, m) for p in places for m in range(members)]
        first = [self._generator(p, 0 if recipe.rollout.share_prefix else m, "start") for p, m in everyone]
        later = [self._generator(p, m, "steps") for p, m in everyone]

        def draw(generators: Sequence[torch.Generator]) -> Tensor:
            return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)

        batch = adapter.collate(encodings)

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            groups = torch.arange(len(places)).repeat_interleave(len(x) // len(places))
            parts = zip(x.split(recipe.batch.forward), sigma.split(recipe.batch.forward),
                        groups.split(recipe.batch.forward), strict=True)  # fmt: skip
            return torch.cat([adapter.velocity(part, level, batch.select(g)) for part, level, g in parts])

        trajectory = sample(
            velocity, draw(first), sigmas, window=steps, noise=lambda index: draw(later),
            dynamics=recipe.rollout.dynamics if steps else "ode", noise_level=recipe.rollout.noise_level,
            solver=recipe.rollout.solver, group=members if recipe.rollout.share_prefix else 1,
        )  # fmt: skip
        images = self.decode(adapter, trajectory.x, [e for e in encodings for _ in range(members)])
        samples = [
            self.train.sample_of(p.row, image, f"{p.step}/{p.index}")
            for (p, _), image in zip(everyone, images, strict=True)
        ]
        sampled = Sampled(adapter.shape_key(encodings[0]), places, members, encodings, trajectory)
        return Rollout(places, samples, sampled, trajectory.forwards * adapter.passes)

    def schedule(self, encoding: Mapping[str, Tensor], step: int) -> tuple[Tensor, tuple[int, ...]]:
        """Noise levels [T+1] and the window of one step of training."""
        rollout = self.recipe.rollout
        sigmas = self.adapter.sigmas(encoding, rollout.steps)
        if not self.objective.stochastic:
            return compress(sigmas, (), rollout.compress)
        w = rollout.window
        chosen = window(w.kind, rollout.steps, size=w.size, first=w.first, last=w.last, every=w.every,
                        iteration=step, seed=self.recipe.seed)  # fmt: skip
        return compress(sigmas, chosen, rollout.compress)

    def _generator(self, place: Place, member: int, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(sample_seed(self.recipe.seed, place.step, place.index, member, purpose))

    def generators(self, sampled: Sampled, purpose: str) -> list[torch.Generator]:
        """One per sample of `sampled`."""
        return [self._generator(p, m, purpose) for p in sampled.places for m in range(sampled.members)]

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
        if indices:
            return self.objective.loss(rows, indices)
        # No row of its own: any forward and backward that takes part in the others', and adds nothing.
        encoding = self.train.encodings[0]
        x = torch.zeros(1, *self.adapter.noise_shape(encoding), device=self.adapter.device)
        v = self.adapter.velocity(x, x.new_ones(1), self.adapter.collate([encoding]))
        return Loss(v.sum() * 0)

    @torch.no_grad()
    def reference_velocity(self, x: Tensor, sigma: Tensor, batch: Any) -> Tensor:
        """The velocity of the model before training."""
        if self.frozen is not None:
            return self.adapter.velocity(x, sigma, batch, network=self.frozen)
        with reference(self.module):
            return self.adapter.velocity(x, sigma, batch)

    def updated(self, step: int) -> None:
        if self.old:
            self.old.update()

    # -- looking and keeping ------------------------------------------------------------------------------------------

    def evaluate(self, rows: Sequence[int]) -> Iterator[tuple[Sequence[int], Sequence[Sample]]]:
        held_out = self.held_out
        assert held_out is not None
        adapter, most = held_out.adapter, self.recipe.batch.forward
        with self._merged():
            for positions in held_out.by_shape(rows).values():
                for start in range(0, len(positions), most):
                    part = [rows[i] for i in positions[start : start + most]]
                    encodings = [held_out.encodings[i] for i in part]
                    sigmas = adapter.sigmas(encodings[0], self.recipe.evaluation.steps or self.recipe.rollout.steps)
                    seeds = [sample_seed(self.recipe.data.seed, 0, i, 0, "evaluation") for i in part]
                    shape = adapter.noise_shape(encodings[0])
                    x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])
                    batch = adapter.collate(encodings)
                    done = sample(lambda x, s, b=batch: adapter.velocity(x, s, b), x.to(adapter.device), sigmas)
                    images = self.decode(adapter, done.x, encodings)
                    yield part, [held_out.sample_of(i, im, "") for i, im in zip(part, images, strict=True)]

    def state(self) -> dict[str, Tensor]:
        return self.old.state() if self.old else {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        if self.old:
            self.old.restore(state)

    def export(self, folder: Path, card: Mapping[str, Any]) -> None:
        from premeditate.training import export

        export.write(self.adapter, Path(folder), self.recipe, card)
