"""How a step's samples lie on devices, optimiser steps and forwards. It is computed from recipe.batch, never typed.

groups x group_size samples
  -> devices: group i belongs to device i mod devices
  -> updates: groups in order, cut into as many equal parts as there are optimiser steps
  -> forwards: a device's samples (or, when training, rows: a sample at a trained noise level) of one shape, at most
     `forward` at a time
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from premeditate.config import ConfigError
from premeditate.training.recipe import Recipe, Run


@dataclass(frozen=True)
class Geometry:
    """`groups` of `group_size` samples over `devices` in `updates` optimiser steps, at most `forward` samples or rows
    in a forward; a group gives `rows` rows."""

    groups: int
    group_size: int
    devices: int
    updates: int
    forward: int
    rows: int

    @classmethod
    def of(cls, recipe: Run, devices: int = 1) -> Geometry:
        """The recipe's geometry. Raises `ConfigError` with the nearest possible settings where there is none."""
        batch = recipe.batch
        if devices < 1:
            raise ConfigError(f"{devices} devices cannot train", "give at least 1")
        if batch.groups % (devices * batch.updates):
            raise _impossible(batch.groups, devices, batch.updates)
        return cls(batch.groups, batch.group_size, devices, batch.updates, batch.forward, rows_of_group(recipe))

    # -- what the loop does -------------------------------------------------------------------------------------------

    def assignment(self, rank: int) -> list[int]:
        """The groups of one device, in order. Which group is the i-th of a step does not depend on the devices."""
        return list(range(rank, self.groups, self.devices))

    def update_of(self, group: int) -> int:
        """Which of the step's updates a group is trained in."""
        return group * self.updates // self.groups

    def slices(self, samples: int) -> list[range]:
        """`samples` of one shape cut into forwards of at most `forward`, as equal as can be."""
        return cut(samples, self.forward)

    # -- what follows -------------------------------------------------------------------------------------------------

    @property
    def samples(self) -> int:
        """In a step, over all devices."""
        return self.groups * self.group_size

    @property
    def groups_per_device(self) -> int:
        return self.groups // self.devices

    @property
    def samples_per_device(self) -> int:
        return self.groups_per_device * self.group_size

    @property
    def rollout_forwards(self) -> int:
        """Forwards of one denoising step on one device, if all tasks have one shape. A group is not cut if it fits."""
        whole = max(1, self.forward // self.group_size)
        parts = [min(whole, self.groups_per_device - k) for k in range(0, self.groups_per_device, whole)]
        return sum(len(self.slices(part * self.group_size)) for part in parts)

    @property
    def rows_per_update(self) -> int:
        """On one device, if no sample is masked."""
        return self.groups_per_device // self.updates * self.rows

    @property
    def accumulation(self) -> int:
        """Micro-batches whose gradients one optimiser step of a device sums."""
        return len(self.slices(self.rows_per_update))

    @property
    def microbatch(self) -> int:
        """Rows in the largest of them."""
        return max(map(len, self.slices(self.rows_per_update)))

    def table(self) -> list[tuple[str, str]]:
        """(what, how many) for people."""
        n = self.rows_per_update
        return [
            ("samples a step", f"{self.groups} groups x {self.group_size} = {self.samples}"),
            ("devices", f"{self.devices}, {self.groups_per_device} groups ({self.samples_per_device} samples) each"),
            ("rollout", f"{self.rollout_forwards} forward{'s' * (self.rollout_forwards > 1)} of at most "
                        f"{min(self.forward, self.samples_per_device)} samples at each denoising step"),
            ("updates", f"{self.updates}, {n} rows on each device "
                        f"({self.groups_per_device // self.updates} groups x {self.rows})"),
            ("accumulation", f"{self.accumulation} micro-batches of at most {self.microbatch} rows"),
        ]  # fmt: skip


def cut(count: int, most: int) -> list[range]:
    """0..count-1 in parts of at most `most`, as equal as can be."""
    parts = math.ceil(count / most)
    return [range(k * count // parts, (k + 1) * count // parts) for k in range(parts)]


def rows_of_group(recipe: Run) -> int:
    """Rows of the loss that a group gives, if none of its samples is masked. Of an editor: every sample at each noise
    level that it is trained at, which are the window's steps or algorithm.timesteps; for DPO a row is a pair, the best
    and the worst of the group."""
    if not isinstance(recipe, Recipe):
        return recipe.batch.group_size
    if recipe.algorithm.pairs:
        return recipe.algorithm.timesteps
    levels = len(windows(recipe)[0]) if recipe.algorithm.replays else recipe.algorithm.timesteps
    return recipe.batch.group_size * levels


def windows(recipe: Recipe) -> list[tuple[int, ...]]:
    """The stochastic steps of each training step (of the first 1000). () for an objective that samples with the ODE.
    Raises `ConfigError` for a window that the steps do not have."""
    from premeditate.rl.flow import window

    count, w = min(recipe.steps, 1000), recipe.rollout.window
    if not recipe.algorithm.replays:
        return [()] * count
    try:
        return [
            window(w.kind, recipe.rollout.steps, size=w.size, first=w.first, last=w.last, every=w.every, iteration=step,
                   seed=recipe.seed) for step in range(count)
        ]  # fmt: skip
    except ValueError as error:
        what, _, mend = str(error).partition("; ")
        raise ConfigError(f"rollout.window: {what}", mend or "change rollout.window or rollout.steps") from None


@dataclass(frozen=True)
class Forwards:
    """Evaluations of the model in one step over all devices, counted in samples, by phase. A backward counts as two
    more. `peer`: of the plain loop that makes the same update: every member sampled alone, all steps, adapters
    unmerged, log-probabilities (or the old velocities) computed anew, NFT and AWM trained at all noise levels.

    Evaluations are shared out among the steps between them. No sample is taken to be masked.
    """

    phases: Mapping[str, float]
    peer: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.phases.values())

    def ratio(self, tokens: float = 1, padded: float = 1) -> float:
        """How many times the work is the plain loop's, where its forwards have `padded` tokens and ours `tokens`."""
        return sum(self.peer.values()) * padded / (self.total * tokens)

    def table(self) -> list[tuple[str, str]]:
        """(phase, how many) for people."""
        rows = [(phase, f"{count:,.0f}") for phase, count in self.phases.items() if count]
        plain = sum(self.peer.values())
        return [*rows, ("total", f"{self.total:,.0f}, a plain loop makes {plain:,.0f} ({self.ratio():.2f}x)")]


def forwards(recipe: Recipe, *, passes: int = 1, held_out: int | None = None) -> Forwards:
    """What a step of `recipe` costs. `passes`: 2 with classifier-free guidance. `held_out`: tasks of an evaluation;
    None: recipe.data.eval_count. Raises `ConfigError` for an impossible window."""
    batch, rollout, algorithm = recipe.batch, recipe.rollout, recipe.algorithm
    members, n = batch.group_size, batch.groups * batch.group_size
    sampled = _mean(_steps_run(recipe))
    pair = 1 + algorithm.pairs
    rows = batch.groups * rows_of_group(recipe) * pair
    old = rows if algorithm.follows and (batch.updates > 1 or algorithm.old_decay > 0) else 0
    reference = rows if algorithm.needs_reference else 0
    tasks = 0 if recipe.data.eval is None else held_out if held_out is not None else recipe.data.eval_count or 0
    evaluation = tasks * (recipe.evaluation.steps or rollout.steps) / recipe.evaluation.every
    trained = n * rollout.steps if algorithm.follows else rows
    phases = {
        "rollout": batch.groups * (sampled[0] * (1 if rollout.share_prefix else members) + sampled[1] * members),
        "old policy": old, "reference": reference, "update": 3 * rows, "evaluation": evaluation,
    }  # fmt: skip
    peer = {
        "rollout": n * rollout.steps, "old policy": trained, "reference": trained if reference else 0,
        "update": 3 * trained, "evaluation": evaluation,
    }  # fmt: skip
    return Forwards(
        {name: passes * count for name, count in phases.items()}, {name: passes * count for name, count in peer.items()}
    )


def _steps_run(recipe: Recipe) -> list[tuple[int, int]]:
    """For each training step, the denoising steps before the window and from there on, as far as they are left."""
    import torch

    from premeditate.rl.flow import compress

    levels, found = torch.linspace(1, 0, recipe.rollout.steps + 1), dict[tuple[int, ...], tuple[int, int]]()
    chosen = windows(recipe)
    for window in set(chosen):
        left, inside = compress(levels, window, recipe.rollout.compress)
        before = inside[0] if inside else len(left) - 1
        found[window] = before, len(left) - 1 - before
    return [found[window] for window in chosen]


def _mean(pairs: Sequence[tuple[int, int]]) -> tuple[float, float]:
    first, second = (sum(pair[k] for pair in pairs) / len(pairs) for k in (0, 1))
    return first, second


def _impossible(groups: int, devices: int, updates: int) -> ConfigError:
    """Names what to type instead: the group counts on both sides, updates that divide, devices that do."""
    unit = devices * updates
    below, above = groups // unit * unit, (groups // unit + 1) * unit
    wanted = " or ".join(f"batch.groups={n}" for n in (below, above) if n)
    mends = [wanted]
    if groups % devices == 0:
        mends.append(f"batch.updates={max(u for u in _divisors(groups // devices) if u <= updates)}")
    if groups % updates == 0:
        fits = max(d for d in _divisors(groups // updates) if d <= devices)
        mends.append(f"{fits} device{'s' * (fits > 1)}")
    where = f"{devices} device{'s' * (devices > 1)} x {updates} update{'s' * (updates > 1)}"
    return ConfigError(
        f"batch.groups={groups} cannot be split over {where} ({unit} equal parts)", f"nearest: {', or '.join(mends)}"
    )


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
