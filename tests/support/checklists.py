"""What the tests of checklists share: pictures, questions, and a model that says what it is told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.rewards.base import Sample
from premeditate.rewards.checklist import ChecklistVerifier
from premeditate.rewards.checklists.builder import ChecklistBuilder, Subject
from premeditate.trace import Checklist, ChecklistItem, Task, Verdict

from .rewards import noise

PICTURE, OTHER = noise(40, 32), noise(40, 32, seed=7)
GOOD: dict[str, list[str]] = {
    "follow": ["Is there a puddle on the table?", "Is the ice cube gone?", "Does the puddle look wet?"],
    "keep": ["Is the table made of wood?", "Does the window look as before?", "Is the lamp in its place?"],
    "quality": ["Are the edges of the puddle clean?", "Do the shadows fit the light?"],
}


def entries(found: dict[str, list[str]]) -> list[dict[str, str]]:
    return [{"question": q, "dimension": d} for d, questions in found.items() for q in questions]


def said(found: Any) -> str:
    return json.dumps({"items": entries(found) if isinstance(found, dict) else found})


def item(question: str = "Is the sky blue?", dimension: Any = "follow") -> ChecklistItem:
    return ChecklistItem(question=question, dimension=dimension)


class Model:
    """Speaks the general prompts: says `texts` one after the other (the last for ever), and answers questions by
    `answer(question, images)`: a probability of yes, words, or None for an error."""

    name, prompts = "model", "general"

    def __init__(self, *texts: str | None, answer: Callable[..., Any] | None = None) -> None:
        self.texts, self.answer = list(texts), answer
        self.asked: list[ChatRequest] = []
        self.batches = 0

    async def chat(self, requests: Sequence[ChatRequest]) -> list[Completion]:
        self.batches += 1
        return [self._one(request) for request in requests]

    def _one(self, request: ChatRequest) -> Completion:
        self.asked.append(request)
        if "write the test" in request.text:
            text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
            return Completion(error="down") if text is None else Completion(text, tokens=7)
        if "Say in one short sentence" in request.text:
            return Completion("  A puddle\nlies there.", tokens=3)
        question = request.text.partition("Question: ")[2].partition("\n")[0]
        assert self.answer is not None
        found = self.answer(question, request)
        if found is None:
            return Completion(error="down")
        if isinstance(found, str):
            return Completion(found, tokens=1)
        return Completion(probabilities={"yes": found, "no": 1 - found}, tokens=1)

    @property
    def written(self) -> list[ChatRequest]:
        return [r for r in self.asked if "write the test" in r.text]


def build(model: Any, *subjects: Subject, **options: Any) -> list[Checklist]:
    builder = options.pop("builder", None) or ChecklistBuilder(model, **options)
    return asyncio.run(builder.write(subjects or [Subject((PICTURE,), "let the ice melt")]))


def sample(
    source: Image.Image = PICTURE, edit: Image.Image = OTHER, items: Any = None, instruction: str = "x"
) -> Sample:
    listed = None if items is None else Checklist(items=tuple(items))
    return Sample(Task(id="t", images=(), instruction=instruction), source, edit, listed)


def judge(model: Any, *samples: Sample, **options: Any) -> list[Verdict]:
    return asyncio.run(ChecklistVerifier(model, **options).verify(samples))
