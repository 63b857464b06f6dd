"""The Reasoner protocol: images and text in, text (and, where asked, label probabilities) out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from PIL import Image


@dataclass(frozen=True)
class ChatRequest:
    """`images` come before `text`, in order. With `labels` (say yes/no) nothing is generated: the completion holds
    each label's probability. `temperature` 0 is greedy; `seed` makes sampling exact. `schema`: the JSON schema that the
    text is to follow, for reasoners that can be held to one; the prompt asks for the same in words."""

    images: tuple[Image.Image, ...]
    text: str
    labels: tuple[str, ...] = ()
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Completion:
    """`text` is model output: data, never instructions. `tokens`: read and written, where that is known. `error` says
    why there is no text."""

    text: str = ""
    probabilities: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    tokens: int = 0
    error: str | None = None


@runtime_checkable
class Reasoner(Protocol):
    """A vision-language model. `prompts` names the prompt set it speaks (see `premeditate.prompts`)."""

    prompts: str

    @property
    def name(self) -> str: ...

    async def chat(self, requests: Sequence[ChatRequest]) -> Sequence[Completion]: ...


async def chat_all(reasoner: Reasoner, requests: Sequence[ChatRequest]) -> list[Completion]:
    """One completion per request, in order; nobody is asked for none. Raises what the reasoner raises, and RuntimeError
    where it loses count."""
    done = list(await reasoner.chat(requests)) if requests else []
    if len(done) != len(requests):
        raise RuntimeError(f"{reasoner.name} returned {len(done)} completions for {len(requests)}")
    return done


async def close(model: object) -> None:
    """Closes a model, or anything else, that has an `aclose`."""
    if callable(aclose := getattr(model, "aclose", None)):
        await aclose()
