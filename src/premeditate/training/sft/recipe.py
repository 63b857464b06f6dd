"""What the cold start of a reasoning reward model is told: every field of its recipe, with its default."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from premeditate.config import ConfigError
from premeditate.prompts.verify import Mode
from premeditate.training.recipe import AdamW, Checkpoint, Count, Every, Part, Positive, Recorded, Share
from premeditate.training.tokens.recipe import Model


class Data(Part):
    """`train`, `eval`: folders of judged edits (premeditate.datasets.judged). `*_count`: the first so many that can be
    used; None: all."""

    train: str
    train_count: Count | None = None
    eval: str | None = None
    eval_count: Count | None = 256


class Batch(Part):
    """`size`: samples in a step, over all devices. `forward`: the most samples that one device runs at once; the
    accumulation follows."""

    size: Count = 32
    forward: Count = 4


class Optimizer(AdamW):
    """After the warmup the rate falls to 0 by the `schedule`, or stays."""

    lr: Positive = 1e-5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"


class SftRecipe(Recorded):
    """The whole of it. Give `steps` or `epochs`.

    `mode`: what an answer holds: a thought and the score ("think"), a verdict per principle and the score ("verify"),
    or all ("both"). Taught are the thought, verdicts and score of the candidate that was kept; `gold_verdicts` puts the
    gold verdicts in the place of its own. `min_accuracy`: edits whose kept candidate agreed less with gold are left
    out.
    """

    kind: Literal["sft"] = "sft"
    out: str = "runs/rrm-sft"
    steps: Count | None = None
    epochs: Positive | None = None
    mode: Mode = "both"
    gold_verdicts: bool = False
    min_accuracy: Share = 0.0
    model: Model = Model()
    data: Data
    batch: Batch = Batch()
    optimizer: Optimizer = Optimizer()
    evaluation: Every = Every(every=100)
    checkpoint: Checkpoint = Checkpoint(every=100)

    @model_validator(mode="after")
    def _fits(self) -> SftRecipe:
        if (self.steps is None) == (self.epochs is None):
            both = "both steps and epochs are" if self.steps is not None else "neither steps nor epochs is"
            raise ValueError(f"{both} given; give one of them, as in epochs=1")
        if self.gold_verdicts and self.mode == "think":
            raise ValueError("mode think has no verdicts; give gold_verdicts=false, or mode=both")
        return self


def portions(batch: Batch, devices: int) -> tuple[int, int]:
    """(samples of a forward, forwards of a step) of each device: the largest forwards that make up the batch. Raises
    `ConfigError` for a batch that the devices cannot share."""
    if batch.size % devices:
        near = max(devices, batch.size // devices * devices)
        raise ConfigError(f"{devices} devices cannot share a batch of {batch.size}", f"give batch.size={near}")
    share = batch.size // devices
    forward = max(n for n in range(1, min(batch.forward, share) + 1) if share % n == 0)
    return forward, share // forward
