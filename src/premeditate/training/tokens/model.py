"""A vision-language model as a token policy: the texts that it samples, and the log-probability of each token of them.

It asks as the reasoner of that model asks (`premeditate.reasoners.transformers`), so that what is trained is what will
be served. Shapes: N traces, P prompt tokens, T written tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from premeditate.errors import one_line
from premeditate.local import Job, quiet
from premeditate.reasoners.base import ChatRequest
from premeditate.reasoners.transformers import TransformersReasoner
from premeditate.training.lora import reference
from premeditate.training.tokens.settings import listed, plain

_PORTION = 2**27
"""Logits in float32 at a time: with 150,000 tokens to choose from, those of a few long traces would fill a device."""


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
    (`never`: vision tokens, and what the model's generation settings suppress). Other settings of generation are left
    out (`premeditate.training.tokens.settings`), here as in an export. A trace ends with one of `ends`.

    `dtype`: what forwards calculate in where the weights are of another one (autocast); None: as the weights are.
    """

    def __init__(
        self, reasoner: TransformersReasoner, frozen: nn.Module | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self.reasoner, self.frozen, self.dtype = reasoner, frozen, dtype
        self.network: Any = reasoner.model
        self.settings = plain(self.network, reasoner.tokenizer)
        self.ends = listed(self.settings.eos_token_id)
        self.never: list[int] = self.settings.suppress_tokens or []

    @torch.no_grad()
    def write(self, requests: Sequence[ChatRequest], most: int) -> list[Trace | str]:
        """One trace per request, in order, drawn at its temperature (0: greedily) with its seed; `most` requests in a
        forward. A request that the model cannot take (a prompt longer than it reads, a picture that it cannot cut into
        patches) has the reason in its place."""
        found: list[Trace | str] = []
        with quiet("transformers"), self._plain_settings(), self._calculating():
            for start in range(0, len(requests), most):
                part = requests[start : start + most]
                try:
                    found += self._written(part)
                except ValueError:
                    refused = [self._refused(request) for request in part]
                    if not any(refused):
                        raise
                    good = iter(self._written([r for r, why in zip(part, refused, strict=True) if not why]))
                    found += [why or next(good) for why in refused]
        return found

    def _written(self, requests: Sequence[ChatRequest]) -> list[Trace]:
        if not requests:
            return []
        written = self.reasoner.generate(self.reasoner.encode(requests), requests, Job()).cpu()
        return [self._trace(*one) for one in zip(requests, written, strict=True)]

    def _refused(self, request: ChatRequest) -> str:
        """Why the model cannot take it, "" where it can."""
        try:
            self.reasoner.encode([request])
        except ValueError as error:
            return one_line(error, ValueError)
        return ""

    def log_probs(self, traces: Sequence[Trace]) -> tuple[Tensor, Tensor]:
        """(log-probabilities float32 [N, T], mask bool [N, T]) of the traces' tokens under the network as it is, each
        at the temperature that its trace was drawn with (1 for a greedy one); 0 where the mask is false. Gradients
        flow."""
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
        with quiet("transformers"), self._calculating():
            logits = self.network(**batch, logits_to_keep=width + 1, use_cache=False).logits[:, :-1]
        heat = torch.tensor([trace.request.temperature or 1.0 for trace in traces], device=logits.device)
        size = max(1, _PORTION // logits[0].numel())
        parts = zip(logits.split(size), tokens.split(size), heat.split(size), strict=True)
        chosen = torch.cat([self._chosen(*part) for part in parts])
        return torch.where(mask, chosen, torch.zeros_like(chosen)), mask

    def _chosen(self, logits: Tensor, tokens: Tensor, heat: Tensor) -> Tensor:
        """[N, T] of `tokens` [N, T] under `logits` [N, T, V] at the temperatures `heat` [N]. Calculated again on the
        way back: what would be kept otherwise is several times the logits."""

        def calculate(logits: Tensor) -> Tensor:
            scaled = logits.float() / heat[:, None, None]
            scaled[..., self.never] = -torch.inf
            return scaled.gather(-1, tokens[..., None]).squeeze(-1) - scaled.logsumexp(-1)

        found: Tensor = checkpoint(calculate, logits, use_reentrant=False, preserve_rng_state=False)
        return found

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

    def _calculating(self) -> AbstractContextManager[Any]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.network.device.type, self.dtype)

    def _plain_settings(self) -> AbstractContextManager[Any]:
        return _Plain(self.network, self.settings)


class _Swapped:
    """Inside, `model` computes with another network."""

    def __init__(self, model: TokenModel, network: nn.Module) -> None:
        self.model, self.network = model, network

    def __enter__(self) -> None:
        self.model.network, self.network = self.network, self.model.network

    def __exit__(self, *_: object) -> None:
        self.model.network, self.network = self.network, self.model.network


class _Plain:
    """Inside, the network generates under `settings` and not its own."""

    def __init__(self, network: Any, settings: Any) -> None:
        self.network, self.settings = network, settings

    def __enter__(self) -> None:
        self.kept = self.network.generation_config
        self.network.generation_config = self.settings

    def __exit__(self, *_: object) -> None:
        self.network.generation_config = self.kept


__all__ = ["TokenModel", "Trace"]
