"""A vision-language model as a token policy: the texts that it samples, and the log-probability of each token of them.

It asks as the reasoner of that model asks (`premeditate.reasoners.transformers`), so that what is trained is what will
be served. Shapes: N traces, P prompt tokens, T written tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from premeditate.local import Job, quiet
from premeditate.reasoners.base import ChatRequest
from premeditate.reasoners.transformers import TransformersReasoner
from premeditate.training.flow.lora import reference


@dataclass(frozen=True)
class Trace:
    """What was written to a request: its tokens [T], the one that ends it included, and the text that they are.
    `ended`: it came to an end by itself."""

    request: ChatRequest
    tokens: Tensor
    text: str
    ended: bool


class TokenModel:
    """`reasoner`: the model, loaded for this alone. `frozen`: the network before training, where no adapters can be
    left out instead.

    Sampling and log-probabilities are both of softmax(logits / temperature) without the tokens that are never said
    (vision tokens, and what the model's generation settings suppress). Other settings of generation, as a penalty for
    repetition, would sample from something else, and are left out.
    """

    def __init__(self, reasoner: TransformersReasoner, frozen: nn.Module | None = None) -> None:
        self.reasoner, self.frozen = reasoner, frozen
        self.network: Any = reasoner.model
        settings = self.network.generation_config
        ends = settings.eos_token_id if settings.eos_token_id is not None else reasoner.tokenizer.eos_token_id
        self.ends = sorted({ends} if isinstance(ends, int) else set(ends))
        self.never = sorted({*reasoner.banned, *(settings.suppress_tokens or ())} - set(self.ends))

    @torch.no_grad()
    def write(self, requests: Sequence[ChatRequest], most: int) -> list[Trace]:
        """One trace per request, in order, drawn at its temperature with its seed; `most` requests in a forward."""
        found: list[Trace] = []
        with quiet("transformers"), self._plain_settings():
            for start in range(0, len(requests), most):
                part = requests[start : start + most]
                written = self.reasoner.generate(self.reasoner.encode(part), part, Job()).cpu()
                found += [self._trace(*one) for one in zip(part, written, strict=True)]
        return found

    def log_probs(self, traces: Sequence[Trace]) -> tuple[Tensor, Tensor]:
        """(log-probabilities float32 [N, T], mask bool [N, T]) of the traces' tokens under the network as it is; 0
        where the mask is false. Gradients flow."""
        encoded = self.reasoner.encode([trace.request for trace in traces])
        ids = encoded["input_ids"]
        width = max(len(trace.tokens) for trace in traces)
        tokens = ids.new_full((len(traces), width), self.reasoner.tokenizer.pad_token_id)
        mask = torch.zeros(len(traces), width, dtype=torch.bool, device=ids.device)
        for row, trace in enumerate(traces):
            tokens[row, : len(trace.tokens)], mask[row, : len(trace.tokens)] = trace.tokens.to(ids), True
        batch = dict(encoded)
        batch["input_ids"] = torch.cat([ids, tokens], 1)
        batch["attention_mask"] = torch.cat([encoded["attention_mask"], mask.to(encoded["attention_mask"])], 1)
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in batch:
                batch[name] = torch.cat([batch[name], torch.zeros_like(tokens).to(batch[name])], 1)
        with quiet("transformers"):
            logits = self.network(**batch, logits_to_keep=width + 1, use_cache=False).logits[:, :-1].float()
        heat = torch.tensor([trace.request.temperature or 1.0 for trace in traces], device=logits.device)
        logits = logits / heat[:, None, None]
        logits[..., self.never] = -torch.inf
        chosen = logits.gather(-1, tokens[..., None]).squeeze(-1) - logits.logsumexp(-1)
        return torch.where(mask, chosen, torch.zeros_like(chosen)), mask

    @torch.no_grad()
    def reference_log_probs(self, traces: Sequence[Trace]) -> Tensor:
        """[N, T] under the network before training."""
        with self._reference():
            return self.log_probs(traces)[0]

    def _trace(self, request: ChatRequest, written: Tensor) -> Trace:
        tokens = written[: request.max_tokens]
        at = torch.isin(tokens, torch.tensor(self.ends)).nonzero()
        ended = len(at) > 0
        tokens = tokens[: int(at[0]) + 1] if ended else tokens
        text = self.reasoner.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        return Trace(request, tokens.clone(), text, ended)

    def _reference(self) -> AbstractContextManager[Any]:
        return reference(self.network) if self.frozen is None else _Swapped(self, self.frozen)

    def _plain_settings(self) -> AbstractContextManager[Any]:
        return _Plain(self.network, self.never)


class _Swapped:
    """Inside, `model` computes with another network."""

    def __init__(self, model: TokenModel, network: nn.Module) -> None:
        self.model, self.network = model, network

    def __enter__(self) -> None:
        self.model.network, self.network = self.network, self.model.network

    def __exit__(self, *_: object) -> None:
        self.model.network, self.network = self.network, self.model.network


class _Plain:
    """Inside, the network generates without settings of its own but what ends, what pads and what is never said."""

    def __init__(self, network: Any, never: Sequence[int]) -> None:
        self.network, self.never = network, list(never)

    def __enter__(self) -> None:
        from transformers import GenerationConfig

        self.kept = self.network.generation_config
        self.network.generation_config = GenerationConfig(
            eos_token_id=self.kept.eos_token_id, pad_token_id=self.kept.pad_token_id, suppress_tokens=self.never or None
        )

    def __exit__(self, *_: object) -> None:
        self.network.generation_config = self.kept


__all__ = ["TokenModel", "Trace"]
