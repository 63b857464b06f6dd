"""Runs of many tasks: streams, budgets, resuming, and chains that do not wait for each other."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from premeditate.editors.callable import CallableEditor
from premeditate.engine.budget import Budget
from premeditate.engine.memory import MemoryStore
from premeditate.engine.runner import Limits
from premeditate.engine.walk import lasting
from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.reasoners.callable import CallableReasoner
from premeditate.store import RunStore
from premeditate.trace import Task, Trace
from support.painters import engine, painted, tasks, told


def canonical(trace: Trace) -> str:
    """Everything but clocks, as text."""
    return json.dumps(lasting(trace), sort_keys=True)


# -- streams ------------------------------------------------------------------------------------------------------


def test_tasks_are_drawn_when_there_is_room_and_traces_come_as_they_end() -> None:
    store, drawn = MemoryStore(), []

    def source() -> Iterator[Task]:
        for task in tasks(store, 200):
            drawn.append(task.id)
            yield task

    async def main() -> int:
        most = seen = 0
        async for trace in engine(store, limits=Limits(tasks=8)).stream(source()):
            assert trace.finished
            seen += 1
            most = max(most, len(drawn) - seen)
        assert seen == 200
        return most

    assert asyncio.run(main()) <= 16


def test_leaving_a_stream_early_stops_the_work() -> None:
    store = MemoryStore()

    async def main() -> None:
        stream = engine(store, limits=Limits(tasks=4)).stream(tasks(store, 100))
        async for _ in stream:
            break
        await stream.aclose()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert len(store.traces()) < 20


def test_a_task_whose_picture_could_not_be_read_fails_and_the_others_go_on() -> None:
    store = MemoryStore()
    bad = Task(id="bad", images=(), instruction="x", meta={"problem": "there is no file a.png; check the name"})
    good, broken, none = asyncio.run(
        engine(store).run([*tasks(store, 1), bad, Task(id="none", images=(), instruction="x")])
    )
    assert good.status == "unverified" and broken.status == none.status == "failed"
    assert broken.error == "there is no file a.png; check the name" and "no image" in (none.error or "")


# -- budgets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chains", [1, 3])
def test_a_budget_of_edits_is_kept_to_and_a_second_run_goes_on(chains: int, tmp_path: Path) -> None:
    made: list[str] = []

    async def counted(image: Image.Image, prompt: str, seed: int) -> Image.Image:
        made.append(prompt)
        return painted(prompt, seed)

    with RunStore(tmp_path / "whole", sync=False) as store:
        expected = sorted(map(canonical, asyncio.run(engine(store, chains=chains).run(tasks(store, 6)))))
    with RunStore(tmp_path / "run", sync=False) as store:
        for _ in range(30):
            before = len(made)
            job = engine(store, CallableEditor(counted, name="paint"), chains=chains, budget=Budget(edits=5))
            traces = asyncio.run(job.run(tasks(store, 6)))
            if all(t.finished for t in traces) and len(traces) == 6:
                break
            assert len(made) - before == 5 and all(t.status in ("unfinished", "unverified") for t in traces)
    assert len(made) == 6 * 3 * chains  # nothing was made twice
    assert sorted(map(canonical, traces)) == expected


def test_the_last_edit_of_a_budget_is_still_looked_at() -> None:
    store = MemoryStore()
    (trace,) = asyncio.run(engine(store, judged=True, budget=Budget(edits=1)).run(tasks(store, 1)))
    (past,) = trace.chains[0].rounds
    assert trace.status == "unfinished" and past.verdict is not None and past.critique is not None
    (trace,) = asyncio.run(engine(store, judged=True, strategy="plan", budget=Budget(edits=1)).run(tasks(store, 1)))
    assert trace.status == "unverified"


def test_budgets_of_tokens_and_seconds_leave_traces_open() -> None:
    store = MemoryStore()
    few = asyncio.run(engine(store, budget=Budget(tokens=25)).run(tasks(store, 2)))
    assert [t.status for t in few] == ["unfinished"] * 2
    assert sum(c.plan.tokens for t in few for c in t.chains if c.plan) <= 25 + 10

    async def slow(image: Image.Image, prompt: str, seed: int) -> Image.Image:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            stopped.append(prompt)
            raise
        return image

    stopped: list[str] = []
    store = MemoryStore()
    late = asyncio.run(engine(store, CallableEditor(slow), budget=Budget(seconds=0.3)).run(tasks(store, 1)))
    assert [t.status for t in late] == ["unfinished"] and stopped


def test_a_round_of_several_edits_is_begun_only_where_it_fits() -> None:
    """What is not a whole round is not recorded, so its edits would be made again in the next run, and the next."""
    made: list[str] = []

    async def counted(image: Image.Image, prompt: str, seed: int) -> Image.Image:
        made.append(prompt)
        return painted(prompt, seed)

    async def three(request: ChatRequest) -> Completion:
        return Completion(json.dumps({"explanation": "", "steps": ["a", "b", "c"]}))

    store = MemoryStore()
    for budget, so_far, words in ((2, 0, "3 edits, more than"), (4, 3, "3 edits, more than"), (6, 9, "6 edits is")):
        job = engine(store, CallableEditor(counted), CallableReasoner(three), strategy="plan", stepwise=True,
                     budget=Budget(edits=budget), limits=Limits(tasks=1))  # fmt: skip
        asyncio.run(job.run(tasks(store, 4)))
        assert len(made) == so_far and words in (job.meter.spent() or "")


@pytest.mark.parametrize("options", [{"edits": 0}, {"tokens": -1}, {"seconds": 0}])
def test_a_budget_says_what_is_allowed(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give more than 0"):
        Budget(**options)  # type: ignore[arg-type]


def test_tokens_are_counted_in_the_trace() -> None:
    store = MemoryStore()
    (trace,) = asyncio.run(engine(store, judged=True, max_rounds=2).run(tasks(store, 1)))
    # plan, checklist, one critique; one answer for each of two rounds
    assert trace.calls["tokens"] == 10 + 10 + 10 + 2 * 5


# -- chains -------------------------------------------------------------------------------------------------------


def test_one_chain_is_criticised_while_another_is_still_edited() -> None:
    store, log = MemoryStore(), []
    first = itertools.count()

    async def edit(image: Image.Image, prompt: str, seed: int) -> Image.Image:
        n = next(first)
        await asyncio.sleep(0.01 if n == 0 else 0.6)
        log.append(f"edit {n}")
        return painted(prompt, seed)

    async def chat(request: ChatRequest) -> Completion:
        if "Last prompt" in request.text:
            log.append("critique")
        return told(request)

    asyncio.run(
        engine(store, CallableEditor(edit), CallableReasoner(chat), judged=True, chains=2, max_rounds=2).run(
            tasks(store, 1)
        )
    )
    assert log.index("critique") < log.index("edit 1")


def test_what_a_trace_holds_does_not_depend_on_who_was_faster() -> None:
    def once(speed: Callable[[], float], content: float) -> str:
        store = MemoryStore()

        async def edit(image: Image.Image, prompt: str, seed: int) -> Image.Image:
            await asyncio.sleep(speed())
            return painted(prompt, seed)

        async def chat(request: ChatRequest) -> Completion:
            await asyncio.sleep(speed())
            if request.labels:  # whether a round passes follows from its picture
                r, g, b = request.images[1].getpixel((0, 0))  # type: ignore[misc]
                yes = 0.9 if (r + g + b) % 100 < content else 0.1
                return Completion(probabilities={"yes": yes, "no": 1 - yes})
            return told(request)

        editor, reasoner = CallableEditor(edit, name="e"), CallableReasoner(chat, name="r")
        job = engine(store, editor, reasoner, judged=True, chains=3, max_rounds=4)
        return "\n".join(map(canonical, asyncio.run(job.run(tasks(store, 8)))))

    rng = random.Random(0)
    for content in (0, 15, 40):
        assert once(lambda: 0.0, content) == once(lambda: 0.01 * rng.random(), content)


def test_history_and_the_experts_decision_reach_the_critic() -> None:
    asked: list[ChatRequest] = []

    async def chat(request: ChatRequest) -> Completion:
        asked.append(request)
        return told(request)

    store = MemoryStore()
    asyncio.run(engine(store, None, CallableReasoner(chat), history=True).run(tasks(store, 1)))
    critiques = [r.text for r in asked if "Last prompt" in r.text]
    assert "too pale" not in critiques[0] and "too pale" in critiques[1]

    async def decide(request: ChatRequest) -> Completion:
        if "Last prompt" not in request.text:
            return told(request)
        assert request.schema is not None and "semantic" not in request.schema["properties"]
        return Completion(json.dumps({"problem": "", "satisfied": True, "base": "original", "steps": ["paint"]}))

    store = MemoryStore()
    (trace,) = asyncio.run(
        engine(store, None, CallableReasoner(decide), strategy="expert", judged=True).run(tasks(store, 1))
    )
    assert trace.chains[0].stopped == "the critic is satisfied" and not trace.verified
    assert trace.chains[0].rounds[0].critique is not None and trace.chains[0].rounds[0].critique.semantic is None
