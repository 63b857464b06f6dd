"""The protocols of what looks at finished edits: a `Verifier` answers each one's checklist, a `Reward` scores them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from PIL import Image

from premeditate.errors import ExitCode, PremeditateError
from premeditate.trace import Answer, Checklist, Status, Task, Verdict


@dataclass(frozen=True)
class Sample:
    """What there is to judge. `checklist` is None where none was asked for. `group`: names the samples that belong
    together (edits of one task, drawn to be compared); "" for one that stands alone."""

    task: Task
    source: Image.Image
    edit: Image.Image
    checklist: Checklist | None = None
    group: str = ""


class RewardError(PremeditateError):
    """A reward that breaks its own contract: another number of values, a value that is no number, a dimension that it
    did not announce. A defect of the reward, not of a sample: it ends the run."""

    exit_code = ExitCode.MODEL


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


@runtime_checkable
class Reward(Protocol):
    """Scores edits. `dimensions`: the names under which a verdict may hold a score; a score is any finite number, more
    is better, and those of this package lie in [0, 1].

    `score` returns one verdict per sample, in order. A dimension that could not be scored is absent from the verdict's
    `scores`, never 0, and its `status` and `reason` say why. Samples of several groups may come in one call. May raise:
    then every sample of the call goes without a score. Optional attributes, read by `premeditate.rewards.panel`:

    - `groupwise` (False): the samples of a group are judged together and must come in one call
    - `concurrent` (False): further calls may be made while one is under way
    - `parallel` (4): how many calls at a time, where it is `concurrent`
    - `max_batch` (None): samples in a call at most (a group that is judged together is never cut)
    """

    @property
    def name(self) -> str: ...

    @property
    def dimensions(self) -> tuple[str, ...]: ...

    async def score(self, samples: Sequence[Sample]) -> Sequence[Verdict]: ...


_WORST: tuple[Status, ...] = ("unavailable", "refused", "unparsable", "scored")


def worst(statuses: Iterable[Status]) -> Status:
    """The gravest one; "scored" for none."""
    return min(statuses, key=_WORST.index, default="scored")


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
    status = worst(a.status for a in answers)
    missing = [a for a in answers if a.status != "scored"]
    reason = "" if not missing else (f"{len(missing)} of {len(answers)} questions without an answer"
                                     f" ({missing[0].evidence or missing[0].status})")  # fmt: skip
    return Verdict(status=status, answers=tuple(answers), scores=scores, verifier=verifier, reason=reason,
                   seconds=seconds, tokens=tokens)  # fmt: skip
