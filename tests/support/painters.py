"""An engine whose editor paints what its prompt and seed say, for a critic who is never content."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from PIL import Image

from premeditate.editors.callable import CallableEditor
from premeditate.engine.budget import Budget
from premeditate.engine.memory import Store
from premeditate.engine.runner import Engine, Limits
from premeditate.engine.strategies import Settings
from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.reasoners.callable import CallableReasoner
from premeditate.rewards.checklist import ChecklistVerifier
from premeditate.trace import Task

CRITIQUE = {"problem": "too pale", "semantic": 5, "quality": 6, "satisfied": False, "base": "original"}
ITEMS = {"items": [{"question": "Is it blue?", "dimension": "follow"}]}


def told(request: ChatRequest, satisfied: bool = False) -> Completion:
    """What a critic who is never content says; its words depend on the request's seed alone."""
    if request.labels:
        return Completion(probabilities={"yes": 0.2, "no": 0.8}, tokens=5)
    if "Last prompt" in request.text:
        said: Any = {**CRITIQUE, "satisfied": satisfied, "steps": [f"paint it more, {request.seed}"]}
    elif "yes/no questions" in request.text:
        said = ITEMS
    else:
        said = {"explanation": "", "steps": [f"paint it, {request.seed}"]}
    return Completion(json.dumps(said), tokens=10)


def painted(prompt: str, seed: int) -> Image.Image:
    return Image.new("RGB", (8, 8), tuple(random.Random(f"{prompt}/{seed}").randbytes(3)))


async def paint(image: Image.Image, prompt: str, seed: int) -> Image.Image:
    return painted(prompt, seed)


async def say(request: ChatRequest) -> Completion:
    return told(request)


def tasks(store: Store, n: int) -> Iterator[Task]:
    ref = store.put_image(Image.new("RGB", (8, 8), "white"))
    for i in range(n):
        yield Task(id=f"t{i}", images=(ref,), instruction=f"paint number {i}")


def engine(
    store: Store, editor: Any = None, reasoner: Any = None, *, judged: bool = False, budget: Budget | None = None,
    limits: Limits | None = None, **settings: Any,
) -> Engine:  # fmt: skip
    reasoner = reasoner or CallableReasoner(say)
    chosen = Settings(**{"strategy": "think-while-edit", "max_rounds": 3, **settings})
    return Engine(editor or CallableEditor(paint), reasoner, ChecklistVerifier(reasoner) if judged else None, store,
                  chosen, budget=budget, limits=limits)  # fmt: skip
