"""The Verifier protocol: looks at finished edits and answers each one's checklist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from PIL import Image

from premeditate.trace import Answer, Checklist, Status, Task, Verdict


@dataclass(frozen=True)
class Sample:
    """What there is to judge. `checklist` is None where none was asked for."""

    task: Task
    source: Image.Image
    edit: Image.Image
    checklist: Checklist | None = None


@runtime_checkable
class Verifier(Protocol):
    """`uses_reasoner`: each answer costs a call of the reasoner. `wants_checklist`: the engine is to have one written
    before the edits. `verify` returns one verdict per sample, in order; a sample that cannot be judged becomes a
    verdict with a status and a reason, and never raises for the others of its batch."""

    uses_reasoner: bool

    @property
    def name(self) -> str: ...

    def wants_checklist(self, task: Task) -> bool: ...
    async def verify(self, samples: Sequence[Sample]) -> Sequence[Verdict]: ...


_WORST: tuple[Status, ...] = ("unavailable", "refused", "unparsable", "scored")


def verdict_of(answers: Sequence[Answer], verifier: str, seconds: float = 0.0, tokens: int = 0) -> Verdict:
    """Puts answers together. A dimension's score is its share of yes, absent unless all of its items were scored; the
    verdict is "scored" only if every answer is."""
    if not answers:
        return Verdict(status="unparsable", verifier=verifier, reason="the checklist has no items", seconds=seconds)
    scores: dict[str, float] = {}
    for dimension in sorted({a.item.dimension for a in answers}):
        part = [a for a in answers if a.item.dimension == dimension]
        if all(a.status == "scored" for a in part):
            scores[dimension] = sum(a.yes is True for a in part) / len(part)
    status = min((a.status for a in answers), key=_WORST.index)
    missing = [a for a in answers if a.status != "scored"]
    reason = "" if not missing else (f"{len(missing)} of {len(answers)} questions without an answer"
                                     f" ({missing[0].evidence or missing[0].status})")  # fmt: skip
    return Verdict(status=status, answers=tuple(answers), scores=scores, verifier=verifier, reason=reason,
                   seconds=seconds, tokens=tokens)  # fmt: skip
