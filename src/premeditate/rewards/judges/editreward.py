"""EditReward (arXiv 2509.26346): a vision-language model whose hidden state says how good an edit is, and how sure.

For each of two questions (was the instruction followed; does it look right) the model reads [source, edit, words,
<|Reward|>]; the hidden state h at that token goes through the question's own head:

    (mu_i, log sigma_i) = head_i(h_i)        mu = mean_i mu_i        log sigma = mean_i log sigma_i

mu is the reward (roughly -3 to 2, unbounded; differences count: P(a preferred to b) = E[sigmoid(z)] with
z ~ N(mu_a - mu_b, sigma_a^2 + sigma_b^2)), sigma its uncertainty and no score.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from premeditate.errors import ModelError, one_line
from premeditate.local import Job, Stopped, Worker, load_failure, pick_device, pick_dtype, quiet
from premeditate.prompts.base import defuse
from premeditate.qwen_processor import FAMILIES, load_processor
from premeditate.rewards.base import Sample
from premeditate.rewards.judges.reward_head import (
    HEADS,
    PUBLISHED_POSITIONS,
    Settings,
    read_heads,
    reward_token,
    weight_files,
)
from premeditate.trace import Verdict

if TYPE_CHECKING:
    from torch import Tensor

Output = tuple[float, float] | str
"""A head's (mu, log sigma), or why there is none."""
FACTS = """the folder needs config.json, the tokenizer and preprocessor_config.json of the model beside its weights \
(docs/judges.md)"""


@dataclass(frozen=True)
class Belief:
    """`heads`: (mu, log sigma) by head."""

    heads: dict[str, tuple[float, float]]

    @property
    def mu(self) -> float:
        return math.fsum(mu for mu, _ in self.heads.values()) / len(self.heads)

    @property
    def log_sigma(self) -> float:
        return math.fsum(log for _, log in self.heads.values()) / len(self.heads)

    @property
    def sigma(self) -> float:
        return math.exp(min(self.log_sigma, 300.0))


def preference(a: Belief, b: Belief) -> float:
    """The probability that `a` is preferred to `b`, in [0, 1]: E[sigmoid(z)], by the trapezoidal rule over 8 sigma."""
    import numpy as np

    sigma = math.hypot(a.sigma, b.sigma)
    x = np.linspace(-8, 8, 2001)
    density = np.exp(-x * x / 2)
    z = np.clip(a.mu - b.mu + sigma * x, -700, 700)
    return float((density / (1 + np.exp(-z))).sum() / density.sum())


class EditReward:
    """overall = mu, unbounded; with `scale` "unit", sigmoid(mu) in [0, 1]: the same order, for panels that weigh
    rewards against each other. `max_batch`: rows per pass, two for each sample.

    Both pictures are scaled to the folder's number of pixels. Control tokens in an instruction become plain words. A
    sample that fails is "unavailable", with the reason; the others of its call are not.
    """

    dimensions: tuple[str, ...] = ("overall",)

    def __init__(
        self, model: Any, processor: Any, heads: Sequence[Any], token: int, settings: Settings, *,
        scale: Literal["raw", "unit"] = "raw", max_batch: int | None = None, name: str = "editreward",
    ) -> None:  # fmt: skip
        """`heads`: float32 modules [B, hidden] -> [B, 2], on the model's device. `token`: the reward token's id."""
        if scale not in ("raw", "unit"):
            raise ModelError(f"{name}: there is no scale {scale!r}", "give raw or unit")
        self.max_batch = settings.max_batch if max_batch is None else max_batch
        if type(self.max_batch) is not int or self.max_batch < 1:
            raise ModelError(f"{name}: max_batch is {max_batch!r}", "give a whole number of at least 1")
        self.model, self.processor, self.heads, self.token = model.eval(), processor, list(heads), token
        self.settings, self.scale, self.name = settings, scale, name
        processor.tokenizer.padding_side = "right"
        processor.image_processor.size = {"shortest_edge": settings.pixels, "longest_edge": settings.pixels}
        self._positions = settings.positions or PUBLISHED_POSITIONS[model.config.model_type]
        self._limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        added = {t.content for t in processor.tokenizer.added_tokens_decoder.values()} | {settings.token}
        self._controls = sorted((t for t in added if len(t.strip()) > 1), key=len, reverse=True)
        self._worker = Worker(name)

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str | None = None, dtype: str | None = None, **options: Any
    ) -> EditReward:
        """From a folder as described in `reward_head`. `device`, `dtype`: as for reasoners; the heads are float32.
        Raises `ModelError`; only safetensors are read, and no code that comes with a model is run."""
        folder = Path(folder)
        weight_files(folder)
        settings = Settings.read(folder)
        where = pick_device(device)
        kind = pick_dtype(dtype, where)
        with quiet("transformers", loading=True):
            import transformers

            hub = {"local_files_only": True, "trust_remote_code": False}
            if not (folder / "config.json").is_file():
                raise ModelError(f"{folder} has no config.json", FACTS)
            try:
                config = transformers.AutoConfig.from_pretrained(folder, **hub)
            except Exception as error:
                raise load_failure(str(folder), error) from error
            if config.model_type not in PUBLISHED_POSITIONS:
                raise ModelError(f"{folder} is a model of type {config.model_type}",
                                 f"EditReward is built on {' and '.join(PUBLISHED_POSITIONS)}")  # fmt: skip
            heads = read_heads(folder, config.get_text_config().hidden_size)
            try:
                processor = load_processor(str(folder), FAMILIES[config.model_type], local_files_only=True)
                model, info = transformers.AutoModelForImageTextToText.from_pretrained(
                    folder, dtype=kind, use_safetensors=True, output_loading_info=True, **hub
                )
            except Exception as error:
                raise load_failure(str(folder), error) from error
        # What is missing was filled with random numbers; only the word head is never used.
        if missing := sorted(key for key in info["missing_keys"] if not key.startswith("lm_head")):
            raise ModelError(f"{folder} lacks {len(missing)} of the model's weights ({missing[0]})",
                             "check that the folder is complete, and that config.json is this model's")  # fmt: skip
        if processor.chat_template is None:
            raise ModelError(f"{folder} has no chat template", FACTS)
        token = reward_token(processor.tokenizer, settings.token, model.get_input_embeddings().weight.shape[0])
        return cls(model.to(where), processor, [head.to(where) for head in heads], token, settings, **options)

    async def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        """One verdict per sample, in order; its reason tells sigma and what each head said."""
        start = time.perf_counter()
        beliefs = await self.beliefs(samples)
        seconds = (time.perf_counter() - start) / max(1, len(samples))
        return [self._verdict(belief, seconds) for belief in beliefs]

    async def beliefs(self, samples: Sequence[Sample]) -> list[Belief | str]:
        """What the heads say of each sample, in order; or why they cannot."""

        def work(job: Job) -> list[Belief | str]:
            import torch

            with quiet("transformers"), torch.inference_mode():
                return self._beliefs(list(samples), job)

        return await self._worker.run(work)

    def _verdict(self, belief: Belief | str, seconds: float) -> Verdict:
        if isinstance(belief, str):
            return Verdict(status="unavailable", verifier=self.name, reason=belief, seconds=seconds)
        value = belief.mu if self.scale == "raw" else 1 / (1 + math.exp(-max(-700.0, belief.mu)))
        parts = ", ".join(f"{head} {mu:.3f}" for head, (mu, _) in belief.heads.items())
        return Verdict(status="scored", scores={"overall": value}, verifier=self.name, seconds=seconds,
                       reason=f"mu {belief.mu:.3f}, sigma {belief.sigma:.3f} ({parts})")  # fmt: skip

    def _beliefs(self, samples: list[Sample], job: Job) -> list[Belief | str]:
        found: list[dict[str, Output]] = [{} for _ in samples]
        for number, head in enumerate(HEADS):
            for start in range(0, len(samples), self.max_batch):
                rows = range(start, min(start + self.max_batch, len(samples)))
                for i, output in zip(rows, self._attempt([samples[i] for i in rows], number, job), strict=True):
                    found[i][head] = output
        return [_belief(outputs) for outputs in found]

    def _attempt(self, samples: list[Sample], number: int, job: Job) -> list[Output]:
        """A batch that fails is tried again one by one, so that only the guilty sample goes without."""
        try:
            job.check()
            return list(self._outputs(samples, number))
        except Stopped:
            raise
        except Exception as error:
            if len(samples) > 1:
                return [output for sample in samples for output in self._attempt([sample], number, job)]
            return [one_line(error)]

    def _outputs(self, samples: list[Sample], number: int) -> list[tuple[float, float]]:
        encoded = self._encode(samples, HEADS[number])
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        marks = (ids == self.token) & mask.bool()
        if bool((marks.sum(1) != 1).any()):
            raise ValueError("the prompt does not hold the reward token exactly once")
        hidden = self.model.model(**encoded, position_ids=self._places(encoded), use_cache=False).last_hidden_state
        values = self.heads[number](hidden[marks].float())
        return [(mu, log) for mu, log in values.double().cpu().tolist()]

    def _places(self, encoded: dict[str, Tensor]) -> Tensor:
        """Positions [3, B, L]."""
        mask = encoded["attention_mask"]
        if self._positions == "plain":
            return (mask.long().cumsum(-1) - 1).clamp(min=0).expand(3, *mask.shape)
        places, _ = self.model.model.get_rope_index(
            encoded["input_ids"], image_grid_thw=encoded["image_grid_thw"], attention_mask=mask,
            mm_token_type_ids=encoded["mm_token_type_ids"],
        )  # fmt: skip
        return places

    def _encode(self, samples: list[Sample], head: str) -> dict[str, Tensor]:
        turns = [
            [{"role": "user", "content": [
                {"type": "image", "image": s.source.convert("RGB")}, {"type": "image", "image": s.edit.convert("RGB")},
                {"type": "text", "text": self.settings.text(head, self._plain(s.task.instruction))},
            ]}]
            for s in samples
        ]  # fmt: skip
        encoded = self.processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True},
        )  # fmt: skip
        longest = int(encoded["attention_mask"].sum(1).max())
        if self._limit and longest > self._limit:
            raise ValueError(f"the prompt has {longest} tokens, the model reads {self._limit}; shorten the instruction")
        device, dtype = self.model.device, self.model.dtype
        return {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in encoded.items()}

    def _plain(self, instruction: str) -> str:
        """The instruction without anything that the tokenizer takes for more than letters."""
        text = defuse(instruction)
        for token in self._controls:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


def _belief(outputs: dict[str, Output]) -> Belief | str:
    good: dict[str, tuple[float, float]] = {}
    for head, output in outputs.items():
        if isinstance(output, str):
            return output
        if not all(map(math.isfinite, output)):
            return f"the head {head!r} gave {output[0]} and {output[1]}"
        good[head] = output
    return Belief(good)
