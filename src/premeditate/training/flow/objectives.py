"""What a flow policy is trained on: which rows a rollout gives, and the loss of a row.

    Replay     flow-grpo, grpo-guard     a row is a recorded step of a sample, taken again for its probability
    Forward    nft, awm                  a row is a finished sample, made noisy at some level
    Pairs      dpo                       a row is the best and the worst sample of a group, made noisy alike

Rows of all timesteps share forwards, for every row has its own noise level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from premeditate.rl import losses
from premeditate.rl.flow import StepResult, Trajectory, noised, step
from premeditate.rl.losses import Loss
from premeditate.training.distributed import World
from premeditate.training.ema import Ema
from premeditate.training.flow.adapters.base import FlowAdapter
from premeditate.training.policy import Place, Rollout, Rows, micro_batches
from premeditate.training.recipe import Algorithm, Recipe


class Sampler(Protocol):
    """What an objective asks of the policy that it is the objective of."""

    recipe: Recipe
    adapter: FlowAdapter
    world: World
    old: Ema | None

    def schedule(self, encoding: Mapping[str, Tensor], step: int) -> tuple[Tensor, tuple[int, ...]]: ...
    def generators(self, sampled: Sampled, purpose: str) -> list[torch.Generator]: ...
    def sampling(self) -> AbstractContextManager[Any]: ...
    def idle(self, reference: bool) -> Tensor: ...
    def reference_velocity(self, x: Tensor, sigma: Tensor, batch: Any) -> Tensor: ...


@dataclass
class Sampled:
    """Groups of one shape. `members`: edits of each. `encodings`: one per group."""

    key: Hashable
    places: Sequence[Place]
    members: int
    encodings: list[Mapping[str, Tensor]]
    trajectory: Trajectory


@dataclass
class Stack:
    """All samples of one shape in a step. `batch`: the conditions of its groups; `groups` [N]: each sample's.
    `sampled`: the parts that they were sampled in; `starts`: each part's first sample."""

    batch: Any
    groups: Tensor
    advantages: Tensor
    x0: Tensor
    sampled: list[Sampled]
    starts: list[int]
    noise: Tensor | None = None
    levels: Tensor | None = None

    def steps(self, name: str) -> Tensor:
        """A field [S] of the trajectories, which all have the same."""
        found: Tensor = getattr(self.sampled[0].trajectory, name)
        return found

    def recorded(self, name: str, places: Sequence[tuple[int, int]]) -> Tensor:
        """A field [N, S, ...] of the trajectories, at places (sample, step): [n, ...]. Taken one by one, for a step's
        trajectories are gigabytes and a micro-batch needs few of them."""
        found = []
        for n, k in places:
            part = bisect_right(self.starts, n) - 1
            found.append(getattr(self.sampled[part].trajectory, name)[n - self.starts[part], k])
        return torch.stack(found)


Stacks = dict[Hashable, tuple[Stack, list[tuple[int, int]]]]
"""For each shape the stacked samples, and (sample, its group's index in the step) of those to train on."""


class Objective(ABC):
    """What one algorithm trains on."""

    def __init__(self, algorithm: Algorithm, policy: Sampler) -> None:
        self.algorithm, self.policy = algorithm, policy

    @property
    def on_policy(self) -> bool:
        """Whether the weights of an update are always those that sampled."""
        return self.policy.recipe.batch.updates == 1 and self.policy.old is None

    def first_update(self, rows: Rows, indices: Sequence[int]) -> bool:
        batch = self.policy.recipe.batch
        return all(rows.groups[i] * batch.updates < batch.groups for i in indices)

    @abstractmethod
    def rows(self, rollouts: Sequence[Rollout], advantages: Sequence[Tensor], masks: Sequence[Tensor]) -> Rows: ...

    @abstractmethod
    def loss(self, rows: Rows, indices: Sequence[int]) -> Loss: ...

    def stacks(self, rollouts: Sequence[Rollout], advantages: Sequence[Tensor], masks: Sequence[Tensor]) -> Stacks:
        adapter = self.policy.adapter
        found: Stacks = {}
        for key in dict.fromkeys(r.data.key for r in rollouts):
            of = [i for i, r in enumerate(rollouts) if r.data.key == key]
            sampled: list[Sampled] = [rollouts[i].data for i in of]
            groups = sum(len(s.places) for s in sampled)
            device = sampled[0].trajectory.x.device
            stack = Stack(
                adapter.collate([e for s in sampled for e in s.encodings]),
                torch.arange(groups).repeat_interleave(sampled[0].members),
                torch.cat([advantages[i] for i in of]).to(device),
                torch.cat([s.trajectory.x for s in sampled]),
                sampled,
                list(accumulate((len(s.trajectory.x) for s in sampled[:-1]), initial=0)),
            )
            indices = [p.index for s in sampled for p in s.places for _ in range(s.members)]
            kept = torch.cat([masks[i] for i in of]).tolist()
            found[key] = stack, [(n, g) for n, (g, keep) in enumerate(zip(indices, kept, strict=True)) if keep]
        return found

    def each(self, stacks: Stacks, count: Callable[[Stack], int]) -> Rows:
        """A row for each kept sample at each of `count` places: recorded steps, or noise levels."""
        keys: list[Hashable] = []
        groups: list[int] = []
        places: list[tuple[int, int]] = []
        for key, (stack, kept) in stacks.items():
            for k in range(count(stack)):
                keys += [key] * len(kept)
                groups += [group for _, group in kept]
                places += [(n, k) for n, _ in kept]
        return Rows(keys, groups, ({key: stack for key, (stack, _) in stacks.items()}, places))


class Replay(Objective):
    """Policy gradients over recorded steps: Flow-GRPO (arXiv 2505.05470) and GRPO-Guard (arXiv 2510.22319)."""

    def rows(self, rollouts: Sequence[Rollout], advantages: Sequence[Tensor], masks: Sequence[Tensor]) -> Rows:
        stacks = self.stacks(rollouts, advantages, masks)
        return self.each(stacks, lambda stack: len(stack.steps("sigmas")))

    def loss(self, rows: Rows, indices: Sequence[int]) -> Loss:
        algorithm, rollout = self.algorithm, self.policy.recipe.rollout
        stacks, places = rows.data
        stack: Stack = stacks[rows.keys[indices[0]]]
        chosen = [places[i] for i in indices]
        n, k = torch.tensor(chosen).T
        batch, x = stack.batch.select(stack.groups[n]), stack.recorded("states", chosen)
        sigma, sigma_next = stack.steps("sigmas")[k], stack.steps("sigmas_next")[k]
        velocity = self.policy.adapter.velocity(x, sigma, batch)
        now = step(x, velocity, sigma, sigma_next, dynamics=rollout.dynamics, noise_level=rollout.noise_level,
                   x_next=stack.recorded("nexts", chosen))  # fmt: skip
        sampled = stack.recorded("log_probs", chosen)
        # While the weights are those that sampled, the ratio is 1; rounding must not make it another number.
        old = now.log_prob.detach() if self.on_policy else sampled
        if algorithm.name == "grpo-guard":
            mean = now.mean.detach() if self.on_policy else stack.recorded("means", chosen)
            found = losses.grpo_guard(
                now.log_prob, old, now.mean, mean, now.std, stack.advantages[n], clip_range=algorithm.clip_range,
                dt=sigma_next - sigma if algorithm.reweight else None, dynamics=rollout.dynamics,
            )  # fmt: skip
        else:
            found = losses.flow_grpo(now.log_prob, old, stack.advantages[n], clip_range=algorithm.clip_range)
        values, metrics = found.values, dict(found.metrics)
        if self.first_update(rows, indices):  # later the weights differ, as they should
            metrics["mismatch"] = (now.log_prob.detach() - sampled).abs()
        if algorithm.kl:
            kl = self._kl(velocity, x, sigma, sigma_next, batch, now)
            values, metrics = values + algorithm.kl * kl, metrics | {"kl": kl.detach()}
        return Loss(values, metrics)

    def _kl(
        self, velocity: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor, batch: Any, now: StepResult
    ) -> Tensor:
        """The distance [n] of the steps to those of the model before training, of the recipe's kind."""
        frozen = self.policy.reference_velocity(x, sigma, batch)
        if self.algorithm.kl_kind == "velocity":
            return losses.velocity_kl(velocity, frozen)
        rollout = self.policy.recipe.rollout
        then = step(x, frozen, sigma, sigma_next, dynamics=rollout.dynamics, noise_level=rollout.noise_level, x_next=x)
        if self.algorithm.kl_kind == "published":
            return losses.published_kl(now.mean, then.mean, now.std, sigma_next - sigma)
        return losses.gaussian_kl(now.mean, then.mean, now.std)


class Forward(Objective):
    """Losses on finished samples made noisy: DiffusionNFT (arXiv 2509.16117) and AWM (arXiv 2509.25050)."""

    def rows(self, rollouts: Sequence[Rollout], advantages: Sequence[Tensor], masks: Sequence[Tensor]) -> Rows:
        stacks = self.stacks(rollouts, advantages, masks)
        for stack, _ in stacks.values():
            self.add_noise(stack)
        rows = self.each(stacks, lambda stack: self.algorithm.timesteps)
        if not self.on_policy:
            self._remember(rows)
        return rows

    def add_noise(self, stack: Stack) -> None:
        """`levels` [N, J]: different ones of the sampler's for each sample; `noise` [N, J, ...]."""
        count, levels, noise = self.algorithm.timesteps, [], []
        for sampled in stack.sampled:
            sigmas, _ = self.policy.schedule(sampled.encodings[0], sampled.places[0].step)
            if count > len(sigmas) - 1:
                raise ValueError(
                    f"algorithm.timesteps={count} is more than the rollout's {len(sigmas) - 1} noise levels; "
                    f"give algorithm.timesteps={len(sigmas) - 1} or more rollout.steps"
                )
            for generator in self.policy.generators(sampled, "noising"):
                levels.append(sigmas[torch.randperm(len(sigmas) - 1, generator=generator)[:count]])
                noise.append(torch.randn(count, *sampled.trajectory.x.shape[1:], generator=generator))
        stack.levels = torch.stack(levels).to(stack.x0)
        stack.noise = torch.stack(noise).to(stack.x0)

    def _noisy(self, rows: Rows, indices: Sequence[int]) -> tuple[Any, ...]:
        stacks, places = rows.data
        stack: Stack = stacks[rows.keys[indices[0]]]
        assert stack.levels is not None and stack.noise is not None
        n, j = torch.tensor([places[i] for i in indices]).T
        sigma = stack.levels[n, j]
        x, target = noised(stack.x0[n], stack.noise[n, j], sigma)
        return stack, n, x, sigma, target, stack.batch.select(stack.groups[n])

    @torch.no_grad()
    def _remember(self, rows: Rows) -> None:
        """The sampling policy's velocities of all rows, before an update changes the weights."""
        rows.old = {}
        most = self.policy.recipe.batch.forward
        with self.policy.sampling():
            for indices in micro_batches(rows, range(len(rows)), most, self.policy.world):
                if indices:
                    _, _, x, sigma, _, batch = self._noisy(rows, indices)
                    rows.old.update(zip(indices, self.policy.adapter.velocity(x, sigma, batch), strict=True))
                else:
                    self.policy.idle(reference=False)

    def loss(self, rows: Rows, indices: Sequence[int]) -> Loss:
        algorithm = self.algorithm
        stack, n, x, sigma, target, batch = self._noisy(rows, indices)
        velocity = self.policy.adapter.velocity(x, sigma, batch)
        old = velocity.detach() if rows.old is None else torch.stack([rows.old[i] for i in indices])
        if algorithm.name == "nft":
            adaptive = (x, sigma) if algorithm.adaptive else None
            clip = self.policy.recipe.grouping.clip
            assert clip is not None, "the recipe sees to it"
            found = losses.nft(velocity, old, target, stack.advantages[n], beta=algorithm.beta, clip=clip,
                               adaptive=adaptive)  # fmt: skip
        else:
            weight = sigma if algorithm.awm_weight == "sigma" else 1.0
            found = losses.awm(velocity, old, target, stack.advantages[n], clip_range=algorithm.clip_range,
                               power=algorithm.awm_power, weight=weight)  # fmt: skip
        values, metrics = found.values, dict(found.metrics)
        if algorithm.kl:
            kl = losses.velocity_kl(velocity, self.policy.reference_velocity(x, sigma, batch))
            values, metrics["kl"] = values + algorithm.kl * kl, kl.detach()
        return Loss(values, metrics)


class Pairs(Forward):
    """Online DPO: the best edit of a group against its worst (Diffusion-DPO, arXiv 2311.12908, on flow errors)."""

    def rows(self, rollouts: Sequence[Rollout], advantages: Sequence[Tensor], masks: Sequence[Tensor]) -> Rows:
        keys: list[Hashable] = []
        groups: list[int] = []
        places: list[tuple[int, int, int]] = []
        stacks = self.stacks(rollouts, advantages, masks)
        for key, (stack, kept) in stacks.items():
            self.add_noise(stack)
            group_of = dict(kept)
            value = torch.full_like(stack.advantages, torch.nan)
            value[list(group_of)] = stack.advantages[list(group_of)]
            for best, worst in losses.pairs(value.view(-1, self.policy.recipe.batch.group_size)).tolist():
                for j in range(self.algorithm.timesteps):
                    keys.append(key)
                    groups.append(group_of[best])
                    places.append((best, worst, j))
        return Rows(keys, groups, ({key: stack for key, (stack, _) in stacks.items()}, places), samples=2)

    def loss(self, rows: Rows, indices: Sequence[int]) -> Loss:
        stacks, places = rows.data
        stack: Stack = stacks[rows.keys[indices[0]]]
        assert stack.levels is not None and stack.noise is not None
        best, worst, j = torch.tensor([places[i] for i in indices]).T
        # Both of a pair get the winner's level and noise: what is compared is the samples, not the draw.
        both = torch.cat([best, worst])
        sigma, noise = stack.levels[best, j].repeat(2), torch.cat([stack.noise[best, j]] * 2)
        x, target = noised(stack.x0[both], noise, sigma)
        batch = stack.batch.select(stack.groups[both])
        velocity = self.policy.adapter.velocity(x, sigma, batch)
        frozen = self.policy.reference_velocity(x, sigma, batch)
        error, before = (losses.velocity_kl(v, target).chunk(2) for v in (velocity, frozen))
        found = losses.dpo(error[0], error[1], before[0], before[1], beta=self.algorithm.beta)
        return Loss(found.values, found.metrics)


def make_objective(algorithm: Algorithm, policy: Sampler) -> Objective:
    kinds: dict[str, Callable[[Algorithm, Sampler], Objective]] = {
        "flow-grpo": Replay,
        "grpo-guard": Replay,
        "nft": Forward,
        "awm": Forward,
        "dpo": Pairs,
    }
    return kinds[algorithm.name](algorithm, policy)
