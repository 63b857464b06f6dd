"""Pipelines of every kind that edits, with random weights: the real classes, tokenizers and processors, built offline.

Sizes are the smallest that the classes accept, but what a pipeline hard-codes is as in the full weights: the factor 8
of the autoencoders, 16 latent channels for LongCat, layers 9, 18 and 27 of FLUX.2 klein's text encoder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .tiny_editor import build_kontext
from .tiny_vlm import TEMPLATE, build_tokenizer


def build_qwen_edit(seed: int = 0) -> Any:
    import diffusers

    return diffusers.QwenImageEditPipeline(**_qwen_parts(seed))


def build_qwen_edit_plus(seed: int = 0) -> Any:
    import diffusers

    return diffusers.QwenImageEditPlusPipeline(**_qwen_parts(seed))


def build_longcat(seed: int = 0) -> Any:
    import diffusers
    import torch

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    transformer = diffusers.LongCatImageTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=[8, 4, 4],
    )  # fmt: skip
    return diffusers.LongCatImageEditPipeline(
        transformer=transformer, vae=_autoencoder(16), text_encoder=_vision_language(tokenizer), tokenizer=tokenizer,
        text_processor=_processor(tokenizer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip


def build_klein(seed: int = 0) -> Any:
    import diffusers
    import torch
    import transformers as tf

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    # The pipeline sends plain strings as content.
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    encoder = tf.Qwen3ForCausalLM(tf.Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=28, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, max_position_embeddings=512,
    ))  # fmt: skip
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(4, 4, 4, 4), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        mid_block_add_attention=False,
    )  # fmt: skip
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    return diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=vae, text_encoder=encoder,
        tokenizer=tokenizer, transformer=transformer, is_distilled=True,
    )  # fmt: skip


def build_instruct_pix2pix(seed: int = 0) -> Any:
    """A pipeline of an older family, with a U-net and without a size of its own."""
    import diffusers
    import torch
    import transformers as tf

    torch.manual_seed(seed)
    kontext = build_kontext(seed)
    text = tf.CLIPTextConfig(
        vocab_size=len(kontext.tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=32, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(4, 8), layers_per_block=1, sample_size=8, in_channels=8, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8, attention_head_dim=2, norm_num_groups=2,
    )  # fmt: skip
    return diffusers.StableDiffusionInstructPix2PixPipeline(
        vae=_autoencoder(4), text_encoder=tf.CLIPTextModel(text), tokenizer=kontext.tokenizer, unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


BUILDERS: dict[str, Callable[[], Any]] = {
    "QwenImageEditPipeline": build_qwen_edit,
    "QwenImageEditPlusPipeline": build_qwen_edit_plus,
    "FluxKontextPipeline": lambda: build_kontext(tokens=256),
    "LongCatImageEditPipeline": build_longcat,
    "Flux2KleinPipeline": build_klein,
    "StableDiffusionInstructPix2PixPipeline": build_instruct_pix2pix,
}


def save_pipeline(kind: str, folder: Path, **sidecar: Any) -> Path:
    """Saves a pipeline of one of the `BUILDERS` as a folder like those on the hub, and returns it. `sidecar`: what its
    `premeditate.json` says; default: small and of two steps."""
    BUILDERS[kind]().save_pretrained(folder)
    (folder / "premeditate.json").write_text(json.dumps(sidecar or {"size": 96, "steps": 2}))
    return folder


def save_lora(folder: Path, pipeline: Any, seed: int = 0, rank: int = 2, name: str = "tiny.safetensors") -> Path:
    """Saves random LoRA weights for the attention of the pipeline's denoising network, as trainers do, and returns the
    file. The pipeline is left with the adapter in it."""
    import torch
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    part = "transformer" if hasattr(pipeline, "transformer") else "unet"
    network = getattr(pipeline, part)
    torch.manual_seed(seed)
    network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    weights = {f"{part}.{key}": value * 4 for key, value in get_peft_model_state_dict(network).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / name)
    return folder / name


def _qwen_parts(seed: int) -> dict[str, Any]:
    import diffusers
    import torch

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": vae, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "text_encoder": _vision_language(tokenizer), "tokenizer": tokenizer, "processor": _processor(tokenizer),
    }  # fmt: skip


def _autoencoder(channels: int) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 4), layers_per_block=1, latent_channels=channels, norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        mid_block_add_attention=False, shift_factor=0.0, scaling_factor=1.0, sample_size=64,
    )  # fmt: skip


def _processor(tokenizer: Any) -> Any:
    from transformers import Qwen2VLImageProcessorPil

    from premeditate.qwen_processor import image_only

    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 784, "longest_edge": 3136}, patch_size=14, merge_size=2, temporal_patch_size=2
    )
    return image_only("Qwen2VLProcessor")(images, tokenizer, chat_template=TEMPLATE)


def _vision_language(tokenizer: Any) -> Any:
    """Qwen2.5-VL, the text encoder of Qwen's and LongCat's pipelines."""
    import transformers as tf

    special = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"),
                            ("vision_end", "vision_end"))
    }  # fmt: skip
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "vocab_size": len(tokenizer), "bos_token_id": None,
            "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}}  # fmt: skip
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
              "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}  # fmt: skip
    return tf.Qwen2_5_VLForConditionalGeneration(tf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **special))
