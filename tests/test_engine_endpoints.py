"""The engine over endpoints: they share the work, are named in the record, and their failures end what they must."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence

import pytest

from premeditate.editors.base import EditRequest, EditResult
from premeditate.engine.memory import MemoryStore
from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.remote import EndpointError, Health
from support.painters import engine, painted, tasks


class Far:
    """An editor behind an address, as the engine sees it. `fails(n)`: what its n-th call meets."""

    def __init__(self, host: str, fails: Callable[[int], EndpointError | None] = lambda n: None) -> None:
        self.name, self.host, self.fails, self.keys = "far", host, fails, list[str]()

    async def send(self, request: EditRequest, timeout: float | None = None) -> EditResult:
        self.keys.append(request.key)
        await asyncio.sleep(0.005)
        if (error := self.fails(len(self.keys) - 1)) is not None:
            raise error
        return EditResult(painted(request.prompt, request.seed), 0.005)

    async def edit(self, requests: Sequence[EditRequest]) -> list[EditResult]:
        return [await self.send(request) for request in requests]

    async def health(self) -> Health:
        return Health(capacity=2)

    async def aclose(self) -> None:
        pass

    def describe(self) -> dict[str, str]:
        return {"dialect": "test"}


def test_endpoints_of_one_editor_share_the_work_and_are_named_in_the_record() -> None:
    store = MemoryStore()
    one, two = Far("one:1"), Far("two:2", lambda n: EndpointError("failed", "boom", "mend") if n % 3 == 0 else None)
    job = engine(store, [one, two])
    traces = asyncio.run(job.run(tasks(store, 12)))
    assert all(t.status == "unverified" and len(t.chains[0].rounds) == 3 for t in traces)
    assert len(one.keys) > 5 and len(two.keys) > 2
    keys = one.keys + two.keys
    assert len(set(keys)) == 36 and all(keys)  # a retry keeps the key of its edit
    assert traces[0].versions["editor one:1 dialect"] == "test" and "one:1" not in json.dumps(traces[0].settings)


class Shy(Far):
    """Knows its model's name only when it was asked, which takes long where nobody answers."""

    def __init__(self, host: str, up: bool) -> None:
        super().__init__(host)
        self.name, self.up, self.asked = "images API", up, 0

    async def prepare(self) -> None:
        self.asked += 1
        if not self.up:
            await asyncio.sleep(30)
        self.name = "far"

    async def health(self) -> Health:
        if not self.up:
            raise EndpointError("unreachable", "nobody there", "start it")
        return Health(capacity=2)


def test_an_endpoint_that_is_down_neither_holds_up_a_run_nor_renames_it() -> None:
    """Traces are found by the model's name, which the first of the addresses may not be there to tell."""
    names = []
    for up in (True, False):
        store, ends = MemoryStore(), [Shy("one:1", up), Shy("two:2", True)]
        job = engine(store, ends)
        (trace,) = asyncio.run(asyncio.wait_for(job.run(tasks(store, 1)), 10))
        names.append((trace.id, trace.settings["editor"], job.record["editor"]))
        assert ends[0].asked == up and trace.status == "unverified"
        ends[0].name = "something else"  # it came back meanwhile
        assert job.record["editor"] == "far"
    assert names[0] == names[1] and names[0][1] == "far"


def test_a_run_that_cannot_begin_closes_what_it_opened() -> None:
    closed: list[str] = []

    class Watched(Far):
        async def aclose(self) -> None:
            closed.append(self.host)

    class Absent(Watched):
        prompts = "general"

        async def health(self) -> Health:
            raise EndpointError("unreachable", "nobody there", "start it")

        async def chat(self, requests: Sequence[ChatRequest]) -> list[Completion]:
            raise AssertionError

    store = MemoryStore()
    with pytest.raises(EndpointError, match="nobody there"):
        asyncio.run(engine(store, Watched("one:1"), Absent("two:2")).run(tasks(store, 1)))
    assert closed == ["one:1", "two:2"]


def test_an_edit_that_no_endpoint_makes_ends_its_chain_with_the_reason() -> None:
    store = MemoryStore()
    bad = Far("one:1", lambda n: EndpointError("rejected", "the prompt is too long", "shorten it"))
    (trace,) = asyncio.run(engine(store, bad).run(tasks(store, 1)))
    assert trace.status == "failed" and "the prompt is too long; shorten it" in (trace.error or "")
    assert len(bad.keys) == 1


def test_loads_name_every_endpoint_and_model() -> None:
    store, seen = MemoryStore(), []

    async def main() -> None:
        job = engine(store, [Far("one:1"), Far("two:2")])
        async for _ in job.stream(tasks(store, 20)):
            seen.append([(load.name, load.role) for load in job.loads()])

    asyncio.run(main())
    assert seen[0] == [("one:1", "editor"), ("two:2", "editor"), ("say", "reasoner")]
