"""Reasoners from an address: one endpoint of the OpenAI chat API for each URL."""

from __future__ import annotations

from typing import Any

from premeditate.address import Address
from premeditate.errors import ModelError
from premeditate.reasoners.openai_chat import OpenAIChatReasoner


def open_reasoners(spec: str, **options: Any) -> list[OpenAIChatReasoner]:
    """The endpoints that `spec` names; nothing is connected yet. `options` come before those in the address, None says
    nothing. Raises `ModelError`."""
    address = Address.parse(spec)
    if address.dialect not in (None, "openai"):
        raise ModelError(f"a reasoner does not speak {address.dialect!r}", "leave that out: OpenAI chat is spoken")
    settings = address.settings(options, texts=("name", "key", "prompts"))
    return [OpenAIChatReasoner.load(url, **settings) for url in address.urls]
