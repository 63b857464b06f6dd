"""Micro-world tasks: a scene, an instruction, its target, plan, checklist and explanation; and the splits.

Splits are by seed and by content. *train* and *test* draw from the same families, from disjoint seeds, and never hold
a held-out (colour, shape) pair. *ood-family* draws held-out families; *ood-combo* draws known families in scenes or
targets with at least one held-out pair; *ood* is half and half.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from premeditate.microworld.checker import checklist
from premeditate.microworld.families import KINDS, TRAINED, UNSEEN, Family
from premeditate.microworld.language import Step, canonical
from premeditate.microworld.scene import Scene
from premeditate.trace import ChecklistItem

Split = Literal["train", "test", "ood", "ood-family", "ood-combo"]
SPLITS: tuple[str, ...] = ("train", "test", "ood", "ood-family", "ood-combo")
TEST_SEEDS = 1_000_000_000
"""Seeds from here on are never trained on."""


@dataclass(frozen=True)
class MicroTask:
    kind: str
    family: str
    instruction: str
    source: Scene
    target: Scene
    steps: tuple[Step, ...]
    explanation: str
    seed: int
    split: str

    @property
    def plan(self) -> tuple[str, ...]:
        """The plan in explicit words."""
        return tuple(map(str, self.steps))

    @property
    def checklist(self) -> tuple[ChecklistItem, ...]:
        return checklist(self.source, self.target)

    @property
    def id(self) -> str:
        return f"{self.family}-{self.split}-{self.seed}"

    def meta(self) -> dict[str, Any]:
        """What a `trace.Task` carries in `meta` so that the exact checker can judge it."""
        return {
            "kind": self.kind,
            "family": self.family,
            "split": self.split,
            "seed": self.seed,
            "microworld": {
                "source": list(self.source.codes),
                "target": list(self.target.codes),
                "plan": list(self.plan),
                "checklist": [item.model_dump() for item in self.checklist],
                "explanation": self.explanation,
            },
        }


def build(
    family: Family, rng: random.Random, *, held_out: bool = False, seed: int = 0, split: str = "train"
) -> MicroTask:
    """Draws until the task is well posed: it changes the scene, and holds a held-out pair exactly where asked to."""
    while True:
        draft = family.build(rng)
        if draft is None:
            continue
        steps, target = canonical(draft.source, draft.steps)
        if target == draft.source or (draft.source.held_out or target.held_out) != held_out:
            continue
        return MicroTask(
            family.kind, family.name, draft.instruction, draft.source, target, steps, draft.explanation, seed, split
        )


_BY_KIND = {kind: tuple(f for f in TRAINED if f.kind == kind) for kind in KINDS}


def sample_task(
    seed: int, split: Split = "train", *, family: Family | None = None, kind: str | None = None
) -> MicroTask:
    """One task. The same (seed, split) gives the same task, on any machine.

    `seed` is shifted by TEST_SEEDS in every split but *train*. Kinds are drawn evenly, then families within the kind;
    `family` or `kind` fixes them.
    """
    if not 0 <= seed < TEST_SEEDS:
        raise ValueError(f"seed must be in 0..{TEST_SEEDS - 1}, not {seed}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    real = seed if split == "train" else seed + TEST_SEEDS
    part = split if split != "ood" else ("ood-family", "ood-combo")[seed % 2]
    rng = random.Random(f"{part}/{real}")
    if family is None:
        if part == "ood-family":
            choices = tuple(f for f in UNSEEN if kind in (None, f.kind)) or UNSEEN
        else:
            choices = _BY_KIND[kind or rng.choice(KINDS)]
        family = rng.choice(choices)
    return build(family, rng, held_out=part == "ood-combo", seed=real, split=part)


def sample_tasks(n: int, seed: int = 0, split: Split = "test") -> Iterator[MicroTask]:
    """`n` tasks; different `seed`s give disjoint sets as long as n <= 100,000."""
    return (sample_task(seed * 100_000 + i, split) for i in range(n))
