"""What a training step needs of a device's memory, before it is tried.

    held all the time    weights (all, or 1/devices of them where they are sharded, and then two blocks gathered)
                         autoencoder
                         what is trained: gradients, AdamW's two moments, moving averages (float32)
    and on top the largest of
        sampling         one forward, the trajectories so far, the merged weights held twice
        decoding         the autoencoder's forward
        update           a micro-batch's forward and backward, and what was sampled
        optimiser        its intermediate values, one for each trained parameter
    and the runtime      CUDA's context and kernels

Parameters and activations are counted on the real classes, run without contents (`premeditate.training.flow.shadow`).
Text encoders are gone by then: they are needed before, while the tasks are encoded, which `encoding` says. The
allocator's gaps are not foreseen; leave some percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from premeditate.local import pick_device
from premeditate.training.flow import shadow
from premeditate.training.flow.published import Architecture, describe, published
from premeditate.training.geometry import Geometry, windows
from premeditate.training.recipe import Lora, Recipe

GIB = 1 << 30
RUNTIME = 7 * GIB // 10
"""Of a CUDA process, outside the allocator: context, kernels, workspaces. An assumption."""
DECODED = 1 << 22  # pixels that adapters decode at once
REAL = 64
"""Tokens assumed of a prompt that is not padded."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device. `parameters`, `trainable`: how many. `tokens`: of text and pictures in one row. `flops`: of
    one row's forward. `encoding`: the peak before training; None: the encoders are not known."""

    model: str
    parameters: int
    trainable: int
    tokens: int
    flops: int
    microbatch: int
    devices: int
    held: Mapping[str, int]
    phases: Mapping[str, int]
    encoding: int | None

    @property
    def peak(self) -> int:
        """The most that training needs at a time."""
        return sum(self.held.values()) + max(self.phases.values())

    def table(self) -> list[tuple[str, str]]:
        """(what, how much) for people."""
        size = f"{self.parameters:,} parameters, {self.trainable:,} trained"
        each = " each" if self.devices > 1 else ""
        rows = [
            ("model", f"{self.model}: {size}"),
            ("row", f"{self.tokens:,} tokens, {big(self.flops)} FLOP a forward"),
        ]
        rows += [(f"  {what}", said(size)) for what, size in self.held.items() if size]
        rows += [(f"+ {what}", said(size)) for what, size in self.phases.items()]
        rows.append(("peak", f"{said(self.peak)} on {self.devices} device{'s' * (self.devices > 1)}{each}"))
        if self.encoding is not None:
            rows.append(("before training", f"{said(self.encoding)} while tasks are encoded"))
        return rows


def predict(
    name: str,
    size: int = 1024,
    lora_rank: int | None = 32,
    batch: int = 1,
    checkpointing: bool = True,
    dtype: str = "bfloat16",
    devices: int = 1,
    *,
    sharded: bool = False,
    true_cfg_scale: float | None = 1.0,
) -> MemoryEstimate:
    """The estimate for a published editor, "flux-kontext" or "qwen-image-edit-2509", trained with Flow-GRPO on two
    steps of ten at size x size pixels, `batch` rows at a time. `lora_rank` None: all of the transformer. Raises
    `ModelError` for a name that is not kept."""
    recipe = Recipe.model_validate({
        "model": {
            "size": size, "dtype": dtype, "gradient_checkpointing": checkpointing, "device": "cuda",
            "lora": None if lora_rank is None else {"rank": lora_rank}, "true_cfg_scale": true_cfg_scale,
        },
        "rollout": {"steps": 10, "window": {"kind": "fixed", "size": 2, "first": 2}},
        "batch": {"groups": devices, "group_size": max(2, batch), "forward": batch},
        "sharding": {"kind": "fsdp" if sharded else "none"},
    })  # fmt: skip
    return estimate(recipe, devices=devices, architecture=published(name))


def estimate(
    recipe: Recipe, *, devices: int = 1, architecture: Architecture | None = None, sources: int = 1
) -> MemoryEstimate:
    """The estimate for a recipe. `architecture`: None: recipe.model.base's, from its folder, the hub's cache or those
    kept here. `sources`: pictures that a task has. Raises `ModelError` where nothing is known of the model, and
    `ConfigError` for an impossible geometry."""
    made = architecture or describe(recipe.model.base)
    geometry, plan = Geometry.of(recipe, devices), _Plan.of(recipe, made, sources)
    found, decoder = shadow.census(*made.transformer), shadow.census(*made.vae).parameters
    count, layers = found.parameters, found.linear
    lora = recipe.model.lora
    trainable = count if lora is None else lora_parameters(layers, lora)
    width = plan.dtype.itemsize
    whole, sharded = count * width, recipe.sharding.kind == "fsdp"
    weights, trained = whole, trainable * (width if lora is None else 4)
    if sharded:
        blocks = sum(int(made.transformer[1].get(name, 0)) for name in shadow.LAYERS) or 1
        weights = math.ceil(whole / devices) + 2 * math.ceil(whole / blocks)
        trained = trained if lora is not None else math.ceil(trained / devices)
    share = trainable if lora is not None or not sharded else math.ceil(trainable / devices)
    averages = share * 4 * (bool(recipe.optimizer.ema) + (bool(recipe.algorithm.old_decay) and not plan.replay))
    rows = geometry.microbatch * plan.samples_per_row * plan.passes
    update, _ = shadow.training(
        *made.transformer, shadow.Work(rows, plan.grids, plan.text, plan.dtype), lora=lora, reference=plan.reference,
        checkpointing=recipe.model.gradient_checkpointing,
    )  # fmt: skip
    rows = min(recipe.batch.forward, geometry.samples_per_device) * plan.passes
    sampling, flops = shadow.forward(*made.transformer, shadow.Work(rows, plan.grids, plan.text, plan.dtype))
    stored = geometry.samples_per_device * plan.stored
    merged = 0
    if lora is not None and recipe.rollout.merge_lora and not sharded:
        merged = width * sum(a * b for a, b in targeted(layers, lora).values())
    pictures = max(1, min(recipe.batch.forward, DECODED // plan.pixels))
    runtime = RUNTIME if pick_device(recipe.model.device).startswith("cuda") else 0
    held = {
        "weights": weights,
        "autoencoder": decoder * width,
        "trained weights": 0 if lora is None else trained,
        "gradients": trained,
        "optimiser": 2 * trained,
        "moving averages": averages,
        "model before training": whole if plan.reference and lora is None else 0,
        "CUDA": runtime,
    }
    phases = {
        "sampling": sampling + stored + merged,
        "decoding": shadow.decoding(*made.vae, pictures, *plan.latents, plan.dtype) + stored + merged,
        "update": update + 2 * stored,  # stacked, it is there twice
        "optimiser step": trained + stored,
    }
    encoding = None
    if made.encoders is not None:
        encoding = (count + decoder + made.encoders) * width + runtime
    return MemoryEstimate(
        made.name, count, trainable, plan.tokens, flops // rows, geometry.microbatch, devices, held, phases, encoding
    )


@dataclass(frozen=True)
class _Plan:
    """What of a recipe and an architecture shapes a forward. `stored`: bytes of a sample's trajectory."""

    dtype: torch.dtype
    grids: tuple[tuple[int, int], ...]
    latents: tuple[int, int]
    text: int
    passes: int
    replay: bool
    reference: bool
    samples_per_row: int
    stored: int
    pixels: int

    @property
    def tokens(self) -> int:
        return self.text + sum(height * width for height, width in self.grids)

    @classmethod
    def of(cls, recipe: Recipe, made: Architecture, sources: int) -> _Plan:
        model, algorithm = recipe.model, recipe.algorithm
        side = max(1, model.size // made.compression)
        state = side * side * int(made.transformer[1]["in_channels"]) * 4
        recorded = 3 * len(windows(recipe)[0]) if algorithm.replays else 2 * algorithm.timesteps
        given = model.text_tokens
        text = made.text if given is None else REAL if given == "real" else given
        return cls(
            getattr(torch, model.dtype), ((side, side),) * (1 + sources), (2 * side, 2 * side), text,
            passes(recipe, made), algorithm.replays, algorithm.needs_reference, 1 + algorithm.pairs,
            state * (1 + recorded), (side * made.compression) ** 2,
        )  # fmt: skip


def passes(recipe: Recipe, made: Architecture) -> int:
    """Rows that the transformer computes for one: 2 with classifier-free guidance."""
    given = recipe.model.true_cfg_scale
    return 1 + ((made.options.get("true_cfg_scale", 1.0) if given is None else given) > 1)


def targeted(layers: Mapping[str, tuple[int, int]], lora: Lora) -> dict[str, tuple[int, int]]:
    """The linear layers that get LoRA."""
    ends = tuple(f".{target}" for target in lora.targets)
    return {name: size for name, size in layers.items() if name in lora.targets or name.endswith(ends)}


def lora_parameters(layers: Mapping[str, tuple[int, int]], lora: Lora) -> int:
    return sum(lora.rank * (a + b) for a, b in targeted(layers, lora).values())


def said(size: float) -> str:
    """Bytes for people."""
    for unit, one in (("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= one:
            return f"{size / one:.{1 if size < 100 * one else 0}f} {unit}"
    return f"{size:.0f} B"


def big(number: float) -> str:
    """A large number for people, ready for a unit."""
    for unit, one in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= one:
            return f"{number / one:.3g} {unit}"
    return f"{number:g} "


def as_json(estimate: MemoryEstimate) -> dict[str, Any]:
    """The estimate as plain values; sizes in bytes."""
    return {**vars(estimate), "held": dict(estimate.held), "phases": dict(estimate.phases), "peak": estimate.peak}
