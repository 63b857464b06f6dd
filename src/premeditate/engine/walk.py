"""One task on its way through the engine: its trace is folded, its chains do what the strategy says, every step is
stored before anything depends on it.

Chains go on side by side, so that one is criticised while another is edited. What a trace comes to hold depends on the
seeds and the models alone, not on which chain was faster or on what else runs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from PIL import Image

from premeditate.editors.base import Editor, EditRequest, EditResult
from premeditate.engine import strategies
from premeditate.engine.batching import Desk
from premeditate.engine.budget import BudgetSpent, Meter
from premeditate.engine.memory import Store
from premeditate.engine.select import select
from premeditate.engine.strategies import Settings
from premeditate.errors import WriteError, one_line
from premeditate.prompts.base import PromptSet
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
    ImageRef,
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
LARGE = 256 * 256
"""Pixels from which a picture is encoded and decoded on another thread, so that the event loop goes on."""
Value = TypeVar("Value")


class EditFailed(RuntimeError):
    """The editor returned no image."""


@dataclass(frozen=True)
class Desks:
    """Where requests are handed in, one desk per model."""

    editor: Desk[EditRequest, EditResult]
    reasoner: Desk[ChatRequest, Completion]
    verifier: Desk[Sample, Verdict] | None


class Run(Protocol):
    """What a walk needs to know of the engine that it belongs to."""

    editor: Editor
    reasoner: Reasoner
    verifier: Verifier | None
    store: Store
    settings: Settings
    prompts: PromptSet
    versions: dict[str, str]
    meter: Meter
    on_event: OnEvent | None

    @property
    def record(self) -> dict[str, Any]: ...


def derive(seed: int, *parts: object) -> int:
    """A seed in 0..2^31-1 that depends on every part and on nothing else."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


def trace_name(task: Task, settings: dict[str, Any]) -> str:
    """The trace id of a task under settings: the same again finds its trace, anything else gets another."""
    what = json.dumps([task.model_dump(), settings], sort_keys=True, default=str)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", task.id).strip("-._")[:100] or "task"
    return f"{stem}-{hashlib.sha256(what.encode()).hexdigest()[:10]}"


def tries(store: Store, task: Task, settings: dict[str, Any], known: Container[str]) -> tuple[Trace | None, str]:
    """The latest try of a task under settings, None where there was none, and the trace id that a further one gets.
    `known`: the ids of the traces that `store` holds."""
    name = base = trace_name(task, settings)
    attempt, latest = 1, None
    while name in known:
        attempt, latest = attempt + 1, name
        name = f"{base}-{attempt}"
    return None if latest is None else store.trace(latest), name


class Walk:
    """`await Walk(engine, task, desks).run(known)`; `known`: the ids of the traces that the store holds."""

    def __init__(self, engine: Run, task: Task, desks: Desks) -> None:
        self.engine, self.task, self.desks = engine, task, desks
        self.settings, self.prompts, self.store = engine.settings, engine.prompts, engine.store
        self.sources: tuple[Image.Image, ...] = ()
        self.trace: Trace
        self._moved = asyncio.Event()
        self._stopped_short = False
        self._recent: dict[str, Image.Image] = {}

    async def run(self, known: set[str]) -> Trace:
        """The trace, finished unless the budget was spent before."""
        start = time.perf_counter()
        self._open(known)
        if self.trace.finished:
            return self.trace
        error = None
        try:
            if not self.task.images:
                raise ValueError(str(self.task.meta.get("problem") or "the task has no image; give one"))
            async with asyncio.timeout(self.engine.meter.seconds_left):
                self.sources = tuple([await self._load(ref) for ref in self.task.images])
                await self._work()
        except TimeoutError:
            return self.trace
        except (OSError, WriteError):
            raise  # the store cannot be written: no task can go on
        except Exception as failure:
            error = words(failure)
        if self._stopped_short:
            return self.trace
        chosen = select(self.trace)
        if chosen is None and error is None:
            error = next((c.error for c in self.trace.chains if c.error), "no edit was made")
        self._append(Finished(selection=chosen, error=error, seconds=time.perf_counter() - start,
                              calls=count_calls(self.trace, self.engine.verifier)))  # fmt: skip
        return self.trace

    # -- the record ------------------------------------------------------------------------------------------------

    def _open(self, known: set[str]) -> None:
        """Continues the stored trace, or starts one. A trace that ended with an error is left as it is."""
        record = self.engine.record
        latest, name = tries(self.store, self.task, record, known)
        if latest is not None and not (latest.finished and latest.error):
            self.trace = latest
            return
        known.add(name)
        event = Started(trace_id=name, task=self.task, settings=record, versions=self.engine.versions,
                        chains=self.settings.chains, time=datetime.now(UTC).isoformat(timespec="seconds"))  # fmt: skip
        self.trace = Trace.start(event)
        self.store.append(name, event)
        self._tell(event)

    def _append(self, event: Event) -> None:
        trace = self.trace.apply(event)
        self.store.append(self.trace.id, event)
        self.trace = trace
        self._moved.set()
        self._moved = asyncio.Event()
        self._tell(event)

    def _tell(self, event: Event) -> None:
        if self.engine.on_event is not None:
            self.engine.on_event(self.trace, event)

    async def _load(self, ref: ImageRef) -> Image.Image:
        if ref.sha256 in self._recent:
            return self._recent[ref.sha256]
        return await _aside(ref.width * ref.height, lambda: self.store.get_image(ref))

    async def _keep(self, chain: int, image: Image.Image) -> ImageRef:
        ref = await _aside(image.width * image.height, lambda: self.store.put_image(image))
        # The picture is looked at next; what is older is read from the store if it is wanted again.
        held = {p.image.sha256 for i, c in enumerate(self.trace.chains) if i != chain for p in c.rounds[-1:]}
        self._recent = {sha: past for sha, past in self._recent.items() if sha in held} | {ref.sha256: image}
        return ref

    # -- what comes next -------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """All chains to their end, side by side, and the checklist beside them: it does not depend on any edit."""
        jobs = [self._chain(chain) for chain in range(len(self.trace.chains))]
        if self._lacks_checklist():
            jobs.insert(0, self._checklist())
        running = [asyncio.create_task(job) for job in jobs]
        try:
            await asyncio.gather(*running)
        finally:
            for job in running:
                job.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _lacks_checklist(self) -> bool:
        verifier = self.engine.verifier
        return verifier is not None and self.trace.checklist is None and verifier.wants_checklist(self.task)

    async def _chain(self, chain: int) -> None:
        try:
            while (action := strategies.next_action(self.trace, chain, self.settings)) is not None:
                judges = isinstance(action, strategies.Judge)
                if isinstance(action, strategies.Wait) or (judges and self._lacks_checklist()):
                    if self._stopped_short:
                        return
                    await self._moved.wait()
                else:
                    self._append(await self._act(chain, action))
        except BudgetSpent:
            self._stopped_short = True
            self._moved.set()

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
        raise AssertionError(f"{action} is no event")

    # -- what the models are asked ---------------------------------------------------------------------------------

    async def _ask(
        self, images: Sequence[Image.Image], text: str, chain: int, skill: str, *what: int, sampled: bool = False
    ) -> Completion:
        """Greedy in chain 0 unless `sampled`, sampled in the others. A reasoner that raises could not be asked."""
        self.engine.meter.begin_question()
        request = ChatRequest(
            images=tuple(images), text=text, max_tokens=self.prompts.max_tokens,
            temperature=self.settings.temperature if sampled or chain > 0 else 0.0,
            seed=self._seed(chain, skill, *what), schema=self.prompts.schemas.get(skill),
        )  # fmt: skip
        try:
            # Answers of one skill are of like length, so that no row of a batch waits for a much longer one.
            done = await self.desks.reasoner.submit(request, skill)
        except Exception as error:
            return Completion(error=words(error))
        self.engine.meter.tokens += done.tokens
        return done

    def _seed(self, *parts: object) -> int:
        return derive(self.settings.seed, self.task.id, *parts)

    async def _checklist(self) -> None:
        try:
            done = await self._ask(self.sources, self.prompts.checklist(self.task.instruction), 0, "checklist")
        except BudgetSpent:
            self._stopped_short = True
            self._moved.set()
            return
        record = Checklist(status="unavailable", raw=f"error: {done.error}")
        if done.error is None:
            record = self.prompts.parse_checklist(done.text)
        self._append(ChecklistWritten(checklist=record.model_copy(update=self._signed(done))))

    def _signed(self, done: Completion) -> dict[str, Any]:
        return {"author": self.engine.reasoner.name, "seconds": done.seconds, "tokens": done.tokens}

    async def _plan(self, chain: int) -> Event:
        done = await self._ask(self.sources, self.prompts.plan(self.task.instruction), chain, "plan")
        record = Plan(status="unavailable", raw=f"error: {done.error}")
        if done.error is None:
            record = self.prompts.parse_plan(done.text)
        return PlanWritten(chain=chain, plan=record.model_copy(update=self._signed(done)))

    async def _edit(self, chain: int, action: strategies.MakeEdits) -> Event:
        rounds = self.trace.chains[chain].rounds
        source = self.task.images[0] if action.base == "original" or not rounds else rounds[-1].image
        image = self.sources[0] if source == self.task.images[0] else await self._load(source)
        edits: list[Edit] = []
        self.engine.meter.begin_edits(len(action.prompts))
        for index, prompt in enumerate(action.prompts):
            place = (chain, len(rounds), index)
            request = EditRequest(images=(image, *self.sources[1:]), prompt=prompt, seed=self._seed(*place),
                                  key=edit_key(self.trace.id, *place))  # fmt: skip
            try:
                done = await self.desks.editor.submit(request)
                if done.image is None:
                    raise EditFailed(done.error or "the editor returned no image")
                if done.image.size != image.size:
                    raise EditFailed(f"the editor returned {done.image.size} pixels for a source of {image.size}")
            except Exception as error:
                self.engine.meter.edits -= len(action.prompts) - index - 1  # what now is not begun
                return ChainStopped(chain=chain, reason="the editor failed",
                                    error=f"{self.engine.editor.name}: {words(error)}")  # fmt: skip
            image = done.image
            ref = await self._keep(chain, image)
            edits.append(Edit(prompt=prompt, base=action.base if index == 0 else "last", source=source, image=ref,
                              seed=request.seed, editor=self.engine.editor.name, seconds=done.seconds))  # fmt: skip
            source = ref
        return RoundEdited(chain=chain, edits=tuple(edits))

    async def _judge(self, chain: int, index: int) -> Event:
        verifier, desk = self.engine.verifier, self.desks.verifier
        assert verifier is not None and desk is not None
        self.engine.meter.begin_question()
        edit = await self._load(self.trace.chains[chain].rounds[index].image)
        try:
            verdict = await desk.submit(Sample(self.task, self.sources[0], edit, self.trace.checklist))
        except Exception as error:
            verdict = Verdict(status="unavailable", verifier=verifier.name, reason=words(error))
        self.engine.meter.tokens += verdict.tokens
        return RoundJudged(chain=chain, round=index, verdict=verdict)

    async def _critique(self, chain: int, index: int) -> Event:
        rounds = self.trace.chains[chain].rounds
        past, decides = rounds[index], self.settings.decides
        history = [(r.prompt, r.critique.problem) for r in rounds[:index] if r.critique and r.critique.problem]
        text = self.prompts.critique(
            self.task.instruction, [edit.prompt for edit in past.edits], decides=decides,
            history=history if self.settings.history else (),
        )  # fmt: skip
        images = (self.sources[0], await self._load(past.image))
        skill = "decide" if decides else "critique"
        # A critic whose first word did not help is asked for another one, not for the same again.
        done = await self._ask(images, text, chain, skill, index, sampled=index > 0)
        record = Critique(status="unavailable", raw=f"error: {done.error}")
        if done.error is None:
            record = self.prompts.parse_critique(done.text, decides=decides)
        return RoundCritiqued(chain=chain, round=index, critique=record.model_copy(update=self._signed(done)))


def edit_key(trace_id: str, *place: int) -> str:
    """Names one edit of one trace for good: a resumed run asks for it under the same name."""
    return hashlib.sha256("/".join(map(str, (trace_id, *place))).encode()).hexdigest()[:32]


async def _aside(pixels: int, work: Callable[[], Value]) -> Value:
    return work() if pixels < LARGE else await asyncio.to_thread(work)


def lasting(trace: Trace) -> dict[str, Any]:
    """What a trace holds, as plain JSON, without clocks and versions: equal for two runs of the same task with the same
    seeds, models and settings."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in ("seconds", "started", "versions")}
        return [strip(v) for v in value] if isinstance(value, list) else value

    return dict(strip(trace.model_dump(mode="json")))


def count_calls(trace: Trace, verifier: Verifier | None) -> dict[str, int]:
    """Calls of the models that the trace took: edit, plan, checklist, answer, critique; and the reasoner's tokens."""
    calls: Counter[str] = Counter(checklist=int(trace.checklist is not None))
    said: list[Checklist | Plan | Verdict | Critique | None] = [trace.checklist]
    for chain in trace.chains:
        calls["plan"] += chain.plan is not None
        said.append(chain.plan)
        for past in chain.rounds:
            calls["edit"] += len(past.edits)
            calls["critique"] += past.critique is not None
            said += [past.verdict, past.critique]
            if past.verdict is not None and verifier is not None and verifier.uses_reasoner:
                calls["answer"] += len(past.verdict.answers)
    calls["tokens"] = sum(one.tokens for one in said if one is not None)
    return {name: int(n) for name, n in sorted(calls.items()) if n}


def words(error: BaseException) -> str:
    """An error as the record holds it; of several the first."""
    if isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return one_line(error, (ValueError, EditFailed), most=500)
