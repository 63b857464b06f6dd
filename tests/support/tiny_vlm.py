"""Qwen2.5-VL and Qwen3-VL with random weights and some hundred thousand parameters, and their tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer() -> Any:
    """Byte-level BPE in which yes, no, Yes, No are one token each and other words several."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(SPECIALS), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    raw.train_from_iterator(["yes", "no", "Yes", "No", "user\n", "assistant\n"] * 50, trainer)
    model = json.loads(raw.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]], eos_token="<|im_end|>",
        pad_token="<|endoftext|>", additional_special_tokens=list(SPECIALS),
    )  # fmt: skip


def build_vlm(model_type: str, folder: Path, seed: int = 0, **sidecar: Any) -> Path:
    """Saves model, tokenizer and image processor of "qwen2_5_vl" or "qwen3_vl" as a folder in fp16, and returns it."""
    import torch
    import transformers as tf

    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    special = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"),
                            ("vision_end", "vision_end"))
    }  # fmt: skip
    text = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "vocab_size": len(tokenizer), "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": 512,
        "rope_parameters": {"mrope_section": [4, 2, 2], "rope_type": "default", "rope_theta": 1e4},
    }  # fmt: skip
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
              "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}  # fmt: skip
    torch.manual_seed(seed)
    if model_type == "qwen3_vl":
        vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
        model = tf.Qwen3VLForConditionalGeneration(tf.Qwen3VLConfig(text_config=text, vision_config=vision, **special))
    else:
        vision |= {"window_size": 32, "fullatt_block_indexes": [1]}
        model = tf.Qwen2_5_VLForConditionalGeneration(
            tf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **special)
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # else all texts look the same to it
    model.generation_config = tf.GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True, temperature=0.7,
        top_p=0.8, top_k=20,
    )  # fmt: skip
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tf.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 256, "longest_edge": 1024}, patch_size=8, merge_size=2, temporal_patch_size=2
    ).save_pretrained(folder)
    if sidecar:
        (folder / "premeditate.json").write_text(json.dumps(sidecar))
    return folder


def build_llava(folder: Path, seed: int = 0) -> Path:
    """A model of another family, with the processor that `AutoProcessor` builds: LLaVA, saved as a folder."""
    import torch
    import transformers as tf

    tokenizer = build_tokenizer()
    text = tf.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=len(tokenizer),
        max_position_embeddings=256, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = tf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    torch.manual_seed(seed)
    config = tf.LlavaConfig(vision_config=vision, text_config=text, image_token_id=image, vision_feature_layer=-1)
    model = tf.LlavaForConditionalGeneration(config)
    model.save_pretrained(folder)
    images = tf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    template = TEMPLATE.replace("<|vision_start|>", "").replace("<|vision_end|>", "")
    tf.LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", image_token="<|image_pad|>",
        chat_template=template, num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder
