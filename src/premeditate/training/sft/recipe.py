"""What the cold start of a reasoning reward model is told: every field of its recipe, with its default."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import Field, model_validator

from premeditate.config import ConfigError
from premeditate.prompts.verify import Mode
from premeditate.training import recipe
from premeditate.training.recipe import Checkpoint, Count, Part, Positive, Share

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Lora(recipe.Lora):
    """Low-rank adapters of the language model; the picture encoder stays as it is."""

    targets: tuple[str, ...] = LORA_TARGETS


class Model(Part):
    """The reasoner that learns to judge. `base`: a SPEC (preset, folder, hub id) of a Qwen vision-language model;
    `revision`: of a hub id. `lora` None: all of it is trained, with `vision` false all but the picture encoder.

    `dtype`: what forwards calculate in. Weights that are trained are float32 in any case. `max_pixels`: larger pictures
    are reduced to this many; None: as the preset or the folder says.
    """

    base: str = "qwen2.5-vl-7b"
    revision: str | None = None
    lora: Lora | None = Lora()
    vision: bool = True
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: str | None = None
    gradient_checkpointing: bool = False
    max_pixels: Count | None = None


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


class Optimizer(Part):
    """AdamW. `warmup`: steps until the rate is `lr`; after it, it falls to 0 by the `schedule` or stays."""

    lr: Positive = 1e-5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 0
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Positive = 1.0


class Evaluation(Part):
    """Loss and accuracy on held-out edits every `every` steps, and at the start and end."""

    every: Count = 100


class Logging(Part):
    """Where figures go beside the console and log.jsonl."""

    to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    project: str = "premeditate"


class Trains(Protocol):
    """A recipe that trains a judge."""

    @property
    def model(self) -> Model: ...


class SftRecipe(Part):
    """The whole of it. Give `steps` or `epochs`.

    `mode`: what an answer holds: a thought and the score ("think"), a verdict per principle and the score ("verify"),
    or all ("both"). `targets`: "kept" teaches the thought, verdicts and score of the candidate that was kept;
    `gold_verdicts` puts the gold verdicts in the place of its own. `min_accuracy`: edits whose kept candidate agreed
    less with gold are left out.
    """

    kind: Literal["sft"] = "sft"
    name: str = ""
    out: str = "runs/rrm-sft"
    seed: int = 0
    steps: Count | None = None
    epochs: Positive | None = None
    mode: Mode = "both"
    targets: Literal["kept"] = "kept"
    gold_verdicts: bool = False
    min_accuracy: Share = 0.0
    model: Model = Model()
    data: Data
    batch: Batch = Batch()
    optimizer: Optimizer = Optimizer()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint(every=100)
    logging: Logging = Logging()

    @model_validator(mode="after")
    def _fits(self) -> SftRecipe:
        if (self.steps is None) == (self.epochs is None):
            both = "both steps and epochs are" if self.steps is not None else "neither steps nor epochs is"
            raise ValueError(f"{both} given; give one of them, as in epochs=1")
        if self.gold_verdicts and self.mode == "think":
            raise ValueError("mode think has no verdicts; give gold_verdicts=false, or mode=both")
        if max(self.optimizer.betas) >= 1:
            raise ValueError("an optimiser that forgets nothing learns nothing; give optimizer.betas=[0.9,0.999]")
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
