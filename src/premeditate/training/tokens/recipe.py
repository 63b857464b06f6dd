"""What is said of a vision-language model that is trained, whatever trains it."""

from __future__ import annotations

from typing import Literal

from premeditate.training import recipe
from premeditate.training.recipe import Count, Part

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
