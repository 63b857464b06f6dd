"""A QwenImageEditPlusPipeline with random weights, built in memory, without torchvision."""

from __future__ import annotations

from typing import Any

from .tiny_vlm import TEMPLATE, build_tokenizer


def build_qwen_edit(seed: int = 0) -> Any:
    import torch
    import transformers as tf
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImageEditPlusPipeline,
        QwenImageTransformer2DModel,
    )

    from premeditate.reasoners.image_only import image_only

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    images = tf.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 784, "longest_edge": 3136}, patch_size=14, merge_size=2, temporal_patch_size=2
    )
    processor = image_only("Qwen2VLProcessor")(images, tokenizer, chat_template=TEMPLATE)
    special = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name.replace('image', 'image_pad')}|>")
        for name in ("image", "vision_start", "vision_end")
    }
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "vocab_size": len(tokenizer), "bos_token_id": None,
            "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}}  # fmt: skip
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
              "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}  # fmt: skip
    encoder = tf.Qwen2_5_VLForConditionalGeneration(
        tf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **special)
    )
    vae = AutoencoderKLQwenImage(
        base_dim=24, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    return QwenImageEditPlusPipeline(
        transformer=transformer, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(), text_encoder=encoder,
        tokenizer=tokenizer, processor=processor,
    )  # fmt: skip
