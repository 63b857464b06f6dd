"""Vision-language models of families other than Qwen's, with random weights: Idefics3 (SmolVLM's kind) and Gemma 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.tiny_vlm import TEMPLATE, build_tokenizer

QWEN_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 32, "patch_size": 8}  # fmt: skip


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 1024,
        "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, **more,
    }  # fmt: skip


def _save(model: Any, folder: Path) -> Path:
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            # Else all texts look the same to it; and Gemma's way from pictures to words starts as zeros.
            parameter.mul_(3) if parameter.any() else parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


def build_idefics3(folder: Path, seed: int = 0) -> Path:
    """It cuts large pictures into tiles and names each tile in the text."""
    import torch
    import transformers as tf

    tokenizer = build_tokenizer()
    tiles = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    words = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tiles]
    tokenizer.add_special_tokens({"additional_special_tokens": words})
    torch.manual_seed(seed)
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = tf.Idefics3Config(
        text_config=_text(tokenizer, model_type="llama"), vision_config=VISION, scale_factor=2, image_token_id=image,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    images = tf.Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    template = TEMPLATE.replace(QWEN_PICTURE, "<image>")
    tf.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template).save_pretrained(folder)
    return _save(tf.Idefics3ForConditionalGeneration(config), folder)


def build_gemma3(folder: Path, seed: int = 0) -> Path:
    """One placeholder in the text stands for other tokens once it is encoded."""
    import torch
    import transformers as tf
    from transformers import Qwen2Tokenizer

    plain = build_tokenizer()
    plain.save_pretrained(folder)
    words = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = Qwen2Tokenizer.from_pretrained(folder, extra_special_tokens=words)
    torch.manual_seed(seed)
    config = tf.Gemma3Config(
        text_config=_text(tokenizer, head_dim=16, sliding_window=512), vision_config=VISION, mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id, eoi_token_index=tokenizer.eoi_token_id,
        image_token_id=tokenizer.image_token_id,
    )  # fmt: skip
    images = tf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    template = TEMPLATE.replace(QWEN_PICTURE, "<start_of_image>")
    tf.Gemma3Processor(images, tokenizer, image_seq_length=4, chat_template=template).save_pretrained(folder)
    return _save(tf.Gemma3ForConditionalGeneration(config), folder)
