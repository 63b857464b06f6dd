"""A lean forward over the stock Qwen3-VL modules, for training: the same numbers (a test says so), faster.

Stock code recomputes position grids in Python, runs vision attention picture by picture and repeats the pictures for
every question. Here everything has one size, and questions about the same pictures are *branches* of one sequence:
`prefix | branch 1 | branch 2 ...`, where a branch sees the prefix and itself, at the positions it would have alone.

Shape legend: B sequences, T tokens, N pictures, P = 64 patches, C = 16 cells, D = hidden size, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from premeditate.microworld.models.reasoner_build import MERGE, PATCH

SIDE = 64
GRID = SIDE // PATCH


def patchify(images: Tensor) -> Tensor:
    """uint8 [N, 64, 64, 3] -> [N, 64 patches, 3 * 8 * 8] in -1..1, in the image processor's order (2x2 blocks)."""
    half = GRID // MERGE
    x = images.float().div(127.5).sub(1).reshape(-1, half, MERGE, PATCH, half, MERGE, PATCH, 3)
    return x.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(len(images), GRID * GRID, 3 * PATCH * PATCH)


def pixel_values(images: Tensor) -> Tensor:
    """What the image processor gives to the stock model: [N * 64, 3 * 2 * 8 * 8] (two equal frames)."""
    x = patchify(images).reshape(-1, 3, 1, PATCH * PATCH)
    return x.expand(-1, 3, 2, PATCH * PATCH).reshape(len(x), -1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, two = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-two, one), dim=-1) * sin


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """[B, H, T, d] each, plus a bias [B, 1, T, T]. On a CPU, at these sizes, plain products beat the fused kernel."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores if bias is None else scores.add_(bias)).softmax(-1) @ v


class Fast:
    """Wraps a stock model; its parameters are used, never copied."""

    def __init__(self, model: Any) -> None:
        self.model, self.vision, self.text = model, model.model.visual, model.model.language_model
        block = torch.arange(GRID // MERGE)
        row = (block[:, None, None, None] * MERGE + torch.arange(MERGE)[None, None, :, None]).expand(4, 4, 2, 2)
        column = (block[None, :, None, None] * MERGE + torch.arange(MERGE)[None, None, None, :]).expand(4, 4, 2, 2)
        self.places = (row * GRID + column).reshape(-1)
        where = torch.stack([row.reshape(-1), column.reshape(-1)], dim=-1)
        self.vision_rope = self.vision.rotary_pos_emb(torch.zeros(1), where)

    def see(self, images: Tensor) -> Tensor:
        """uint8 [N, 64, 64, 3] -> image tokens [N, 16, D]."""
        vision = self.vision
        weight = vision.patch_embed.proj.weight.sum(2).flatten(1)
        x = F.linear(patchify(images).to(weight.dtype), weight, vision.patch_embed.proj.bias)
        x = x + vision.pos_embed.weight[self.places]
        cos, sin = (r.to(x.dtype) for r in self.vision_rope)
        for block in vision.blocks:
            heads = block.attn.num_heads
            qkv = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            out = _attend(_rotate(qkv[0], cos, sin), _rotate(qkv[1], cos, sin), qkv[2])
            x = x + block.attn.proj(out.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.norm2(x))
        return vision.merger(x.reshape(-1, x.shape[-1])).reshape(len(images), -1, self.text.config.hidden_size)

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """int [3, B, T] -> cos, sin [B, 1, T, head_dim]."""
        cos, sin = self.text.rotary_emb(torch.zeros(1), positions)
        kind = self.text.norm.weight.dtype
        return cos[:, None].to(kind), sin[:, None].to(kind)

    def hidden(
        self, ids: Tensor, seen: Tensor, positions: Tensor, mask: Tensor, taps: tuple[int, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Final normalised states [B, T, D], and the states after each layer of `taps`.

        ids: [B, T]. seen: [B, images * 16, D], put where `ids` holds the image token. mask: bool [B, 1, T, T], True
        where a row may look.
        """
        x = self.text.embed_tokens(ids)
        at = (ids == self.model.config.image_token_id)[..., None]
        x = x.masked_scatter(at, seen.to(x.dtype))
        cos, sin = self.rope(positions)
        bias = torch.zeros(mask.shape, dtype=x.dtype).masked_fill_(~mask, -1e4)
        tapped = []
        for number, layer in enumerate(self.text.layers):
            attention = layer.self_attn
            y = self._norm(x, layer.input_layernorm)
            size = (*y.shape[:-1], -1, attention.head_dim)
            q = self._norm(attention.q_proj(y).view(size), attention.q_norm).transpose(1, 2)
            k = self._norm(attention.k_proj(y).view(size), attention.k_norm).transpose(1, 2)
            v = attention.v_proj(y).view(size).transpose(1, 2)
            out = _attend(_rotate(q, cos, sin), _rotate(k, cos, sin), v, bias)
            x = x + attention.o_proj(out.transpose(1, 2).flatten(2))
            y = self._norm(x, layer.post_attention_layernorm)
            x = x + layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(y)) * layer.mlp.up_proj(y))
            if number in taps:
                tapped.append(x)
        return self._norm(x, self.text.norm), tapped

    @staticmethod
    def _norm(x: Tensor, norm: Any) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)

    def logits(self, states: Tensor) -> Tensor:
        """[..., D] -> [..., vocabulary]."""
        return F.linear(states, self.text.embed_tokens.weight)
