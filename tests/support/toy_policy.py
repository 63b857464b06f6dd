"""A policy without any flow or picture model: which of a few grey levels to answer a task with. The task's right level
stands in its meta. It shows what the training core asks of a policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from premeditate.rewards.base import Sample
from premeditate.rl.losses import flow_grpo
from premeditate.trace import Task
from premeditate.training.data import sample_seed
from premeditate.training.policy import Loss, Place, Policy, Rollout, Rows

LEVELS = 4


def right_level(samples: Sequence[Sample]) -> list[float | None]:
    """1 where the edit has the level that the task asks for."""
    return [float(s.edit.getpixel((0, 0))[0] == s.task.meta["level"]) for s in samples]


class LevelPolicy(Policy):
    """A table of logits [tasks, LEVELS]."""

    def __init__(self, tasks: int, members: int, *, seed: int = 0, updates: int = 1) -> None:
        self.module = nn.Embedding(tasks, LEVELS)
        nn.init.zeros_(self.module.weight)
        self.members, self.seed, self.updates = members, seed, updates
        self.calls = 0

    def _log_probs(self, rows: Tensor) -> Tensor:
        return self.module(rows).log_softmax(-1)

    def sample(self, places: Sequence[Place]) -> Iterator[Rollout]:
        for place in places:
            generators = [
                torch.Generator().manual_seed(sample_seed(self.seed, place.step, place.index, m, "level"))
                for m in range(self.members)
            ]
            with torch.no_grad():
                log_probs = self._log_probs(torch.tensor([place.row]))[0]
            levels = torch.stack([torch.multinomial(log_probs.exp(), 1, generator=g)[0] for g in generators])
            yield Rollout([place], [self.as_sample(place.row, int(v)) for v in levels], (levels, log_probs[levels]))

    def as_sample(self, row: int, level: int) -> Sample:
        task = Task(id=f"t{row}", images=(), instruction="pick", meta={"level": row % LEVELS})
        grey = Image.new("RGB", (1, 1), (level, level, level))
        return Sample(task=task, source=grey, edit=grey, group=str(row))

    def rows(self, rollouts: Sequence[Rollout], advantages: Sequence[Tensor], masks: Sequence[Tensor]) -> Rows:
        found = [
            (rollout.places[0], int(level), float(old), float(a))
            for rollout, values, mask in zip(rollouts, advantages, masks, strict=True)
            for level, old, a, keep in zip(*rollout.data, values, mask, strict=True)
            if keep
        ]
        return Rows([0] * len(found), [place.index for place, *_ in found], found)

    def loss(self, rows: Rows, indices: Sequence[int]) -> Loss:
        self.calls += 1
        if not indices:
            return Loss(self.module.weight.sum() * 0)
        part = [rows.data[i] for i in indices]
        log_probs = self._log_probs(torch.tensor([place.row for place, *_ in part]))
        now = log_probs[torch.arange(len(part)), torch.tensor([level for _, level, _, _ in part])]
        old, a = torch.tensor([o for _, _, o, _ in part]), torch.tensor([a for *_, a in part])
        found = flow_grpo(now, now.detach() if self.updates == 1 else old, a, clip_range=0.2)
        return Loss(found.values, found.metrics)

    def evaluate(self, rows: Sequence[int]) -> Iterator[tuple[Sequence[int], Sequence[Sample]]]:
        levels = self.module.weight.argmax(-1).tolist()
        yield rows, [self.as_sample(row, levels[row]) for row in rows]
