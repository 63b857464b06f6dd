"""A plain reinforcement-learning loop for FLUX.1-Kontext, with the forwards that the published trainers make.

Text is padded to 512 tokens, adapters run unmerged, one timestep of one batch at a time is trained, and the
log-probabilities of the sampling policy are recomputed before the update (Flow-GRPO), or its velocities at every
timestep (DiffusionNFT). Prompts and sources are encoded once, as the best of them do. It shares no code with the
package, so that it can be compared with it; formulas as in docs/training.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PIXELS, BATCH, GROUP, GROUPS, STEPS = 128, 4, 4, 4, 10
TRAINED = (2, 3)
NOISE = 0.7
TEXT = 512
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
WORDS = "abcdefghijklmnopqrstuvwxyz"


def build_kontext(seed: int = 0) -> Any:
    """A FluxKontextPipeline with random weights: 2 + 2 blocks of width 64, 16 latent channels, 8 x autoencoder."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

    torch.manual_seed(seed)
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *WORDS, *(c + "</w>" for c in WORDS)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in WORDS)]
    pipeline = FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        tokenizer=CLIPTokenizer(vocab={t: i for i, t in enumerate(vocabulary)}, merges=[], model_max_length=77),
        tokenizer_2=T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TEXT),
        text_encoder=CLIPTextModel(CLIPTextConfig(
            vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=1, projection_dim=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )),
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=len(pieces), d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
        ),
        vae=AutoencoderKL(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=16, norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False, shift_factor=0.1159,
            scaling_factor=0.3611,
        ),
        transformer=FluxTransformer2DModel(
            patch_size=1, in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=32,
            num_attention_heads=2, joint_attention_dim=64, pooled_projection_dim=16, guidance_embeds=True,
            axes_dims_rope=(8, 12, 12),
        ),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        part.eval().requires_grad_(False)
    return pipeline


@dataclass
class Result:
    """`loss`: of the first update. `gradient`: of all trained weights, before it is cut to its norm."""

    loss: float
    gradient: Tensor
    x: Tensor


class PeerLoop:
    """One epoch of 16 edits: 4 tasks, 4 edits of each. `text`: tokens that prompts are padded to."""

    def __init__(
        self, pipeline: Any, tasks: Sequence[tuple[Any, str]], *, rank: int = 32, text: int = TEXT, seed: int = 0
    ) -> None:
        from peft import LoraConfig

        self.pipeline, self.transformer = pipeline, pipeline.transformer
        torch.manual_seed(seed)
        self.transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS))
        self.trained = [p for p in self.transformer.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=3e-4)
        self.conditions = [self._encode(image, prompt, text) for image, prompt in tasks]
        n = self.conditions[0]["source"].shape[1]
        mu = _shift(n)
        pipeline.scheduler.set_timesteps(sigmas=[1 - i / STEPS for i in range(STEPS)], mu=mu)
        self.sigmas = [float(s) for s in pipeline.scheduler.sigmas]

    @torch.no_grad()
    def _encode(self, image: Any, prompt: str, text: int) -> dict[str, Tensor]:
        pipe = self.pipeline
        embeds, pooled, text_ids = pipe.encode_prompt(prompt=prompt, prompt_2=None, max_sequence_length=text)
        pixels = pipe.image_processor.preprocess(image, PIXELS, PIXELS)
        _noise, source, ids, source_ids = pipe.prepare_latents(
            pixels, 1, 16, PIXELS, PIXELS, embeds.dtype, "cpu", torch.Generator().manual_seed(0)
        )
        return {"embeds": embeds, "pooled": pooled, "source": source, "text_ids": text_ids,
                "ids": torch.cat([ids, source_ids])}  # fmt: skip

    def _velocity(self, x: Tensor, sigma: float, c: dict[str, Tensor]) -> Tensor:
        n = len(x)
        return self.transformer(
            hidden_states=torch.cat([x, c["source"].expand(n, -1, -1)], 1), timestep=x.new_full((n,), sigma),
            guidance=x.new_full((n,), 2.5), pooled_projections=c["pooled"].expand(n, -1),
            encoder_hidden_states=c["embeds"].expand(n, -1, -1), txt_ids=c["text_ids"], img_ids=c["ids"],
            return_dict=False,
        )[0][:, : x.shape[1]]  # fmt: skip

    def _step(self, x: Tensor, v: Tensor, i: int, x_next: Tensor | None, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """The published SDE step and its log-probability."""
        sigma, dt = self.sigmas[i], self.sigmas[i + 1] - self.sigmas[i]
        s = NOISE * math.sqrt(sigma / (1 - (self.sigmas[1] if sigma == 1 else sigma)))
        mean = x * (1 + s**2 / (2 * sigma) * dt) + v * (1 + s**2 * (1 - sigma) / (2 * sigma)) * dt
        std = s * math.sqrt(-dt)
        if x_next is None:
            assert noise is not None
            x_next = mean + std * noise
        log_prob = -((x_next - mean) ** 2) / (2 * std**2) - math.log(std) - math.log(2 * math.pi) / 2
        return x_next, log_prob.mean(dim=(1, 2))

    @torch.no_grad()
    def _decode(self, x: Tensor) -> Tensor:
        pipe = self.pipeline
        z = pipe._unpack_latents(x, PIXELS, PIXELS, pipe.vae_scale_factor)
        return pipe.vae.decode(z / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor, return_dict=False)[0]

    def _sample(self, start: Sequence[Tensor], noise: Sequence[Tensor], window: Sequence[int]) -> list[dict[str, Any]]:
        """`start` [4] of [4, N, C]; `noise` [4] of [4, S, N, C]."""
        found = []
        with torch.no_grad():
            for c, x, fresh in zip(self.conditions, start, noise, strict=True):
                record = []
                for i in range(STEPS):
                    v = self._velocity(x, self.sigmas[i], c)
                    if i in window:
                        after, log_prob = self._step(x, v, i, None, fresh[:, window.index(i)])
                        record.append((i, x, after, log_prob))
                        x = after
                    else:
                        x = x + v * (self.sigmas[i + 1] - self.sigmas[i])
                found.append({"c": c, "x": x, "record": record, "reward": brightness(self._decode(x))})
        return found

    def _update(self) -> Tensor:
        gradient = torch.cat([p.grad.flatten() for p in self.trained if p.grad is not None])
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        return gradient

    def grpo(self, start: Sequence[Tensor], noise: Sequence[Tensor]) -> Result:
        batches = self._sample(start, noise, TRAINED)
        with torch.no_grad():
            for b in batches:  # the sampling policy's log-probabilities, again
                b["old"] = [self._step(x, self._velocity(x, self.sigmas[i], b["c"]), i, after, None)[1]
                            for i, x, after, _ in b["record"]]  # fmt: skip
        self.optimizer.zero_grad()
        total, rows = 0.0, GROUPS * GROUP * len(TRAINED)
        for b in batches:
            for (i, x, after, _), old in zip(b["record"], b["old"], strict=True):
                _, log_prob = self._step(x, self._velocity(x, self.sigmas[i], b["c"]), i, after, None)
                ratio, a = torch.exp(log_prob - old), z_scores(b["reward"])
                loss = torch.maximum(-a * ratio, -a * ratio.clamp(1 - 1e-4, 1 + 1e-4)).sum() / rows
                loss.backward()
                total += float(loss.detach())
        return Result(total, self._update(), torch.cat([b["x"] for b in batches]))

    def nft(
        self, start: Sequence[Tensor], noise: Sequence[Tensor], fresh: Sequence[Tensor], beta: float = 1.0
    ) -> Result:
        """`fresh` [4] of [4, STEPS, N, C]: what finished samples are made noisy with."""
        batches = self._sample(start, noise, ())
        self.optimizer.zero_grad()
        total, rows = 0.0, GROUPS * GROUP * STEPS
        for b, eps in zip(batches, fresh, strict=True):
            r = 0.5 + 0.5 * z_scores(b["reward"]).clamp(-1, 1)
            for i in range(STEPS):
                sigma, target = self.sigmas[i], eps[:, i] - b["x"]
                x = (1 - sigma) * b["x"] + sigma * eps[:, i]
                with torch.no_grad():
                    old = self._velocity(x, sigma, b["c"])
                v = self._velocity(x, sigma, b["c"])
                plus = ((1 - beta) * old + beta * v - target).square().mean((1, 2))
                minus = ((1 + beta) * old - beta * v - target).square().mean((1, 2))
                loss = (r * plus + (1 - r) * minus).sum() / rows
                loss.backward()
                total += float(loss.detach())
        return Result(total, self._update(), torch.cat([b["x"] for b in batches]))


def brightness(images: Tensor) -> Tensor:
    """[B, 3, H, W] in -1..1 -> mean brightness [B] in 0-1, of the 8-bit picture, as a reward sees it."""
    return ((images / 2 + 0.5).clamp(0, 1) * 255).round().mean((1, 2, 3)) / 255


def z_scores(rewards: Tensor) -> Tensor:
    return (rewards - rewards.mean()) / rewards.std(unbiased=False)


def _shift(tokens: int) -> float:
    slope = (1.15 - 0.5) / (4096 - 256)
    return tokens * slope + 0.5 - slope * 256
