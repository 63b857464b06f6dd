"""What published editors are made of: enough to count their parameters and to run them without contents, with nothing
downloaded. Values are those of the configurations that their publishers give; 10^9 parameters of 2 bytes are 2 GB."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from premeditate.errors import ModelError, nearest
from premeditate.presets import resolve


@dataclass(frozen=True)
class Architecture:
    """An editor's parts. `transformer`, `vae`: the class in diffusers and its configuration. `encoders`: parameters of
    the text encoders, which are needed until all tasks are encoded; None: not known. `text`: tokens of a prompt as the
    transformer sees it. `options`: the adapter's defaults."""

    name: str
    pipeline: str
    transformer: tuple[str, Mapping[str, Any]]
    vae: tuple[str, Mapping[str, Any]]
    encoders: int | None = None
    text: int = 256
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def compression(self) -> int:
        """Pixels of a side that become one token: the autoencoder's factor, and patches of 2 x 2."""
        config = self.vae[1]
        halvings = config.get("temperal_downsample", config.get("block_out_channels", (0, 0, 0, 0))[1:])
        return int(2 ** (len(halvings) + 1))


_KONTEXT = {
    "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
    "axes_dims_rope": [16, 56, 56],
}  # fmt: skip
_FLUX_VAE = {
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 16, "norm_num_groups": 32,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 0.3611, "shift_factor": 0.1159,
}  # fmt: skip
_QWEN = {
    "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 60, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 3584, "guidance_embeds": False, "axes_dims_rope": [16, 56, 56],
}  # fmt: skip
_QWEN_VAE = {
    "base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [],
    "temperal_downsample": [False, True, True],
}  # fmt: skip


def _qwen(name: str, pipeline: str) -> Architecture:
    # Qwen2.5-VL 7B, with its head: 8.29e9. A prompt is some 20-60 tokens, and a picture of it some 190.
    return Architecture(
        name, pipeline, ("QwenImageTransformer2DModel", _QWEN), ("AutoencoderKLQwenImage", _QWEN_VAE), 8_292_166_656,
        text=256, options={"true_cfg_scale": 4.0},
    )  # fmt: skip


PUBLISHED = {
    "flux-kontext": Architecture(  # T5 v1.1 XXL's encoder: 4.76e9, CLIP L/14's text half: 0.12e9
        "flux-kontext", "FluxKontextPipeline", ("FluxTransformer2DModel", _KONTEXT), ("AutoencoderKL", _FLUX_VAE),
        4_762_310_656 + 123_060_480, text=512,
    ),
    "qwen-image-edit": _qwen("qwen-image-edit", "QwenImageEditPipeline"),
    "qwen-image-edit-2509": _qwen("qwen-image-edit-2509", "QwenImageEditPlusPipeline"),
    "qwen-image-edit-2511": _qwen("qwen-image-edit-2511", "QwenImageEditPlusPipeline"),
}  # fmt: skip
_HUB = {"FLUX.1-Kontext": "flux-kontext", "Qwen-Image-Edit-2511": "qwen-image-edit-2511",
        "Qwen-Image-Edit-2509": "qwen-image-edit-2509", "Qwen-Image-Edit": "qwen-image-edit"}  # fmt: skip


def published(name: str) -> Architecture:
    """The architecture of that name. Raises `ModelError` with the nearest ones."""
    if name not in PUBLISHED:
        raise ModelError(f"no architecture {name!r} is kept", f"did you mean {nearest(name, list(PUBLISHED))}?")
    return PUBLISHED[name]


def describe(spec: str) -> Architecture:
    """What the editor `spec` (a preset, a folder, a hub id) is made of, from the configurations in its folder, the
    hub's cache, or those kept here. Nothing is fetched and no weights are read. Raises `ModelError` where nothing is
    known of it."""
    preset = resolve("editor", spec)
    index, transformer, vae = (
        _read(preset.spec, name) for name in ("model_index.json", "transformer/config.json", "vae/config.json")
    )
    if index and transformer and vae:
        options = {**(_read(preset.spec, "premeditate.json") or {}), **preset.options}
        kept = _kept(preset.spec)
        return Architecture(
            spec, str(index["_class_name"]), (str(transformer["_class_name"]), transformer),
            (str(vae["_class_name"]), vae), kept.encoders if kept else None, _text(preset.spec, kept), options,
        )  # fmt: skip
    if (kept := PUBLISHED.get(spec) or _kept(preset.spec)) is not None:
        return Architecture(spec, kept.pipeline, kept.transformer, kept.vae, kept.encoders, kept.text, kept.options)
    raise ModelError(
        f"the configuration of {spec} is not on this machine",
        f"give a folder, or one of {', '.join(PUBLISHED)}; or fetch it: hf download {preset.spec} --include '*.json'",
    )


def _kept(where: str) -> Architecture | None:
    return next((PUBLISHED[name] for part, name in _HUB.items() if part in where), None)


def _text(where: str, kept: Architecture | None) -> int:
    """Tokens that a prompt is padded to: what the second tokenizer takes, up to the pipelines' 512."""
    if (second := _read(where, "tokenizer_2/tokenizer_config.json")) is not None:
        return min(512, int(second.get("model_max_length", 512)))
    return kept.text if kept else 256


def _read(where: str, name: str) -> dict[str, Any] | None:
    """A JSON file of a folder or of the hub's cache, None where it is not."""
    path = Path(where) / name
    if not path.is_file():
        if Path(where).is_dir():
            return None
        from transformers.utils import cached_file

        found = cached_file(
            where, name, local_files_only=True, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        if found is None:
            return None
        path = Path(found)
    value = json.loads(path.read_bytes())
    return value if isinstance(value, dict) else None
