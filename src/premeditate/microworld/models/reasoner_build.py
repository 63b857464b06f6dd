"""The tiny reasoner: a stock `Qwen3VLForConditionalGeneration` with a tiny configuration, its tokenizer and its folder.

One image token stands for one cell: patches of 8 pixels merged two by two make 4x4 tokens of a 64x64 picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PATCH, MERGE, TEMPORAL = 8, 2, 2
PIXELS = 64 * 64
MEAN = STD = (0.5, 0.5, 0.5)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' or 'image' in c or 'image_url' in c %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(corpus: Iterable[str], vocab_size: int = 1024) -> Any:
    """A Qwen2Tokenizer (byte-level BPE, so that any text can be written) whose merges fit `corpus`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIALS),
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    model = json.loads(raw.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(m) for m in model["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIALS),
    )


def build_model(tokenizer: Any, *, layers: int = 5, inter: int = 240, seed: int = 0) -> Any:
    """A freshly initialised Qwen3VLForConditionalGeneration of about a million parameters, in fp32."""
    import torch
    from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end", "im_end", "endoftext")
    }
    config = Qwen3VLConfig(
        text_config={
            "hidden_size": 128,
            "intermediate_size": inter,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 32,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 1024,
            "rope_parameters": {"mrope_section": [6, 5, 5], "rope_type": "default", "rope_theta": 1e4},
            "bos_token_id": None,
            "eos_token_id": ids["im_end"],
            "pad_token_id": ids["endoftext"],
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": 128,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL,
            "deepstack_visual_indexes": [],
            "num_position_embeddings": 64,
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    # A sampled image token would have no picture behind it: the model would then refuse its own text.
    quiet = [tokenizer.convert_tokens_to_ids(t) for t in SPECIALS if t != "<|im_end|>"]
    model.generation_config = GenerationConfig(
        eos_token_id=ids["im_end"], pad_token_id=ids["endoftext"], max_new_tokens=96, suppress_tokens=quiet
    )
    return model


def save_folder(folder: Path, model: Any, tokenizer: Any, card: str = "") -> None:
    """Everything that `from_pretrained` and the transformers adapter need; weights in fp16 safetensors."""
    import copy

    import torch
    from transformers import Qwen2VLImageProcessorPil

    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.float16).save_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        size={"shortest_edge": PIXELS, "longest_edge": PIXELS},
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=TEMPORAL,
        image_mean=list(MEAN),
        image_std=list(STD),
    ).save_pretrained(folder)
    (folder / "premeditate.json").write_text(json.dumps({"prompts": "terse"}) + "\n")
    if card:
        (folder / "README.md").write_text(card)


def load_folder(folder: Path) -> tuple[Any, Any]:
    """(model in fp32, tokenizer). Raises ValueError where the folder is not a reasoner."""
    import torch
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

    if not (folder / "config.json").exists():
        raise ValueError(f"no reasoner in {folder}: train one with `premeditate microworld train reasoner -o {folder}`")
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)
