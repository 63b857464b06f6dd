"""Short ways to talk to a `ChatServer`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.reasoners.openai_chat import OpenAIChatReasoner
from premeditate.remote import EndpointError
from support.chat_server import ChatServer


def load(server: ChatServer, **options: Any) -> OpenAIChatReasoner:
    return OpenAIChatReasoner.load(server.url, **{"model": "tiny", **options})


def ready(server: ChatServer, *honours: str, **options: Any) -> OpenAIChatReasoner:
    """A reasoner that has probed the server already; what follows is in the server's `bodies`."""
    server.honours = set(honours)
    reasoner = load(server, **options)
    asyncio.run(reasoner.prepare())
    server.forget()
    return reasoner


def ask(reasoner: OpenAIChatReasoner, *requests: ChatRequest) -> list[Completion]:
    return asyncio.run(reasoner.chat(requests))


def one(reasoner: OpenAIChatReasoner, request: ChatRequest) -> Completion:
    (completion,) = ask(reasoner, request)
    assert completion.error is None
    return completion


def error_of(reasoner: OpenAIChatReasoner, request: ChatRequest, timeout: float | None = None) -> EndpointError:
    with pytest.raises(EndpointError) as caught:
        asyncio.run(reasoner.send(request, timeout))
    return caught.value
