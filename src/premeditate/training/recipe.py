"""What a training run is told: every field of a recipe, with its default.

A recipe is a YAML file of these; `premeditate train RECIPE key.sub=value` changes single fields. Sizes are pixels,
times are seconds, shares are in 0-1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lora(Part):
    """Low-rank adapters. `targets`: ends of module names, as in peft. `alpha` None: the rank."""

    rank: Count = 32
    alpha: Positive | None = None
    targets: tuple[str, ...] = LORA_TARGETS


class Model(Part):
    """The editor that is trained. `base`: a SPEC (preset, folder, hub id); `revision`: of a hub id. `lora` None: all of
    the transformer.

    `size`: the working area is about size x size. `text_tokens`: prompts are padded to this many tokens, where the
    model's attention sees padding (FLUX); None: as the pipeline does it; "real": not padded at all, which costs least
    and which FLUX was not trained on.
    """

    base: str = "micro-base"
    revision: str | None = None
    size: Count = 64
    lora: Lora | None = Lora()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str | None = None
    gradient_checkpointing: bool = False
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    text_tokens: Count | Literal["real"] | None = None


class Data(Part):
    """`train`, `eval`: a folder or file of tasks (premeditate.datasets.tasks), or "module:function", called with
    (n, seed) and returning task rows. `*_count`: rows that are made or read at most; None: all of a folder.
    A task's prompt is meta["prompt"] where it has one, else its instruction."""

    train: str = "premeditate.microworld.dataset:explicit"
    train_count: Count | None = 4096
    eval: str | None = "premeditate.microworld.dataset:explicit_held_out"
    eval_count: Count | None = 256
    seed: int = 0


class Reward(Part):
    """One reward of the panel. `use`: "module:attribute" (a reward, or what makes one, or a plain function of samples),
    "preservation", "exact", "reasoner:SPEC" (a checklist answered by that reasoner), another judge ("viescore:SPEC",
    "editscore:SPEC", "digits:SPEC", "rrm:SPEC", "editreward:FOLDER") or the address of a served panel ("http://host:port")."""

    use: str
    weight: float = 1.0
    timeout: Positive = 120.0
    name: str = ""


class Grouping(Part):
    """How a group's reward vectors become advantages."""

    kind: Literal["grpo", "gdpo", "weighted", "ucpg", "gcpo"] = "grpo"
    min_length: Annotated[int, Field(ge=2)] = 2
    clip: Positive | None = 5.0
    """Advantages are cut to [-clip, clip]."""
    missing: Literal["left out", "lost"] = "left out"
    """gcpo: what a trace is that cannot be read. "lost": it wins against nobody, and is trained on as such."""


class Window(Part):
    """Which denoising steps are stochastic and trained. `first`, `last`: the range of step indices that it lies in
    (last excluded; None: all but the final step). "sliding" moves by one every `every` training steps."""

    kind: Literal["all", "fixed", "random", "sliding"] = "all"
    size: Count | None = None
    first: Annotated[int, Field(ge=0)] = 0
    last: Count | None = None
    every: Count = 25


class Rollout(Part):
    """How edits are sampled. `solver`, `compress`: outside the window, the ODE's order and how many of its steps are
    left (0.5: half). `share_prefix`: a group shares its first noise and the steps before its window."""

    steps: Count = 10
    dynamics: Literal["flow-sde", "dance-sde", "cps", "ode"] = "flow-sde"
    noise_level: Annotated[float, Field(ge=0)] = 0.7
    window: Window = Window()
    share_prefix: bool = False
    solver: Literal["euler", "ab2", "dpm2m"] = "euler"
    compress: Annotated[float, Field(gt=0, le=1)] = 1.0
    merge_lora: bool = True


class Algorithm(Part):
    """The objective. `kl`: weight of the distance to the model before training; `kl_kind`: "exact" Gaussian KL of a
    step, "published" (without the step's length, as Flow-GRPO's code) or "velocity" (mean squared difference).

    NFT, AWM and DPO train on `timesteps` noise levels of each sample. `beta`: NFT's mixing, DPO's temperature.
    `adaptive`: NFT compares clean predictions, each error by its own size, as its authors' code does. `old_decay`: NFT
    and AWM sample with this moving average of the trained weights (0: with the weights themselves). `reweight`:
    GRPO-Guard divides a step's loss by its length. `awm_power`, `awm_weight`: AWM's error is raised to this power and
    weighted; its authors' are 0.25 and "sigma".
    """

    name: Literal["flow-grpo", "grpo-guard", "nft", "awm", "dpo"] = "flow-grpo"
    clip_range: Positive = 1e-4
    kl: Annotated[float, Field(ge=0)] = 0.0
    kl_kind: Literal["exact", "published", "velocity"] = "exact"
    beta: Positive = 1.0
    timesteps: Count = 2
    adaptive: bool = False
    old_decay: Share = 0.0
    reweight: bool = False
    awm_power: Annotated[float, Field(gt=0, le=1)] = 1.0
    awm_weight: Literal["one", "sigma"] = "one"

    @property
    def replays(self) -> bool:
        """Whether recorded steps are trained on: only these have a probability, and a window."""
        return self.name in ("flow-grpo", "grpo-guard")

    @property
    def pairs(self) -> bool:
        """Whether a row of the loss is the best and the worst edit of a group."""
        return self.name == "dpo"

    @property
    def follows(self) -> bool:
        """Whether a moving average of the trained weights may sample."""
        return self.name in ("nft", "awm")

    @property
    def needs_reference(self) -> bool:
        """Whether the model before training is asked, too."""
        return self.kl > 0 or self.pairs


class Batch(Part):
    """`groups`: tasks in a step, over all devices. `group_size`: edits of each. `forward`: samples that one device runs
    at once. `updates`: optimiser steps made from one step's samples. The accumulation follows."""

    groups: Count = 8
    group_size: Annotated[int, Field(ge=2)] = 8
    forward: Count = 32
    updates: Count = 1


class AdamW(Part):
    """The optimiser. `warmup`: steps until the rate is `lr`."""

    lr: Positive
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Positive = 1.0
    warmup: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _forgets(self) -> Self:
        if max(self.betas) >= 1:
            raise ValueError("an optimiser that forgets nothing learns nothing; give optimizer.betas=[0.9,0.999]")
        return self


class Optimizer(AdamW):
    """`ema`: how much of the moving average of the weights, which is what is exported, stays at each step."""

    lr: Positive = 3e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    ema: Share | None = None


class Every(Part):
    """Held-out figures every `every` steps, and at the start and end."""

    every: Count = 20


class Evaluation(Every):
    """With the ODE, `steps` denoising steps at `size`."""

    steps: Count | None = None
    size: Count | None = None
    rewards: tuple[Reward, ...] = ()
    """Empty: the training rewards."""


class Checkpoint(Part):
    every: Count = 20
    keep: Count = 2


class Trackers(Part):
    """Where figures go beside the console and log.jsonl: "tensorboard", "wandb", "trackio"."""

    to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    project: str = "premeditate"


class Logging(Trackers):
    """`grids`: tasks shown in each evaluation's picture; 0: none."""

    grids: Annotated[int, Field(ge=0)] = 8


class Sharding(Part):
    kind: Literal["none", "fsdp"] = "none"


class Recorded(Part):
    """What every training is told that keeps a journal."""

    name: str = ""
    out: str = "runs/train"
    seed: int = 0
    checkpoint: Checkpoint = Checkpoint()
    logging: Trackers = Trackers()


class Run(Recorded):
    """What every run of the training core is told, whatever it trains."""

    steps: Count = 200
    min_coverage: Share = 0.5
    """A step in which fewer of the samples got a reward stops the run."""
    patience: Count = 20
    """Steps in a row without any informative group before the run stops."""
    grouping: Grouping = Grouping()
    batch: Batch = Batch()
    optimizer: Optimizer = Optimizer()
    evaluation: Every = Every()
    logging: Logging = Logging()
    sharding: Sharding = Sharding()


class Recipe(Run):
    """An editor's training by reinforcement learning: the whole of it."""

    kind: Literal["editor"] = "editor"
    model: Model = Model()
    data: Data = Data()
    rewards: Annotated[tuple[Reward, ...], Field(min_length=1)] = (Reward(use="premeditate.microworld.reward:graded"),)
    rollout: Rollout = Rollout()
    algorithm: Algorithm = Algorithm()
    evaluation: Evaluation = Evaluation()

    def _misfits(self) -> Iterator[tuple[str, str]]:
        """(what cannot be, the mend) of settings that would be passed over, or fail only once all is loaded."""
        a, model, rollout = self.algorithm, self.model, self.rollout
        if model.dtype != "float32" and model.lora is None:
            yield (
                f"steps of {self.optimizer.lr:g} vanish in weights of {model.dtype}",
                "give model.dtype=float32, or LoRA",
            )
        if model.dtype == "float16":
            yield "gradients vanish in float16", "give model.dtype=bfloat16 or model.dtype=float32"
        if rollout.dynamics == "cps" and rollout.noise_level > 1:
            yield f"cps knows no noise level of {rollout.noise_level:g}", "give rollout.noise_level=0.8"
        if rollout.share_prefix and not a.replays:
            yield f"{a.name} has no window, so all edits of a group would be one", "give rollout.share_prefix=false"
        if a.old_decay and not a.follows:
            yield f"{a.name} samples with the weights themselves", "give algorithm.old_decay=0"
        if a.kl and a.pairs:
            yield "dpo holds the model near its start by itself", "give algorithm.kl=0, and another algorithm.beta"
        if a.kl and not a.replays and a.kl_kind != "velocity":
            yield f"{a.name} has no steps to compare", "give algorithm.kl_kind=velocity"
        if a.name == "nft" and self.grouping.clip is None:
            yield "nft measures advantages by their limit", "give grouping.clip=5"
        if not a.replays and a.timesteps > (levels := max(1, round(rollout.compress * rollout.steps))):
            yield (
                f"{a.timesteps} noise levels of {levels} cannot be",
                f"give algorithm.timesteps={levels} or more steps",
            )
        if self.grouping.kind == "gcpo":
            yield "gcpo compares judgements of two edits, and trains verifiers", "give grouping.kind=grpo"
        if self.grouping.missing == "lost":
            yield "an edit without a reward is never a bad edit", 'give grouping.missing="left out"'
        if self.grouping.min_length > self.batch.group_size:
            yield "a chain cannot be longer than its group", f"give grouping.min_length={self.batch.group_size}"

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        replays = self.algorithm.replays
        if replays and (self.rollout.dynamics == "ode" or self.rollout.noise_level == 0):
            raise ValueError(
                f"{self.algorithm.name} needs noise: an ODE step has no probability; "
                "give rollout.dynamics=flow-sde and rollout.noise_level=0.7, or algorithm.name=nft"
            )
        for wrong, mend in self._misfits():
            raise ValueError(f"{wrong}; {mend}")
        plain = [reward.use for reward in self.rewards if reward.weight != 1]
        if plain and self.grouping.kind in ("grpo", "ucpg"):
            raise ValueError(
                f"{self.grouping.kind} knows no weights, but {plain[0]} has one; "
                "give grouping.kind=weighted or grouping.kind=gdpo, or weight 1"
            )
        return self
