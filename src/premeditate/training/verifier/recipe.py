"""What the training of a judge on preferred pairs is told: every field of its recipe, with its default."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from premeditate.prompts.verify import Mode
from premeditate.training import recipe
from premeditate.training.recipe import Count, Part, Positive, Run
from premeditate.training.tokens.recipe import Model


class Data(Part):
    """`train`, `eval`: files of preferred pairs (premeditate.datasets.preferences; `root`: the folder of their
    pictures, by default the file's; `format`: by default told by the rows), or "module:function", called with (n, seed)
    and returning pairs. `*_count`: pairs that a function makes at most, and those of a file that are used; None: all
    of a file. Ties are left out.

    `checklists`: the SPEC of the reasoner that writes the principles of pairs that bring none along
    (meta["checklist"]) when a run begins; `folder`: keeps what it wrote, for other runs too."""

    train: str = "premeditate.microworld.pairs:training_pairs"
    train_count: Count | None = 2048
    eval: str | None = "premeditate.microworld.pairs:held_out_pairs"
    eval_count: Count | None = 256
    root: str | None = None
    format: str | None = None
    seed: int = 0
    checklists: str | None = None
    folder: str | None = None


class Judging(Part):
    """How traces are drawn: `mode` as in `premeditate.prompts.verify`; `temperature`; at most `max_tokens` each (None:
    what the mode takes, as when the judge is asked later)."""

    mode: Mode = "both"
    temperature: Positive = 1.0
    max_tokens: Count | None = None


class Algorithm(Part):
    """GCPO's objective: the ratio's `clip_range`, and `kl`, the weight of the distance to the judge before training."""

    name: Literal["gcpo"] = "gcpo"
    clip_range: Positive = 0.2
    kl: Annotated[float, Field(ge=0)] = 0.0

    @property
    def needs_reference(self) -> bool:
        return self.kl > 0


class Grouping(recipe.Grouping):
    """GCPO's: the scores of one edit's traces against those of the other's. No trace's advantage is cut."""

    kind: Literal["grpo", "gdpo", "weighted", "ucpg", "gcpo"] = "gcpo"
    clip: Positive | None = None


class Batch(recipe.Batch):
    """`groups`: pairs in a step, over all devices. `group_size`: traces of each, half of them of the preferred edit.
    `forward`: traces that one device runs at once. `updates`: optimiser steps made from one step's traces."""

    group_size: Annotated[int, Field(ge=2)] = 16
    forward: Count = 16


class Optimizer(recipe.Optimizer):
    lr: Positive = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class VerifierRecipe(Run):
    """The whole of it. A group is a pair."""

    kind: Literal["gcpo"] = "gcpo"
    out: str = "runs/rrm-gcpo"
    model: Model = Model()
    data: Data = Data()
    judging: Judging = Judging()
    algorithm: Algorithm = Algorithm()
    grouping: Grouping = Grouping()
    batch: Batch = Batch()
    optimizer: Optimizer = Optimizer()

    @model_validator(mode="after")
    def _fits(self) -> VerifierRecipe:
        if self.batch.group_size % 2:
            n = self.batch.group_size + 1
            raise ValueError(f"a group is as many traces of one edit as of the other; give batch.group_size={n}")
        if self.grouping.kind != "gcpo":
            raise ValueError(f"{self.grouping.kind} knows no pairs; give grouping.kind=gcpo")
        if self.sharding.kind != "none":
            raise ValueError("a judge that writes cannot be sharded yet; give sharding.kind=none, and LoRA")
        return self
