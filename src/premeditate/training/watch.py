"""Figures over all processes, and what they warn of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from premeditate.stats import Z95, wilson
from premeditate.training.distributed import World

ORDERED = "pairs/ordered"
"""What GCPO maximises, where a group is a pair: the share of comparisons of its two edits that come out right."""


class Tally:
    """Means of named values that arrive in parts, weighted by how many there are, over all processes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._sums: dict[str, list[float]] = {}  # name -> count, sum, sum of squares, count of values that are 0 or 1

    def add(self, name: str, values: Tensor) -> None:
        """`values`: any number of them, of any shape; none still makes the name known."""
        flat = values.detach().flatten().cpu().double()
        parts = [len(flat), float(flat.sum()), float((flat**2).sum()), float(((flat == 0) | (flat == 1)).sum())]
        kept = self._sums.setdefault(name, [0.0] * 4)
        self._sums[name] = [a + b for a, b in zip(kept, parts, strict=True)]

    def finite(self, name: str) -> bool:
        return math.isfinite(self._sums.get(name, [0.0, 0.0])[1])

    def figures(self, *, intervals: bool = False) -> dict[str, float]:
        """name -> mean. With `intervals` also name/n, name/low and name/high at 95 %: Wilson's where every value is 0
        or 1, else normal. A name without values is left out: nothing was measured."""
        names = sorted(set().union(*self.world.gather(list(self._sums))))
        flat = self.world.sums([v for name in names for v in self._sums.get(name, [0.0] * 4)])
        found: dict[str, float] = {}
        for i, name in enumerate(names):
            n, total, squares, binary = flat[4 * i : 4 * i + 4]
            if not n:
                continue
            mean = found[name] = total / n
            if intervals:
                if binary == n:
                    low, high = wilson(round(total), round(n))
                else:
                    half = Z95 * math.sqrt(max(0.0, squares / n - mean * mean) / n)
                    low, high = mean - half, mean + half
                found |= {f"{name}/n": n, f"{name}/low": low, f"{name}/high": high}
        return found


class Watch:
    """Notices what ruins a run quietly: groups that teach nothing, and a reward that rises while the held-out falls."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self._idle = 0
        self._rewards: list[float] = []
        self._first: float | None = None
        self._best: dict[
            str, tuple[float, float | None]
        ] = {}  # held-out name -> [best mean, training reward at the time]

    def step(self, figures: Mapping[str, float]) -> tuple[str, str] | None:
        """(problem, mend) where the run should end: no informative group in `patience` steps."""
        rewards = [v for k, v in figures.items() if k.startswith("reward/")]
        aim = figures.get(ORDERED, sum(rewards) / max(1, len(rewards)))
        self._rewards = [*self._rewards, aim][-20:]
        self._first = self._rewards[0] if self._first is None else self._first
        self._idle = 0 if figures.get("groups/informative", 0) > 0 else self._idle + 1
        if self._idle < self.patience:
            return None
        return (
            f"in {self._idle} steps no group had rewards that differ, so there was nothing to learn from",
            "give harder or easier tasks, a larger batch.group_size, more noise (a judge: more temperature) or a finer "
            "reward; the last checkpoint is whole",
        )

    def evaluation(self, step: int, figures: Mapping[str, float]) -> list[str]:
        """Warnings: a held-out figure fell out of its best interval while the training reward went on rising."""
        said = []
        now = sum(self._rewards) / len(self._rewards) if self._rewards else None
        for name, value in figures.items():
            if not name.startswith("eval/") or name == "eval/coverage" or f"{name}/low" not in figures:
                continue
            best, reward = self._best.setdefault(name, (value, now))
            if value >= best:
                self._best[name] = (value, now)
                continue
            reward = self._first if reward is None else reward  # the best was before the first step
            if figures[f"{name}/high"] < best and now is not None and reward is not None and now > reward:
                said.append(
                    f"step {step}: {name} is {value:.3f}, down from {best:.3f}, while the training reward rose: "
                    "the reward is being gamed, or the model harmed; stop, give a reward for it, or raise algorithm.kl"
                )
        return said

    def state(self) -> dict[str, Any]:
        return {"idle": self._idle, "rewards": self._rewards, "first": self._first, "best": self._best}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._idle, self._rewards = state["idle"], list(state["rewards"])
        self._first = state["first"]
        self._best = {name: (pair[0], pair[1]) for name, pair in state["best"].items()}
