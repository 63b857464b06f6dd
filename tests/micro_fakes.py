"""Editors and reasoners made of the micro world's own rules: perfect ones, and ones that fail in a known way."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

from premeditate.editors.base import EditRequest, EditResult
from premeditate.engine.memory import Store
from premeditate.microworld.checker import answer, decode
from premeditate.microworld.language import PlanError, execute, parse_plan
from premeditate.microworld.render import render
from premeditate.microworld.scene import CELL_NAMES
from premeditate.microworld.tasks import MicroTask
from premeditate.prompts.terse import Terse
from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.trace import Task

TERSE = Terse()


def to_task(task: MicroTask, store: Store) -> Task:
    image = store.put_image(render(task.source))
    return Task(id=task.id, images=(image,), instruction=task.instruction, meta=task.meta())


class RuleEditor:
    """Carries out explicit steps exactly and leaves the picture alone where it cannot read them. With probability
    `slip`, drawn from the request's seed, it also removes or recolours something that it was not told to."""

    name = "rule editor"

    def __init__(self, slip: float = 0.0) -> None:
        self.slip = slip
        self.batches: list[int] = []
        self.requests: list[EditRequest] = []

    async def edit(self, requests: Sequence[EditRequest]) -> list[EditResult]:
        self.batches.append(len(requests))
        self.requests.extend(requests)
        return [EditResult(image=self._one(request)) for request in requests]

    def _one(self, request: EditRequest) -> object:
        scene = decode(request.images[0]).scene
        try:
            scene = execute(scene, parse_plan(request.prompt))
        except PlanError:
            return request.images[0].copy()
        rng = random.Random(request.seed)
        things = list(scene.things())
        if things and rng.random() < self.slip:
            index, thing = rng.choice(things)
            scene = scene.put(index, replace_colour(thing))
        return render(scene)


class Stubborn(RuleEditor):
    """Hands every picture back untouched."""

    async def edit(self, requests: Sequence[EditRequest]) -> list[EditResult]:
        self.requests.extend(requests)
        return [EditResult(request.images[0].copy()) for request in requests]


class Broken(RuleEditor):
    """Makes no picture."""

    async def edit(self, requests: Sequence[EditRequest]) -> list[EditResult]:
        self.requests.extend(requests)
        return [EditResult(None, error="out of memory") for _ in requests]


def replace_colour(thing):  # type: ignore[no-untyped-def]
    return thing._replace(colour="gray" if thing.colour != "gray" else "red")


class Oracle:
    """Knows the tasks: perfect plans, checklists, answers and critiques. `lies` (skill names) makes it say nonsense
    for these; `errors` makes these fail; `wrong_plans` makes that share of *greedy* plans do something else."""

    name = "oracle"
    prompts = "terse"

    def __init__(
        self,
        tasks: Iterable[MicroTask],
        *,
        nonsense: Sequence[str] = (),
        errors: Sequence[str] = (),
        wrong_plans: float = 0.0,
        words: bool = False,
        yes_man: float = 0.0,
    ) -> None:
        self.tasks = {(t.instruction, t.source.codes): t for t in tasks}
        self.nonsense, self.errors, self.wrong_plans = set(nonsense), set(errors), wrong_plans
        self.words, self.yes_man = words, yes_man
        self.batches: list[int] = []
        self.asked: list[ChatRequest] = []

    async def chat(self, requests: Sequence[ChatRequest]) -> list[Completion]:
        self.batches.append(len(requests))
        self.asked.extend(requests)
        return [self._one(request) for request in requests]

    def skills(self) -> list[str]:
        return [request.text.split(" : ")[0] for request in self.asked]

    def _one(self, request: ChatRequest) -> Completion:
        skill, rest = request.text.split(" : ", 1)
        if skill in self.errors:
            return Completion(error="the server is down")
        if skill in self.nonsense:
            return Completion(text="| | |")
        source = decode(request.images[0]).scene
        if skill == "answer":
            right = answer(rest, source, decode(request.images[1]))
            assert right is not None
            if random.Random(f"{rest}/{request.images[1].tobytes()[:4000]!r}").random() < self.yes_man:
                right = True
            if self.words:
                return Completion(text="Yes." if right else "No.")
            return Completion(probabilities={"yes": 0.9 if right else 0.2, "no": 0.1 if right else 0.8})
        task = self.tasks[rest.split(" | prompt : ")[0], source.codes]
        if skill == "plan":
            if request.temperature == 0 and random.Random(task.id).random() < self.wrong_plans:
                return Completion(text="remove " + CELL_NAMES[next(i for i, _ in source.things())])
            return Completion(text=TERSE.write_plan(task.plan))
        if skill == "checklist":
            return Completion(text=TERSE.write_checklist(task.checklist))
        edit = decode(request.images[1]).scene
        wrong = edit.changed(task.target)
        problem = f"{CELL_NAMES[wrong[0]]} is wrong" if wrong else ""
        return Completion(text=TERSE.write_critique(problem, 10 - len(wrong), 10, task.plan, "original"))


def strip(task: Task) -> Task:
    """The task without what only the exact checker may know."""
    return replace_meta(task, {})


def replace_meta(task: Task, meta: dict) -> Task:  # type: ignore[type-arg]
    return task.model_copy(update={"meta": meta})


__all__ = ["Broken", "Oracle", "RuleEditor", "Stubborn", "replace", "strip", "to_task"]
