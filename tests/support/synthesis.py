"""Tasks, editors, judges and a verifier for tests of `premeditate data rrm`, named as support.synthesis:NAME.

Words of an instruction say what happens to its task: "fail" (no edit), "leave" (unedited), "ungold" (no gold verdict),
"refuse" (no judge answers), "bare" (no principles), "mixed" (every other principle is met).
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Sequence
from typing import Any

from PIL import Image

from premeditate.datasets.tasks import TaskRow
from premeditate.editors.base import EditRequest, EditResult
from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.rewards.base import Sample, verdict_of
from premeditate.trace import Answer, Task, Verdict

SECRET = "the answer is 42"
PRINCIPLE = re.compile(r"^\d+\. \((?:follow|keep|quality)\) ", re.MULTILINE)
WORDS: dict[int, str] = {}
"""What is added to the instruction of the n-th task."""


def make(n: int, words: dict[int, str] | None = None) -> list[TaskRow]:
    found = []
    for i in range(n):
        word = (words or {}).get(i, "")
        items = [{"question": f"Is part {k} of {i} red?", "dimension": d}
                 for k, d in enumerate(("follow", "keep", "quality", "follow")[: 2 + i % 3])]  # fmt: skip
        meta: dict[str, Any] = {"truth": SECRET, "prompt": f"prompt {i} {word}".strip()}
        if "bare" not in word:
            meta["checklist"] = items
        picture = Image.new("RGB", (8, 8), tuple(random.Random(i).randbytes(3)))
        found.append(TaskRow(f"task-{i}", (picture,), f"instruction {i} {word}".strip(), meta))
    return found


def tasks(n: int, seed: int) -> list[TaskRow]:
    return make(n, {3: "leave", 5: "mixed", 8: "leave"})


class Recorded:
    """Remembers what it was asked, call by call."""

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []

    @property
    def asked(self) -> list[Any]:
        return [one for call in self.calls for one in call]


class Painter(Recorded):
    """Paints what its prompt and seed say."""

    def __init__(self, name: str, fails: str = "fail") -> None:
        super().__init__()
        self.name, self.fails = name, fails

    async def edit(self, requests: Sequence[EditRequest]) -> list[EditResult]:
        self.calls.append(list(requests))
        return [self._one(request) for request in requests]

    def _one(self, request: EditRequest) -> EditResult:
        if self.fails in request.prompt:
            return EditResult(None, error="the brush broke")
        if "leave" in request.prompt:
            return EditResult(request.images[0].copy())
        colour = tuple(random.Random(f"{self.name}/{request.prompt}/{request.seed}").randbytes(3))
        return EditResult(Image.new("RGB", request.images[0].size, colour))


class Judge(Recorded):
    """Its verdicts, thought and score come from the pictures, the temperature and the seed."""

    prompts = "general"

    def __init__(self, name: str, mute: str = "refuse") -> None:
        super().__init__()
        self.name, self.mute = name, mute

    async def chat(self, requests: Sequence[ChatRequest]) -> list[Completion]:
        self.calls.append(list(requests))
        return [self._one(request) for request in requests]

    def _one(self, request: ChatRequest) -> Completion:
        if self.mute in request.text:
            return Completion("I'm sorry, I cannot judge this.")
        told = f"{self.name}/{digest(request.images[1])}/{request.temperature}/{request.seed}"
        rng = random.Random(told + request.text * bool(request.labels))
        if request.labels:
            p = rng.random()
            return Completion(probabilities={"yes": p, "no": 1 - p})
        if '"satisfied"' in request.text:
            good = rng.random() < 0.3
            problem = "" if good else f"it is dull, {rng.randrange(99)}"
            return Completion(f'{{"problem": "{problem}", "semantic": {rng.randrange(11)}, "quality": '
                              f'{rng.randrange(11)}, "satisfied": {str(good).lower()}, "base": "original", '
                              f'"steps": ["paint"]}}')  # fmt: skip
        count = len(PRINCIPLE.findall(request.text))
        verdicts = [int(rng.random() < 0.6) for _ in range(count)]
        lines = "\n".join(f"{i}: {v}" for i, v in enumerate(verdicts, 1))
        thought = f"<think>I saw {rng.randrange(1000)}</think>"
        return Completion(f"{thought}\n{lines}\naverage: 0.5\n<score>{rng.randrange(100) / 10}</score>")


class Gold(Recorded):
    """Says yes to what the edit's bytes and the question's number say."""

    name, uses_reasoner = "gold", True

    def wants_checklist(self, task: Task) -> bool:
        return True

    async def verify(self, samples: Sequence[Sample]) -> list[Verdict]:
        self.calls.append(list(samples))
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample) -> Verdict:
        assert sample.checklist is not None
        if "ungold" in sample.task.instruction:
            return Verdict(status="unavailable", reason="the line is dead")
        yes = truth(sample.edit, sample.task.instruction, len(sample.checklist.items))
        return verdict_of([Answer(item=i, status="scored", yes=y, evidence=f"seen: {y}")
                           for i, y in zip(sample.checklist.items, yes, strict=True)], "gold")  # fmt: skip


def truth(edit: Image.Image, instruction: str, count: int) -> list[bool]:
    if "mixed" in instruction:
        return [k % 2 == 0 for k in range(count)]
    rng = random.Random(f"gold/{digest(edit)}")
    return [rng.random() < 0.7 for _ in range(count)]


def digest(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


one, other = Painter("one"), Painter("other")
first, second = Judge("first"), Judge("second")
gold = Gold()


async def slowly(request: ChatRequest) -> Completion:
    """As `first`, so slowly that there is time to end the process."""
    time.sleep(0.004)
    return first._one(request)
