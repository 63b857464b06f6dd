"""The engine: carries out what the strategies decide, for many tasks at once, and writes every step down.

Each task is a coroutine that folds its trace, asks the strategy for the next action of each chain, carries these out
together and appends the events in chain order: nothing depends on an event before it is stored, and the same seeds
give the same trace whatever else runs. Requests of all tasks meet in batchers, one per model, so that models see large
batches and the editor and the reasoner work at the same time. Resuming is nothing special: the stored trace is folded
and the strategy goes on from there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from PIL import Image

from premeditate.editors.base import Editor, EditRequest, EditResult
from premeditate.engine import strategies
from premeditate.engine.batching import Batcher
from premeditate.engine.memory import Store
from premeditate.engine.select import select
from premeditate.engine.strategies import Settings
from premeditate.prompts import get
from premeditate.reasoners.base import ChatRequest, Completion, Reasoner
from premeditate.rewards.base import Sample, Verifier
from premeditate.trace import (
    ChainStopped,
    Checklist,
    ChecklistWritten,
    Critique,
    Edit,
    Event,
    Finished,
    Plan,
    PlanWritten,
    RoundCritiqued,
    RoundEdited,
    RoundJudged,
    Started,
    Task,
    Trace,
    Verdict,
)

OnEvent = Callable[[Trace, Event], None]
"""Called in the engine's thread after an event was stored, with the trace that it led to."""


@dataclass(frozen=True)
class Limits:
    """`edits`, `chats`, `samples`: largest batch for the editor, the reasoner, the verifier; a model's own `max_batch`,
    where it has one, if that is less (what is finished is stored at once). `tasks`: in flight."""

    edits: int = 64
    chats: int = 64
    samples: int = 64
    tasks: int = 256

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"limits: {name} is {value}; give at least 1")


class EditFailed(RuntimeError):
    """The editor returned no image."""


def derive(seed: int, *parts: object) -> int:
    """A seed in 0..2^31-1 that depends on every part and on nothing else."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


def trace_name(task: Task, settings: dict[str, Any]) -> str:
    """The trace id of a task under settings: the same again finds its trace, anything else gets another."""
    what = json.dumps([task.model_dump(), settings], sort_keys=True, default=str)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", task.id).strip("-._")[:100] or "task"
    return f"{stem}-{hashlib.sha256(what.encode()).hexdigest()[:10]}"


class Engine:
    """Runs tasks. `verifier` None: rounds are ranked by the critic and none is ever verified.

    One engine belongs to one event loop at a time; `run` may be called again when it has returned.
    """

    def __init__(
        self,
        editor: Editor,
        reasoner: Reasoner,
        verifier: Verifier | None,
        store: Store,
        settings: Settings | None = None,
        *,
        limits: Limits | None = None,
        on_event: OnEvent | None = None,
        versions: dict[str, str] | None = None,
    ) -> None:
        self.editor, self.reasoner, self.verifier, self.store = editor, reasoner, verifier, store
        self.settings = replace(settings or Settings(), judged=verifier is not None)
        self.limits, self.on_event, self.versions = limits or Limits(), on_event, dict(versions or {})
        self.prompts = get(reasoner.prompts)
        self.record = {**asdict(self.settings), "editor": editor.name, "reasoner": reasoner.name,
                       "verifier": verifier.name if verifier else None, "prompts": self.prompts.name}  # fmt: skip

    async def run(self, tasks: Iterable[Task]) -> list[Trace]:
        """One finished trace per task, in order. A task that fails ends with `trace.error`; the others go on.

        A trace that the store already holds is continued; one that is finished is returned as it is, unless it ended
        with an error: then the task is tried again in a new trace. Raises what the store raises, and ValueError for
        tasks that share an id. When cancelled, everything that was done so far is in the store.
        """
        tasks = list(tasks)
        if len({task.id for task in tasks}) != len(tasks):
            raise ValueError("two tasks have the same id; give each its own")
        chats: Batcher[ChatRequest, Completion] = Batcher(
            self.reasoner.chat,
            _size(self.limits.chats, self.reasoner),
            lambda r: (r.labels, r.max_tokens, r.temperature, len(r.images)),
        )
        edits: Batcher[EditRequest, EditResult] = Batcher(
            self.editor.edit, _size(self.limits.edits, self.editor), lambda r: tuple(image.size for image in r.images)
        )
        samples: Batcher[Sample, Verdict] | None = None
        if self.verifier is not None:
            samples = Batcher(self.verifier.verify, _size(self.limits.samples, self.verifier))
        known = set(self.store.traces())
        gate = asyncio.Semaphore(self.limits.tasks)

        async def one(task: Task) -> Trace:
            async with gate:
                return await _TaskRun(self, task, chats, edits, samples).run(known)

        running = [asyncio.create_task(one(task)) for task in tasks]
        try:
            return list(await asyncio.gather(*running))
        finally:
            for job in running:
                job.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            for batcher in (chats, edits, samples):
                if batcher is not None:
                    await batcher.close()


class _TaskRun:
    """One task on its way through the engine."""

    def __init__(
        self,
        engine: Engine,
        task: Task,
        chats: Batcher[ChatRequest, Completion],
        edits: Batcher[EditRequest, EditResult],
        samples: Batcher[Sample, Verdict] | None,
    ) -> None:
        self.engine, self.task = engine, task
        self.chats, self.edits, self.samples = chats, edits, samples
        self.settings, self.prompts, self.store = engine.settings, engine.prompts, engine.store
        self.sources: tuple[Image.Image, ...] = ()
        self.trace: Trace

    async def run(self, known: set[str]) -> Trace:
        start = time.perf_counter()
        self._open(known)
        if self.trace.finished:
            return self.trace
        error = None
        try:
            self.sources = tuple(self.store.get_image(ref) for ref in self.task.images)
            while await self._step():
                pass
        except OSError:
            raise  # the store cannot be written: no task can go on
        except Exception as failure:
            error = _words(failure)
        chosen = select(self.trace)
        if chosen is None and error is None:
            error = next((c.error for c in self.trace.chains if c.error), "no edit was made")
        self._append(Finished(selection=chosen, error=error, seconds=time.perf_counter() - start,
                              calls=count_calls(self.trace, self.engine.verifier)))  # fmt: skip
        return self.trace

    def _open(self, known: set[str]) -> None:
        """Continues the stored trace, or starts one. A trace that ended with an error is left as it is."""
        name = base = trace_name(self.task, self.engine.record)
        attempt = 1
        while name in known:
            self.trace = self.store.trace(name)
            if not (self.trace.finished and self.trace.error):
                return
            attempt += 1
            name = f"{base}-{attempt}"
        known.add(name)
        event = Started(trace_id=name, task=self.task, settings=self.engine.record, versions=self.engine.versions,
                        chains=self.settings.chains, time=datetime.now(UTC).isoformat(timespec="seconds"))  # fmt: skip
        self.trace = Trace.start(event)
        self.store.append(name, event)
        self._tell(event)

    def _append(self, event: Event) -> None:
        trace = self.trace.apply(event)
        self.store.append(self.trace.id, event)
        self.trace = trace
        self._tell(event)

    def _tell(self, event: Event) -> None:
        if self.engine.on_event is not None:
            self.engine.on_event(self.trace, event)

    async def _step(self) -> bool:
        """Carries out the next action of every chain; False when all have stopped."""
        verifier = self.engine.verifier
        needs_list = verifier is not None and self.trace.checklist is None and verifier.wants_checklist(self.task)
        actions: list[tuple[int, strategies.Action]] = []
        for chain in range(len(self.trace.chains)):
            action = strategies.next_action(self.trace, chain, self.settings)
            # The checklist is written before the first edit, together with the plans.
            if action is not None and (not needs_list or isinstance(action, strategies.WritePlan)):
                actions.append((chain, action))
        jobs = [self._act(chain, action) for chain, action in actions]
        if needs_list:
            jobs.insert(0, self._checklist())
        if not jobs:
            return False
        for event in await _all(jobs):
            self._append(event)
        return True

    async def _act(self, chain: int, action: strategies.Action) -> Event:
        match action:
            case strategies.WritePlan():
                return await self._plan(chain)
            case strategies.MakeEdits():
                return await self._edit(chain, action)
            case strategies.Judge():
                return await self._judge(chain, action.round)
            case strategies.Critique():
                return await self._critique(chain, action.round)
            case strategies.Stop():
                return ChainStopped(chain=chain, reason=action.reason)

    async def _ask(
        self, images: Sequence[Image.Image], text: str, chain: int, *what: str | int, sampled: bool = False
    ) -> Completion:
        """Greedy in chain 0 unless `sampled`, sampled in the others. A reasoner that raises could not be asked."""
        request = ChatRequest(
            images=tuple(images), text=text, max_tokens=self.prompts.max_tokens,
            temperature=self.settings.temperature if sampled or chain > 0 else 0.0, seed=self._seed(chain, *what),
        )  # fmt: skip
        try:
            # Answers of one skill are of like length, so that no row of a batch waits for a much longer one.
            return await self.chats.submit(request, what[0])
        except Exception as error:
            return Completion(error=_words(error))

    def _seed(self, *parts: object) -> int:
        return derive(self.settings.seed, self.task.id, *parts)

    async def _checklist(self) -> Event:
        author = self.engine.reasoner.name
        done = await self._ask(self.sources, self.prompts.checklist(self.task.instruction), 0, "checklist")
        record = Checklist(status="unavailable", raw=f"error: {done.error}")
        if done.error is None:
            record = self.prompts.parse_checklist(done.text)
        return ChecklistWritten(checklist=record.model_copy(update={"author": author, "seconds": done.seconds}))

    async def _plan(self, chain: int) -> Event:
        done = await self._ask(self.sources, self.prompts.plan(self.task.instruction), chain, "plan")
        record = Plan(status="unavailable", raw=f"error: {done.error}")
        if done.error is None:
            record = self.prompts.parse_plan(done.text)
        update = {"author": self.engine.reasoner.name, "seconds": done.seconds}
        return PlanWritten(chain=chain, plan=record.model_copy(update=update))

    async def _edit(self, chain: int, action: strategies.MakeEdits) -> Event:
        rounds = self.trace.chains[chain].rounds
        source = self.task.images[0] if action.base == "original" or not rounds else rounds[-1].image
        image = self.sources[0] if source == self.task.images[0] else self.store.get_image(source)
        edits: list[Edit] = []
        for index, prompt in enumerate(action.prompts):
            seed = self._seed(chain, len(rounds), index)
            request = EditRequest(images=(image, *self.sources[1:]), prompt=prompt, seed=seed)
            try:
                done = await self.edits.submit(request)
                if done.image is None:
                    raise EditFailed(done.error or "the editor returned no image")
                if done.image.size != image.size:
                    raise EditFailed(f"the editor returned {done.image.size} pixels for a source of {image.size}")
            except Exception as error:
                return ChainStopped(chain=chain, reason="the editor failed",
                                    error=f"{self.engine.editor.name}: {_words(error)}")  # fmt: skip
            image, ref = done.image, self.store.put_image(done.image)
            edits.append(Edit(prompt=prompt, base=action.base if index == 0 else "last", source=source, image=ref,
                              seed=seed, editor=self.engine.editor.name, seconds=done.seconds))  # fmt: skip
            source = ref
        return RoundEdited(chain=chain, edits=tuple(edits))

    async def _judge(self, chain: int, index: int) -> Event:
        assert self.samples is not None and self.engine.verifier is not None
        edit = self.store.get_image(self.trace.chains[chain].rounds[index].image)
        try:
            verdict = await self.samples.submit(Sample(self.task, self.sources[0], edit, self.trace.checklist))
        except Exception as error:
            verdict = Verdict(status="unavailable", verifier=self.engine.verifier.name, reason=_words(error))
        return RoundJudged(chain=chain, round=index, verdict=verdict)

    async def _critique(self, chain: int, index: int) -> Event:
        past = self.trace.chains[chain].rounds[index]
        text = self.prompts.critique(self.task.instruction, [edit.prompt for edit in past.edits])
        images = (self.sources[0], self.store.get_image(past.image))
        # A critic whose first word did not help is asked for another one, not for the same again.
        done = await self._ask(images, text, chain, "critique", index, sampled=index > 0)
        record = Critique(status="unavailable", raw=f"error: {done.error}")
        if done.error is None:
            record = self.prompts.parse_critique(done.text)
        update = {"author": self.engine.reasoner.name, "seconds": done.seconds}
        return RoundCritiqued(chain=chain, round=index, critique=record.model_copy(update=update))


def _size(limit: int, model: object) -> int:
    """The batch that is sent to a model: no more than it takes in one go."""
    most = getattr(model, "max_batch", None)
    return min(limit, most) if isinstance(most, int) and most > 0 else limit


async def _all(jobs: Sequence[Any]) -> list[Event]:
    """Events in the jobs' order. Where one raises, the others are stopped first."""
    if len(jobs) == 1:
        return [await jobs[0]]
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(job) for job in jobs]
    return [job.result() for job in running]


def count_calls(trace: Trace, verifier: Verifier | None) -> dict[str, int]:
    """Calls of the models that the trace took: edit, plan, checklist, answer, critique."""
    calls: Counter[str] = Counter(checklist=int(trace.checklist is not None))
    for chain in trace.chains:
        calls["plan"] += chain.plan is not None
        for past in chain.rounds:
            calls["edit"] += len(past.edits)
            calls["critique"] += past.critique is not None
            if past.verdict is not None and verifier is not None and verifier.uses_reasoner:
                calls["answer"] += len(past.verdict.answers)
    return {name: int(n) for name, n in sorted(calls.items()) if n}


def _words(error: BaseException) -> str:
    """An error on one line."""
    if isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, ValueError | EditFailed) and text else f"{type(error).__name__}: {text}"
