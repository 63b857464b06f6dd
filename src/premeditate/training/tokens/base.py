"""A vision-language model as it is before training: loaded afresh, and all that its export needs to know of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from premeditate import presets
from premeditate.address import is_address
from premeditate.errors import ModelError
from premeditate.local import pick_device, read_sidecar
from premeditate.qwen_processor import FAMILIES
from premeditate.reasoners.transformers import SIDECAR_OPTIONS, TransformersReasoner
from premeditate.training.tokens.recipe import Model

LANGUAGE = "language_model"
"""What LoRA is added to; the picture encoder stays as it is."""


@dataclass(frozen=True)
class Base:
    """The model that is trained. `prompts`: the prompt set that it speaks. `limit`: tokens that it reads. `stored`: the
    dtype of its weights where they lie, and `config` as it lies there. `sidecar`: what a folder of it has to say."""

    model: Any
    processor: Any
    prompts: str
    limit: int | None
    stored: torch.dtype
    config: Any
    sidecar: Mapping[str, Any]


def load_base(wanted: Model) -> Base:
    """The model that is `wanted`, as a reasoner loads it, with everything trainable that is to be trained without LoRA.
    Raises `ModelError`."""
    preset = resolve(wanted.base)
    device = pick_device(wanted.device)
    if device not in ("cpu", "cuda", "mps"):
        raise ModelError(f"the training of a judge takes no single device {device}",
                         "give model.device=cuda, and choose with CUDA_VISIBLE_DEVICES")  # fmt: skip
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    config = _config(preset.spec, wanted.revision)
    if config is not None and config.model_type not in FAMILIES:
        raise ModelError(f"{wanted.base} is of the family {config.model_type}, of which no judge can be trained",
                         f"give a vision-language model of one of: {', '.join(FAMILIES)}")  # fmt: skip
    own = {**preset.options, **({} if wanted.max_pixels is None else {"max_pixels": wanted.max_pixels})}
    # What is trained is held in float32: half precision swallows small steps. Under LoRA the rest may be halved.
    dtype = wanted.dtype if wanted.lora is not None else "float32"
    made = TransformersReasoner.load(
        preset.spec, **own, device=device, dtype=dtype, revision=wanted.revision, name=wanted.base
    )
    model, sidecar = made.model, _sidecar(preset.spec) | own
    if wanted.lora is None and not wanted.vision:
        model.model.visual.requires_grad_(False)
    return Base(
        model, made.processor, made.prompts, getattr(model.config.get_text_config(), "max_position_embeddings", None),
        _dtype(config), config, {**{k: v for k, v in sidecar.items() if k in SIDECAR_OPTIONS}, "prompts": made.prompts},
    )  # fmt: skip


def resolve(base: str) -> presets.Preset:
    if is_address(base):
        raise ModelError(f"{base} is a served model, whose weights are elsewhere",
                         f"give a folder, a hub id org/name, or one of {', '.join(presets.REASONERS)}")  # fmt: skip
    return presets.resolve("reasoner", base)


def _config(spec: str, revision: str | None) -> Any:
    """The model's configuration; None where it cannot be read, which loading the model says better."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(spec, trust_remote_code=False, revision=revision)
    except (OSError, ValueError, KeyError):
        return None


def _dtype(config: Any) -> torch.dtype:
    found = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return found if isinstance(found, torch.dtype) else torch.float32


def _sidecar(spec: str) -> dict[str, Any]:
    return read_sidecar(Path(spec), SIDECAR_OPTIONS) if Path(spec).is_dir() else {}
