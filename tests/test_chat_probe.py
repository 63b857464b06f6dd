"""What a chat server honours: what is seen at work counts, not what is accepted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from premeditate.reasoners import probe
from premeditate.reasoners.base import ChatRequest
from premeditate.reasoners.openai_chat import OpenAIChatReasoner
from premeditate.remote import EndpointError
from support.chat_server import ChatServer
from support.chats import error_of, load, one, ready


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as running:
        yield running
    assert running.invalid == []  # whatever was sent, OpenAI's own types accept it


@pytest.mark.parametrize("rejects", [False, True])
@pytest.mark.parametrize(("honours", "found"), [
    ((), ("prompt", "vote")), (("systemone",), ("prompt", "systemone")), (("json_object",), ("json_object", "vote")),
    (("json_schema", "json_object", "logprobs", "systemone"), ("json_schema", "top_logprobs")),
    (("json_schema", "systemone"), ("json_schema", "systemone")),
    (("json_object", "logprobs"), ("json_object", "top_logprobs")),
])  # fmt: skip
def test_the_probe_finds_the_truth(
    server: ChatServer, honours: tuple[str, ...], found: tuple[str, str], rejects: bool
) -> None:
    if rejects and not {"json_schema", "json_object"} & set(honours):
        server.rejects |= {"response_format"}
    if rejects and "logprobs" not in honours:
        server.rejects |= {"logprobs"}
    server.honours = set(honours)
    reasoner = load(server)
    assert reasoner.describe() == {"endpoint": server.host}
    asyncio.run(reasoner.prepare())
    assert reasoner.describe() == {"endpoint": server.host, "model": "tiny", "json": found[0], "probability": found[1]}


def test_likeness_is_not_enough_for_the_probe(server: ChatServer) -> None:
    server.reply = lambda body: '{"hello": "world"}'  # JSON, but not by the schema
    server.honours, server.tops = {"logprobs"}, [{"Yes": 1.0}]  # only what was said, and no alternatives
    reasoner = load(server)
    asyncio.run(reasoner.prepare())
    assert (reasoner.describe()["json"], reasoner.describe()["probability"]) == ("json_object", "vote")


def test_whoever_gives_up_leaves_the_probe_to_the_others(server: ChatServer) -> None:
    reasoner = load(server)

    async def together() -> list[Any]:
        tasks = [asyncio.create_task(reasoner.prepare()) for _ in range(2)]
        while not server.bodies:
            await asyncio.sleep(0.001)
        tasks[0].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    gone, done = asyncio.run(together())
    assert isinstance(gone, asyncio.CancelledError) and done is None and reasoner.describe()["json"] == "prompt"


def test_the_probe_runs_once_and_is_shared(server: ChatServer) -> None:
    reasoner = load(server)

    async def together() -> None:
        await asyncio.gather(*(reasoner.prepare() for _ in range(5)), reasoner.chat([ChatRequest((), "x")]))

    asyncio.run(together())
    assert len(server.bodies) == 5 and len(server.decisions) == 1  # a picture, two formats, logprobs; and the request
    asyncio.run(together())
    assert len(server.bodies) == 6


def test_one_failure_of_the_first_question_may_be_chance(server: ChatServer) -> None:
    server.faults.extend([None, "html"])  # the list of models, then the first chat
    reasoner = load(server)
    asyncio.run(reasoner.prepare())
    assert not server.faults and reasoner.describe()["json"] == "prompt"


def test_a_probe_that_failed_is_tried_again(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PATIENCE", 1)  # one failure counts
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = OpenAIChatReasoner(f"http://127.0.0.1:{taken.getsockname()[1]}", model="m", timeout=5)
        assert error_of(nobody, ChatRequest((), "x")).kind == "unreachable"
    reasoner = load(server)
    for faults, kind in ((["429"], "busy"), (["500"], "failed"), ([None, "429"], "busy"), (["html"], "garbage")):
        server.faults.extend(faults)
        with pytest.raises(EndpointError) as caught:
            asyncio.run(reasoner.prepare())
        assert caught.value.kind == kind
    server.faults.extend(["429", None, "500", "500"])  # the last two over json_schema: it has none

    async def twice() -> None:
        with pytest.raises(EndpointError):
            await reasoner.prepare()
        await reasoner.prepare()

    asyncio.run(twice())
    assert reasoner.describe()["json"] == "prompt"


@pytest.mark.parametrize(("rejects", "sent"), [
    (set(), {"max_tokens", "temperature", "seed"}), ({"seed"}, {"max_tokens", "temperature"}),
    ({"max_tokens"}, {"max_completion_tokens", "temperature", "seed"}),
    ({"max_tokens", "temperature"}, {"max_completion_tokens"}),
])  # fmt: skip
def test_parameters_that_a_server_refuses_are_left_out(server: ChatServer, rejects: set[str], sent: set[str]) -> None:
    server.rejects = rejects
    one(ready(server), ChatRequest((), "x"))
    assert set(server.bodies[0]) == {"model", "messages", *sent}


def test_a_server_that_reads_no_pictures_is_found_out(server: ChatServer) -> None:
    server.faults.extend(["400"] * 4)
    error = error_of(load(server), ChatRequest((), "x"))
    assert error.kind == "rejected" and "too long" in str(error) and "\n" not in str(error)
