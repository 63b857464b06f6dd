"""The engine on rule-made models: loops, batches, resume, failures, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from micro_fakes import Oracle, RuleEditor, strip, to_task
from premeditate.editors.base import EditRequest, EditResult
from premeditate.editors.callable import CallableEditor
from premeditate.engine.memory import MemoryStore
from premeditate.engine.runner import Engine, Limits
from premeditate.engine.strategies import Settings
from premeditate.engine.walk import derive
from premeditate.errors import WriteError
from premeditate.microworld.checker import decode, is_exact
from premeditate.microworld.tasks import MicroTask, sample_task, sample_tasks
from premeditate.microworld.verifier import ExactVerifier
from premeditate.reasoners.base import ChatRequest
from premeditate.rewards.checklist import ChecklistVerifier
from premeditate.store import RunStore
from premeditate.trace import ImageRef, Task, Trace

TASKS = list(sample_tasks(60, seed=3))
BY_ID = {task.id: task for task in TASKS}


def go(editor: Any = None, reasoner: Any = None, verifier: Any = "reasoner", *, tasks: Sequence[MicroTask] = TASKS,
       store: Any = None, limits: Limits | None = None, on_event: Any = None, blind: bool = True,
       **settings: Any) -> tuple[list[Trace], Any]:  # fmt: skip
    store = store or MemoryStore()
    reasoner = reasoner or Oracle(tasks)
    judge = ChecklistVerifier(reasoner) if verifier == "reasoner" else verifier
    engine = Engine(
        editor or RuleEditor(), reasoner, judge, store, Settings(**settings), limits=limits, on_event=on_event
    )
    # The loop works without what only the exact checker may know.
    made = [strip(to_task(t, store)) if blind else to_task(t, store) for t in tasks]
    return asyncio.run(engine.run(made)), store


def right(trace: Trace, store: Any) -> bool:
    assert trace.chosen is not None
    return is_exact(BY_ID[trace.task.id].target, decode(store.get_image(trace.chosen.image)))


def share(traces: list[Trace], store: Any) -> float:
    return sum(right(t, store) for t in traces) / len(traces)


@pytest.mark.parametrize("strategy", ["plan", "reflect", "think-while-edit"])
@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize("words", [False, True])
def test_perfect_parts_are_always_right_and_verified(strategy: str, stepwise: bool, words: bool) -> None:
    traces, store = go(reasoner=Oracle(TASKS, words=words), strategy=strategy, stepwise=stepwise)
    assert share(traces, store) == 1.0
    assert all(t.verified and t.finished and not t.error and len(t.chains[0].rounds) == 1 for t in traces)
    for t in traces:
        edits = t.chains[0].rounds[0].edits
        assert len(edits) == (len(BY_ID[t.task.id].plan) if stepwise else 1)
        assert [e.base for e in edits] == ["original", *["last"] * (len(edits) - 1)]
        assert all(a.image == b.source for a, b in pairwise(edits))


def test_thinking_looking_and_choosing_help_in_that_order() -> None:
    def measure(**settings: Any) -> float:
        return share(*go(RuleEditor(slip=0.5), Oracle(TASKS, wrong_plans=0.3), **settings))

    direct, plan = measure(strategy="direct"), measure(strategy="plan")
    reflect, think = measure(strategy="reflect"), measure(strategy="think-while-edit")
    many = measure(strategy="think-while-edit", chains=4)
    assert direct < plan < reflect < think <= many
    assert many == 1.0


def test_verified_is_the_verifiers_word() -> None:
    traces, store = go(RuleEditor(slip=0.5), strategy="think-while-edit")
    assert all(t.verified == right(t, store) for t in traces)
    assert any(len(t.chains[0].rounds) > 1 for t in traces)


def test_every_round_has_a_verdict_and_one_checklist_serves_all() -> None:
    oracle = Oracle(TASKS)
    traces, _ = go(RuleEditor(slip=0.7), oracle, strategy="think-while-edit", chains=3)
    for t in traces:
        assert t.checklist is not None and t.checklist.status == "scored" and t.checklist.author == "oracle"
        for chain in t.chains:
            assert all(r.verdict is not None for r in chain.rounds)
            assert [a.item for a in chain.rounds[0].verdict.answers] == list(t.checklist.items)  # type: ignore[union-attr]
    assert oracle.skills().count("checklist") == len(TASKS)


def test_chains_are_sampled_and_have_their_own_seeds() -> None:
    oracle, editor = Oracle(TASKS), RuleEditor(slip=0.9)
    traces, _ = go(editor, oracle, strategy="think-while-edit", chains=3, max_rounds=2)
    plans = [r for r in oracle.asked if r.text.startswith("plan")]
    assert sorted({r.temperature for r in plans}) == [0.0, 0.8]
    assert sum(r.temperature == 0 for r in plans) == len(TASKS)
    seeds = [e.seed for t in traces for c in t.chains for r in c.rounds for e in r.edits]
    assert len(set(seeds)) == len(seeds)
    assert all(len(t.chains) == 3 for t in traces)
    assert derive(1, "a", 2) == derive(1, "a", 2) != derive(2, "a", 2) and 0 <= derive(1, "a") < 2**31


def test_a_verified_chain_spares_the_others_further_rounds() -> None:
    traces, _ = go(RuleEditor(slip=0.5), strategy="think-while-edit", chains=4)
    for t in traces:
        first = [c.rounds[0].verdict.passed for c in t.chains]  # type: ignore[union-attr]
        if any(first):
            assert all(len(c.rounds) == 1 for c in t.chains)


def test_the_same_seed_gives_the_same_trace_whatever_the_batches() -> None:
    def pictures(limits: Limits | None) -> list[list[ImageRef]]:
        traces, _ = go(RuleEditor(slip=0.5), strategy="think-while-edit", chains=2, limits=limits)
        return [[r.image for c in t.chains for r in c.rounds] for t in traces]

    assert pictures(None) == pictures(Limits(edits=1, chats=1, samples=1, tasks=1)) == pictures(Limits(3, 5, 7, 11))


def test_requests_of_many_tasks_are_batched() -> None:
    editor, oracle = RuleEditor(), Oracle(TASKS)
    go(editor, oracle, ExactVerifier(), blind=False, strategy="plan", limits=Limits(edits=16, chats=20))
    assert editor.batches == [16, 16, 16, 12] and oracle.batches == [20, 20, 20]


class Dies:
    """Passes calls on until `after` of them, then raises what a Ctrl-C becomes."""

    def __init__(self, inner: Any, after: int, method: str) -> None:
        self.inner, self.left, self.method = inner, after, method
        self.name, self.prompts = inner.name, getattr(inner, "prompts", "")

    async def chat(self, requests: Sequence[ChatRequest]) -> Any:
        return await self._pass("chat", requests)

    async def edit(self, requests: Sequence[EditRequest]) -> Any:
        return await self._pass("edit", requests)

    async def _pass(self, method: str, requests: Any) -> Any:
        if self.method == method:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return await getattr(self.inner, method)(requests)


@pytest.mark.parametrize("after", [0, 1, 3, 6, 10, 15])
@pytest.mark.parametrize("method", ["chat", "edit"])
def test_a_killed_run_is_continued_and_nothing_is_done_twice(tmp_path: Path, after: int, method: str) -> None:
    tasks = TASKS[:6]
    settings: dict[str, Any] = {"strategy": "think-while-edit", "chains": 2, "limits": Limits(4, 4, 4), "tasks": tasks}
    whole, kept = go(RuleEditor(0.6), Oracle(tasks), **settings)
    editor, oracle = RuleEditor(0.6), Oracle(tasks)
    with RunStore(tmp_path / "run", sync=False) as store:
        with suppress(KeyboardInterrupt):
            go(Dies(editor, after, method), Dies(oracle, after, method), store=store, **settings)
    with RunStore.open(tmp_path / "run") as store:
        before = sum(len(r.edits) for t in store for c in t.chains for r in c.rounds)
        again = RuleEditor(0.6)
        traces, _ = go(again, Oracle(tasks), store=store, **settings)
        assert len(store.traces()) == len(tasks)
        total = sum(len(r.edits) for t in traces for c in t.chains for r in c.rounds)
        assert len(again.requests) == total - before
        for one, other in zip(traces, whole, strict=True):
            assert one.selection == other.selection and one.calls == other.calls
            assert store.get_image(one.chosen.image).tobytes() == kept.get_image(other.chosen.image).tobytes()  # type: ignore[union-attr]
            assert store.trace(one.id) == one
        third = RuleEditor(0.6)
        assert go(third, Oracle(tasks), store=store, **settings)[0] == traces and third.requests == []


def test_cancelling_stops_at_once_and_leaves_a_store_that_opens(tmp_path: Path) -> None:
    class Slow(RuleEditor):
        async def edit(self, requests: Sequence[EditRequest]) -> list[EditResult]:
            began.set()
            await asyncio.sleep(300)
            return await super().edit(requests)

    began = asyncio.Event()

    async def main() -> None:
        with RunStore(tmp_path / "run", sync=False) as store:
            oracle = Oracle(TASKS)
            engine = Engine(Slow(), oracle, ChecklistVerifier(oracle), store, Settings(strategy="plan"))
            job = asyncio.create_task(engine.run([strip(to_task(t, store)) for t in TASKS]))
            await began.wait()
            job.cancel()
            with pytest.raises(asyncio.CancelledError):
                await job
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    traces = list(RunStore.open(tmp_path / "run"))
    assert len(traces) == len(TASKS) and not any(t.finished for t in traces)
    assert sum(t.chains[0].plan is not None for t in traces) > 0


class Sick(RuleEditor):
    """Fails for prompts that mention a colour: politely, or by raising for the whole batch."""

    def __init__(self, word: str, *, raises: bool) -> None:
        super().__init__()
        self.word, self.raises = word, raises

    async def edit(self, requests: Sequence[EditRequest]) -> list[EditResult]:
        if self.raises and any(self.word in r.prompt for r in requests):
            raise RuntimeError("out of memory")
        done = await super().edit(requests)
        return [EditResult(None, error="out of memory") if self.word in r.prompt else d
                for r, d in zip(requests, done, strict=True)]  # fmt: skip


@pytest.mark.parametrize("raises", [False, True])
def test_a_task_that_fails_is_marked_and_the_others_go_on(raises: bool) -> None:
    store = MemoryStore()
    traces, _ = go(Sick("red", raises=raises), strategy="plan", store=store)
    for t in traces:
        bad = "red" in " ".join(BY_ID[t.task.id].plan)
        assert bad == (t.error is not None) == (t.chosen is None) and t.finished
        if bad:
            assert "out of memory" in str(t.error) and "out of memory" in str(t.chains[0].error)
    assert {t.error is None for t in traces} == {True, False}
    # What failed is tried again in a trace of its own; what is done stays done.
    editor = RuleEditor()
    editor.name = "rule editor"
    again, _ = go(editor, strategy="plan", store=store)
    assert all(t.error is None for t in again)
    assert [t.id for t in again] == [t.id if t.error is None else f"{t.id}-2" for t in traces]


def test_an_editor_that_changes_the_size_is_not_believed() -> None:
    class Small(RuleEditor):
        async def edit(self, requests: Sequence[EditRequest]) -> list[EditResult]:
            return [EditResult(Image.new("RGB", (8, 8))) for _ in requests]

    traces, _ = go(Small(), tasks=TASKS[:2], strategy="plan")
    assert all("returned (8, 8) pixels" in str(t.error) for t in traces)


@pytest.mark.parametrize("fault", ["nonsense", "errors"])
@pytest.mark.parametrize("skill", ["plan", "checklist", "answer", "critique"])
def test_a_reasoner_that_fails_is_never_taken_for_a_yes(fault: str, skill: str) -> None:
    oracle = Oracle(TASKS, **{fault: [skill]})  # type: ignore[arg-type]
    traces, store = go(RuleEditor(slip=0.6), oracle, strategy="think-while-edit", max_rounds=3)
    status = "unparsable" if fault == "nonsense" else "unavailable"
    for t in traces:
        rounds = t.chains[0].rounds
        assert t.error is None and t.chosen is not None
        if skill == "plan":
            assert t.chains[0].plan is not None and t.chains[0].plan.status == status
            assert rounds[0].prompt == t.task.instruction
        if skill in ("checklist", "answer"):
            assert not t.verified and all(r.verdict is not None and r.verdict.status == status for r in rounds)
            assert all(r.verdict is not None and not r.verdict.scores for r in rounds)
        if skill == "critique":
            assert t.verified or len(rounds) == 3
            assert all(r.critique is None or r.critique.satisfied is None for r in rounds)
    if skill in ("plan", "critique"):
        assert all(t.verified == right(t, store) for t in traces)


def test_events_are_stored_before_they_are_told() -> None:
    seen: list[tuple[str, str]] = []
    store = MemoryStore()

    def tell(trace: Trace, event: Any) -> None:
        assert store.trace(trace.id) == trace
        seen.append((trace.id, event.type))

    (trace,), _ = go(tasks=TASKS[:1], store=store, on_event=tell, strategy="plan")
    assert [kind for _, kind in seen] == ["started", "checklist", "plan", "edited", "judged", "stopped", "finished"]
    assert trace.calls == {"answer": len(trace.checklist.items), "checklist": 1, "edit": 1, "plan": 1}  # type: ignore[union-attr]
    assert trace.seconds > 0 and trace.settings["strategy"] == "plan" and trace.settings["editor"] == "rule editor"


def test_two_tasks_with_one_id_are_refused() -> None:
    with pytest.raises(ValueError, match="same id"):
        go(tasks=[TASKS[0], TASKS[0]])


def test_without_a_verifier_nothing_is_verified_and_the_critic_ranks() -> None:
    traces, store = go(RuleEditor(slip=0.6), verifier=None, strategy="think-while-edit")
    assert not any(t.verified for t in traces) and all(t.checklist is None for t in traces)
    assert share(traces, store) > 0.75  # 1 - 0.6^4 = 0.87


def test_memory_store_names_images_by_content() -> None:
    store = MemoryStore()
    one = store.put_image(Image.new("RGB", (4, 2), "red"))
    assert one == store.put_image(Image.new("RGB", (4, 2), "red")) != store.put_image(Image.new("RGB", (2, 4), "red"))
    store.get_image(one).putpixel((0, 0), (0, 0, 0))
    assert store.get_image(one).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(ValueError, match="not in this store"):
        store.get_image(ImageRef(sha256="f" * 64, width=1, height=1))
    with pytest.raises(ValueError, match="no trace"):
        store.trace("x")


def test_a_missing_picture_fails_its_task_only() -> None:
    store = MemoryStore()
    oracle = Oracle(TASKS)
    engine = Engine(RuleEditor(), oracle, None, store, Settings(strategy="plan"))
    lost = Task(id="lost", images=(ImageRef(sha256="f" * 64, width=64, height=64),), instruction="x")
    bad, good = asyncio.run(engine.run([lost, to_task(sample_task(3, "test"), store)]))
    assert "not in this store" in str(bad.error) and bad.finished
    assert good.finished and good.id != bad.id


def test_a_store_that_cannot_be_written_ends_the_run() -> None:
    class Full(MemoryStore):
        def append(self, trace_id: str, event: Any) -> None:
            if event.type in ("edited", "finished"):
                raise ValueError("the disk is full")
            super().append(trace_id, event)

    with pytest.raises(ValueError, match="the disk is full"):
        go(store=Full(), strategy="plan")


def test_a_store_that_takes_no_picture_ends_the_run_before_more_are_made() -> None:
    """A line of events may still fit where a picture does not."""

    class Full(MemoryStore):
        def put_image(self, image: Image.Image) -> ImageRef:
            if full:
                raise WriteError("the disk is full", "free some space")
            return super().put_image(image)

    store, made, full = Full(), list[str](), False

    def edit(image: Image.Image, prompt: str) -> Image.Image:
        nonlocal full
        full = True
        made.append(prompt)
        return image

    ref = store.put_image(Image.new("RGB", (8, 8), "white"))
    tasks = [Task(id=f"t{i}", images=(ref,), instruction="paint it") for i in range(20)]
    engine = Engine(CallableEditor(edit), Oracle(TASKS), None, store, Settings(strategy="direct"),
                    limits=Limits(edits=1, tasks=1))  # fmt: skip
    with pytest.raises(WriteError, match="the disk is full"):
        asyncio.run(engine.run(tasks))
    assert len(made) == 1


def test_a_model_gets_no_more_than_it_takes_in_one_go() -> None:
    editor, oracle = RuleEditor(), Oracle(TASKS)
    editor.max_batch, oracle.max_batch = 1, 8  # type: ignore[attr-defined]
    go(editor, oracle, strategy="plan", tasks=TASKS[:20])
    assert set(editor.batches) == {1}
    assert max(n for n, skill in zip(oracle.batches, oracle.skills(), strict=False) if skill != "answer") <= 8 * 5
