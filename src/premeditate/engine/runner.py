"""The engine: carries out what the strategies decide, for many tasks at once, and writes every step down.

Each task is a `Walk` (`premeditate.engine.walk`) that folds its trace and asks the strategy what its chains do next.
Requests of all tasks meet at one desk per model: models in this process get large batches, endpoints get every request
on its own, through a pool that knows what each can carry. Resuming is nothing special: the stored trace is folded and
the strategy goes on from there.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from premeditate.editors.base import Editor, EditRequest
from premeditate.engine.batching import Batcher, Direct
from premeditate.engine.budget import Budget, Meter
from premeditate.engine.memory import Store
from premeditate.engine.pool import Policy
from premeditate.engine.pooled import pooled
from premeditate.engine.seat import Load
from premeditate.engine.strategies import Settings
from premeditate.engine.walk import Desks, OnEvent, Walk
from premeditate.prompts import get
from premeditate.reasoners.base import ChatRequest, Reasoner
from premeditate.rewards.base import Verifier
from premeditate.trace import Task, Trace

PORTION = 64
"""Tasks that are drawn at a time."""


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


class Engine:
    """Runs tasks. `verifier` None: rounds are ranked by the critic and none is ever verified.

    `editor`, `reasoner`: of the protocols, or endpoints (one, or a list for one model), which are then pooled under
    `policy`. `budget`: a ceiling for each call of `run` or `stream`. One engine belongs to one event loop at a time.
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
        policy: Policy | None = None,
        budget: Budget | None = None,
        on_event: OnEvent | None = None,
        versions: dict[str, str] | None = None,
    ) -> None:
        self.editor, self.reasoner = pooled(editor, policy), pooled(reasoner, policy)
        self.verifier, self.store = verifier, store
        self.settings = replace(settings or Settings(), judged=verifier is not None)
        self.limits, self.on_event, self.versions = limits or Limits(), on_event, dict(versions or {})
        self.budget = budget or Budget()
        self.meter = Meter(self.budget)
        self.prompts = get(self.reasoner.prompts)
        self._desks: Desks | None = None

    async def run(self, tasks: Iterable[Task]) -> list[Trace]:
        """One trace per task, in order. A task that fails ends with `trace.error`; the others go on.

        A trace that the store already holds is continued; one that is finished is returned as it is, unless it ended
        with an error: then the task is tried again in a new trace. Where the budget is spent, traces stay unfinished,
        and tasks that were not begun have none. Raises what the store raises, `EndpointError` where no endpoint is up
        at the start, and ValueError for tasks that share an id. When cancelled, everything that was done so far is in
        the store.
        """
        tasks = list(tasks)
        if len({task.id for task in tasks}) != len(tasks):
            raise ValueError("two tasks have the same id; give each its own")
        found = {trace.task.id: trace async for trace in self.stream(tasks)}
        return [found[task.id] for task in tasks if task.id in found]

    async def stream(self, tasks: Iterable[Task]) -> AsyncGenerator[Trace, None]:
        """As `run`, for any number of tasks: they are drawn when there is room for them, and their traces come as they
        end."""
        self.meter = Meter(self.budget)
        known, seen = set(self.store.traces()), set[str]()
        running, done = set[asyncio.Task[Trace]](), set[asyncio.Task[Trace]]()
        source = iter(tasks)
        async with self._open() as desks:
            try:
                more = True
                while True:
                    while more and (room := self.limits.tasks - len(running)) > 0 and not self.meter.spent():
                        # Drawing a task may mean decoding its picture; a portion at a time, so that batches are full.
                        portion = await asyncio.to_thread(list, itertools.islice(source, min(room, PORTION)))
                        more = bool(portion)
                        for task in portion:
                            if task.id in seen:
                                raise ValueError(f"two tasks have the id {task.id!r}; give each its own")
                            seen.add(task.id)
                            running.add(asyncio.create_task(Walk(self, task, desks).run(known)))
                    if not running:
                        return
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for job in done:
                        yield job.result()
            finally:
                for job in running:
                    job.cancel()
                # What ended beside the one that raised is heard as well, or asyncio complains of each.
                await asyncio.gather(*running, *done, return_exceptions=True)

    @property
    def record(self) -> dict[str, Any]:
        """What a trace says of how it was made, and is named by: no addresses, which may change between two runs."""
        models = {"editor": self.editor.name, "reasoner": self.reasoner.name,
                  "verifier": self.verifier.name if self.verifier else None, "prompts": self.prompts.name}  # fmt: skip
        recipes = {role: dict(model.recipe) for role, model in self._models() if getattr(model, "recipe", None)}
        return {**asdict(self.settings), **models, **({"options": recipes} if recipes else {})}

    def loads(self) -> list[Load]:
        """What the models are doing, one row per endpoint."""
        rows: list[Load] = []
        for role, model in self._models():
            desk = getattr(self._desks, role, None)
            if hasattr(model, "loads"):
                rows += model.loads(role)
            elif isinstance(desk, Batcher):
                rows.append(Load(model.name, role, desk.running, desk.waiting, desk.size, desk.done, desk.failed))
            elif role != "verifier":
                rows.append(Load(model.name, role))
        return rows

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Desks]:
        """The desks of one run; models behind endpoints are asked how they are before anything is begun."""
        models = self._models()
        try:
            for _, model in models:
                if hasattr(model, "prepare"):
                    await model.prepare()
            for role, model in models:
                if hasattr(model, "describe"):
                    self.versions |= {f"{role} {key}": value for key, value in model.describe().items()}
            async with self._desk_room() as desks:
                yield desks
        finally:
            for _, model in models:
                if hasattr(model, "aclose"):
                    await model.aclose()

    @asynccontextmanager
    async def _desk_room(self) -> AsyncIterator[Desks]:
        """One desk per model, closed in the end: nobody waits at one whose run is over."""
        desks = self._desks = Desks(
            editor=_desk(self.editor, self.editor.edit, self.limits.edits, _picture_sizes),
            reasoner=_desk(self.reasoner, self.reasoner.chat, self.limits.chats, _chat_kind),
            verifier=None if self.verifier is None else _desk(
                self.verifier, self.verifier.verify, self.limits.samples, lambda sample: None),
        )  # fmt: skip
        try:
            yield desks
        finally:
            self._desks = None
            for desk in (desks.editor, desks.reasoner, desks.verifier):
                if desk is not None:
                    await desk.close()

    def _models(self) -> list[tuple[str, Any]]:
        """(role, model) of everything that is asked; a verifier that asks the reasoner itself adds nothing."""
        judge = getattr(self.verifier, "reasoner", self.verifier)
        found: list[tuple[str, Any]] = [("editor", self.editor), ("reasoner", self.reasoner)]
        return found if judge is None or judge is self.reasoner else [*found, ("verifier", judge)]


def _desk(model: Any, call: Any, limit: int, key: Any) -> Any:
    """Where requests for a model are handed in: no batch is larger than it takes in one go."""
    if getattr(model, "concurrent", False):
        return Direct(call)
    most = getattr(model, "max_batch", None)
    return Batcher(call, min(limit, most) if isinstance(most, int) and most > 0 else limit, key)


def _picture_sizes(request: EditRequest) -> tuple[tuple[int, int], ...]:
    return tuple(image.size for image in request.images)


def _chat_kind(request: ChatRequest) -> tuple[object, ...]:
    return request.labels, request.max_tokens, request.temperature, len(request.images)
