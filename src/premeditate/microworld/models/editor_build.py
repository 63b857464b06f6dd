"""Builds the tiny editor: every part of a diffusers `FluxKontextPipeline`, with tiny configs and tokenizers in memory.

The 64 px world has 4x4 cells of 16 px; the autoencoder divides by 8 and Flux packs 2x2 latents, so a picture is 16
tokens, one per cell, and the source another 16.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from premeditate.microworld.models.vae_train import VAE_CONFIG
from premeditate.microworld.scene import CELL_NAMES, COLOURS, SHAPES, SIZES

MAX_TOKENS = 40
"""Prompt length in tokens: three canonical steps fit. Flux masks no padding, so training pads like inference."""
WIDTH = 128
POOLED = 32
CLIP_TOKENS = 64
"""CLIP only makes the pooled summary; it reads a cell's name as two tokens."""
TRANSFORMER_CONFIG: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 4 * VAE_CONFIG["latent_channels"],
    "num_layers": 1,
    "num_single_layers": 4,
    "attention_head_dim": 64,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": POOLED,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 24, 24),
}
SCHEDULER_CONFIG: dict[str, Any] = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False}
SIDECAR: dict[str, Any] = {"size": 64, "steps": 4, "guidance_scale": 1.0, "max_batch": 64}
"""What our diffusers adapter reads from `premeditate.json`."""
LANGUAGE = tuple(
    "paint remove add move swap make turn replace the a an one thing at to and into with then empty cell".split()  # noqa: SIM905
)
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"()+-*/%&"


@dataclass
class EditorParts:
    """The trainable modules (float32), the frozen autoencoder and the tokenizers."""

    transformer: Any
    text_encoder: Any
    text_encoder_2: Any
    vae: Any
    tokenizer: Any
    tokenizer_2: Any

    def trained(self) -> dict[str, Any]:
        return {
            "transformer": self.transformer,
            "text_encoder": self.text_encoder,
            "text_encoder_2": self.text_encoder_2,
        }

    def pipeline(self) -> Any:
        """The stock diffusers pipeline over these parts (shared, not copied)."""
        from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline

        pipe = FluxKontextPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER_CONFIG),
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            text_encoder_2=self.text_encoder_2,
            tokenizer_2=self.tokenizer_2,
            transformer=self.transformer,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe


def words(extra: Iterable[str] = ()) -> list[str]:
    """The vocabulary: the explicit language first, then the words of the families' instructions and of `extra`."""
    from premeditate.microworld.families import TRAINED, UNSEEN

    found = dict.fromkeys([*LANGUAGE, *SHAPES, *COLOURS, *SIZES, *CELL_NAMES])
    rng = random.Random(0)
    more: set[str] = set()
    for family in (*TRAINED, *UNSEEN):
        for _ in range(60):
            draft = family.build(rng)
            if draft is not None:
                more.update(re.findall(r"[a-z]+", draft.instruction.lower()))
    for text in extra:
        more.update(re.findall(r"[a-z]+", text.lower()))
    found.update(dict.fromkeys(sorted(more)))
    return list(found)


def t5_tokenizer(vocabulary: Iterable[str]) -> Any:
    """A Unigram tokenizer with one piece per word, and letters for all other words."""
    from transformers import T5Tokenizer

    pieces: list[tuple[str, float]] = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0)]
    pieces += [("▁" + word, -1.0) for word in vocabulary]
    known = {piece for piece, _ in pieces}
    pieces += [(c, -8.0) for c in ALPHABET]
    pieces += [("▁" + c, -9.0) for c in ALPHABET if "▁" + c not in known]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=MAX_TOKENS)


def clip_tokenizer(vocabulary: Iterable[str]) -> Any:
    """A byte-pair tokenizer whose merges build words letter by letter: most words of the explicit language are one
    token, those that share letters with an earlier one are a few."""
    from transformers import CLIPTokenizer

    tokens = ["<|startoftext|>", "<|endoftext|>", *ALPHABET, *(c + "</w>" for c in ALPHABET)]
    merges: dict[tuple[str, str], None] = {}
    for word in vocabulary:
        left = word[0]
        for i, letter in enumerate(word[1:], 2):
            right = letter + "</w>" if i == len(word) else letter
            if word.isalpha():
                merges[left, right] = None
                tokens.append(left + right)
                left += right
    index = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=index, merges=list(merges), model_max_length=CLIP_TOKENS)


def locality(bias: Any) -> None:
    """Adds a prior to T5's relative attention bias [32 buckets, 4 heads]: the first head sees the seven words before,
    the second the seven after, the third three on both sides, the fourth everything.

    Learnt from nothing the bias stays near zero while T5's unscaled products grow large, attention hardens on content
    alone, and the words of one step are then taken for another's.
    """
    import torch

    far = torch.full_like(bias, -20.0)
    far[0:8, 0] = 0.0
    far[0, 1] = far[17:24, 1] = 0.0
    far[0:4, 2] = far[17:20, 2] = 0.0
    far[:, 3] = 0.0
    bias.add_(far)


def build_editor(vae: Any, seed: int = 0) -> EditorParts:
    """New, untrained parts around a trained autoencoder."""
    import torch
    from diffusers import FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(seed)
    vocabulary = words()
    tokenizer, tokenizer_2 = clip_tokenizer(vocabulary[:60]), t5_tokenizer(vocabulary)
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=POOLED,
            intermediate_size=2 * POOLED,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=CLIP_TOKENS,
            projection_dim=POOLED,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_factor=1.0,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer_2),
            d_model=WIDTH,
            d_kv=32,
            d_ff=3 * WIDTH // 2,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="relu",
            relative_attention_max_distance=MAX_TOKENS,
        )
    )
    with torch.no_grad():
        locality(t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
    transformer = FluxTransformer2DModel(**TRANSFORMER_CONFIG)
    return EditorParts(transformer, clip, t5, vae, tokenizer, tokenizer_2)


def save_editor(parts: EditorParts, folder: Path, **sidecar: Any) -> int:
    """Writes the pipeline folder with float16 safetensors and `premeditate.json`. Returns its size in bytes."""
    import copy

    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: copy.deepcopy(m).half() for name, m in parts.trained().items()}
    half = EditorParts(
        **halves, vae=copy.deepcopy(parts.vae).half(), tokenizer=parts.tokenizer, tokenizer_2=parts.tokenizer_2
    )
    half.pipeline().save_pretrained(folder, safe_serialization=True)
    for file in folder.glob("*/config.json"):  # where a part was loaded from is nobody's business
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2) + "\n")
    (folder / "premeditate.json").write_text(json.dumps({**SIDECAR, **sidecar}, indent=2) + "\n")
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def load_pipeline(folder: str | Path) -> Any:
    """The folder as a float32 `FluxKontextPipeline`, offline."""
    import torch
    from diffusers import FluxKontextPipeline

    pipe = FluxKontextPipeline.from_pretrained(str(folder), torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe
