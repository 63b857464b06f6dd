"""The reasoner's own mistakes as lessons: plans that it wrote itself for fresh training tasks.

A critic that was only shown edits with a word altered at random has never seen the mistakes that this planner makes,
and shares them: asked about its own wrong edit it tends to find nothing. So the model writes plans (greedy and
sampled), the exact executor says which miss the target, and these become edits to criticise and to answer questions
about, and tasks to plan again. Truth still comes from the task alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from premeditate.microworld.families import Family
from premeditate.microworld.language import PlanError, canonical, parse_plan
from premeditate.microworld.models.reasoner_batch import Encoder
from premeditate.microworld.models.reasoner_data import PROMPTS, Item, look_item, think_item
from premeditate.microworld.models.reasoner_eval import checklist_right, generate, plan_right
from premeditate.microworld.tasks import TEST_SEEDS, MicroTask, sample_task

RIGHT = 0.3
"""Share of the edits drawn that follow a right plan: a critic that only sees mistakes finds them everywhere."""


@dataclass(frozen=True)
class Own:
    """A task and the steps that the model wrote for it, as they read when carried out."""

    task: MicroTask
    steps: tuple[str, ...]


class OwnPlans:
    """What the model got wrong lately: `wrong` and `right` plans, and `hard`, the tasks whose plan or checklist was
    not right. The oldest go first when there are more than `keep`."""

    def __init__(self, seed: int, keep: int = 1500) -> None:
        self.rng, self.keep = random.Random(f"own/{seed}"), keep
        self.seed = TEST_SEEDS // 2 + seed * 7_000_000
        self.wrong: list[Own] = []
        self.right: list[Own] = []
        self.hard: list[MicroTask] = []

    def refill(
        self, model: Any, encoder: Encoder, families: Sequence[Family], weights: Sequence[float], n: int
    ) -> float:
        """Lets the model plan `n` fresh tasks, greedily and once more sampled, and write their checklists. Returns the
        share of greedy plans that were right."""
        tasks = []
        for family in self.rng.choices(families, weights, k=n):
            self.seed += 1
            tasks.append(sample_task(self.seed % TEST_SEEDS, "train", family=family))
        items = [think_item(t, self.rng, clean=True) for t in tasks]
        pictures = [i.images for i in items]
        plans = [i.branches[0].prompt for i in items]
        greedy = generate(model, encoder, plans, pictures)
        sampled = generate(model, encoder, plans, pictures, temperature=0.9)
        lists = generate(model, encoder, [i.branches[1].prompt for i in items], pictures)
        good = 0
        for task, first, second, written in zip(tasks, greedy, sampled, lists, strict=True):
            right = plan_right(task, first)
            good += right
            if not right or not checklist_right(task, written):
                self.hard.append(task)
            for text in {first, second}:
                if (own := self._own(task, text)) is not None:
                    (self.right if plan_right(task, text) else self.wrong).append(own)
        for pool in (self.wrong, self.right, self.hard):
            del pool[: -self.keep]
        return good / n

    @property
    def ready(self) -> bool:
        """There is something of each kind to draw; a model that cannot write a plan yet has nothing to look at."""
        return bool(self.hard and self.right and self.wrong)

    @staticmethod
    def _own(task: MicroTask, text: str) -> Own | None:
        """None for a plan that cannot be carried out: there is no edit to look at."""
        try:
            steps, reached = canonical(task.source, parse_plan(" then ".join(PROMPTS.parse_plan(text).steps)))
        except PlanError:
            return None
        return None if reached == task.source else Own(task, tuple(map(str, steps)))

    def looks(self, n: int, **options: Any) -> Iterator[Item]:
        """`n` pairs of pictures with questions about them. `options`: of `look_item`."""
        for _ in range(n):
            own = self.rng.choice(self.right if self.rng.random() < RIGHT else self.wrong)
            yield look_item(own.task, self.rng, own=own.steps, **options)

    def thinks(self, n: int) -> Iterator[Item]:
        for _ in range(n):
            yield think_item(self.rng.choice(self.hard), self.rng)
