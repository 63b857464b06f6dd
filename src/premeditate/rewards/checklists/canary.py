"""The canary: the same questions about the *unedited* picture, as if it were the edit.

Nothing has been done to it, so whatever the edit had to bring about is not there, and whatever had to stay is. A judge
that answers yes to a *follow* question says yes to anything, or cannot see what it is asked about, or obeys text that
is painted in the picture (or the question is true of the original too, and tests nothing). A judge that answers no to
a *keep* question takes it the wrong way round, or cannot see it either. *Quality* questions prove nothing here.

The outcome belongs to the task and the judge, not to an edit: an exposed item is exposed for every edit of the task, so
that editors cannot trip it and edits of one task stay comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from premeditate.rewards.base import Sample
from premeditate.trace import Answer

YES = "the judge says yes to the unedited picture too"
NO = "the judge says no to the unedited picture, where nothing has changed"
UNTRIED = "the judge gave no answer about the unedited picture"


@dataclass(frozen=True)
class Tried:
    """`answer`: about the source. `exposed`: why the item proves nothing, "" where nothing speaks against it."""

    answer: Answer
    exposed: str = ""


@dataclass(frozen=True)
class Canary:
    items: tuple[Tried, ...]

    @property
    def suspicious(self) -> float | None:
        """The share of yes among the follow questions that were answered, in [0, 1]; None where none was. Good: 0."""
        return self._share("follow")

    @property
    def contradicted(self) -> float | None:
        """The share of no among the keep questions that were answered, in [0, 1]; None where none was. Good: 0."""
        return self._share("keep")

    @property
    def exposed(self) -> int:
        return sum(bool(tried.exposed) for tried in self.items)

    def _share(self, dimension: str) -> float | None:
        part = [t for t in self.items if t.answer.item.dimension == dimension and t.answer.status == "scored"]
        return sum(bool(t.exposed) for t in part) / len(part) if part else None


class CanaryAsker(Protocol):
    async def canaries(self, samples: Sequence[Sample]) -> list[Canary]: ...


def tried(answer: Answer) -> Tried:
    """What an answer about the source, taken for an edit, says of its item. One without an answer is not trusted."""
    if answer.status != "scored":
        return Tried(answer, f"{UNTRIED} ({answer.evidence or answer.status})")
    if answer.item.dimension == "follow" and answer.yes:
        return Tried(answer, YES)
    if answer.item.dimension == "keep" and not answer.yes:
        return Tried(answer, NO)
    return Tried(answer)


def mark(answer: Answer, about: Tried) -> Answer:
    """The answer about an edit, without a score where its item was exposed."""
    if not about.exposed:
        return answer
    return Answer(item=answer.item, status="unavailable", evidence=about.exposed)
