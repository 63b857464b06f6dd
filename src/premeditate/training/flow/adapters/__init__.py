"""Adapters of flow editors, by the class of their diffusers pipeline, and what loads one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from premeditate.editors.diffusers import SIDECAR_OPTIONS
from premeditate.editors.pipelines import LIBRARIES, load_pipeline
from premeditate.errors import ModelError
from premeditate.local import load_failure, pick_device, pick_dtype, quiet, read_sidecar
from premeditate.presets import resolve
from premeditate.training.flow.adapters.base import Batch, FlowAdapter
from premeditate.training.flow.adapters.kontext import KontextAdapter
from premeditate.training.flow.adapters.qwen_image_edit import QwenImageEditAdapter, QwenImageEditPlusAdapter
from premeditate.training.recipe import Model

__all__ = ["ADAPTERS", "Batch", "FlowAdapter", "load_adapter"]

ADAPTERS: dict[str, type[FlowAdapter]] = {
    kind.pipeline_class: kind for kind in (KontextAdapter, QwenImageEditAdapter, QwenImageEditPlusAdapter)
}


def load_adapter(spec: str, model: Model) -> FlowAdapter:
    """The editor that `spec` names (a preset, a folder or a hub id), ready to be trained as `model` says; `model.base`
    is not looked at.

    What `model` leaves open comes from the preset and from the folder's `premeditate.json`. A LoRA that the preset
    brings (a distillation to few steps) becomes part of the frozen weights. Raises `ModelError`.
    """
    preset = resolve("editor", spec)
    folder = Path(preset.spec)
    options = {**(read_sidecar(folder, SIDECAR_OPTIONS) if folder.is_dir() else {}), **preset.options}
    kind = find_adapter(preset.spec, model.revision)
    device = pick_device(model.device)
    loading = {key: options[key] for key in ("lora", "lora_scale", "scheduler") if key in options}
    pipeline = load_pipeline(
        preset.spec, device=device, dtype=pick_dtype(model.dtype, device), revision=model.revision, **loading
    )
    if "lora" in loading:
        pipeline.fuse_lora(components=["transformer"])
        pipeline.unload_lora_weights()
    if model.gradient_checkpointing:
        pipeline.transformer.enable_gradient_checkpointing()

    def chosen(name: str) -> Any:
        given = getattr(model, name, None)
        return options.get(name) if given is None else given

    negative = options.get("negative_prompt")
    return kind(
        pipeline, size=model.size, text_tokens=model.text_tokens, guidance_scale=chosen("guidance_scale"),
        true_cfg_scale=chosen("true_cfg_scale"), **({} if negative is None else {"negative_prompt": negative}),
    )  # fmt: skip


def find_adapter(where: str, revision: str | None = None) -> type[FlowAdapter]:
    """The adapter for the pipeline in a folder or hub repository, of which only the index is read. Raises
    `ModelError`."""
    with quiet(*LIBRARIES):
        from diffusers import DiffusionPipeline

        local = {"local_files_only": True} if Path(where).is_dir() else {"revision": revision}
        try:
            name = str(DiffusionPipeline.load_config(where, **local).get("_class_name"))
        except Exception as error:
            raise load_failure(where, error) from error
    if name not in ADAPTERS:
        raise ModelError(
            f"{name} has no adapter for training",
            f"there are {', '.join(ADAPTERS)}; docs/adapters.md tells how to add one",
        )
    return ADAPTERS[name]
