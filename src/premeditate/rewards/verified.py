"""Any verifier as a reward: the shares of yes among the questions about follow, keep and quality.

A verifier that answers a checklist gets it from, in this order: the sample; the task's `meta["checklist"]` (a list of
{"question", "dimension"}); a `ChecklistBuilder`, whose reasoner writes it once per task, before any edit of it is
judged, and is not asked for it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from premeditate.errors import one_line
from premeditate.prompts.general import fault
from premeditate.reasoners.base import Reasoner, close
from premeditate.rewards.base import RewardError, Sample, Verifier
from premeditate.rewards.checklists.builder import ChecklistBuilder, subject_of
from premeditate.trace import Checklist, ChecklistItem, Task, Verdict


class VerifiedReward:
    """Scores are those of the verdict: a dimension about which the checklist asks nothing is absent.

    `reasoner`: writes the checklists; by default the one that answers them, for a verifier that has one. `builder`:
    writes them instead, with its own examples, numbers and folder. Without either, a sample without a checklist is
    "unavailable".
    """

    dimensions: tuple[str, ...] = ("follow", "keep", "quality")

    def __init__(
        self, verifier: Verifier, reasoner: Reasoner | None = None, *, builder: ChecklistBuilder | None = None,
        name: str = "",
    ) -> None:  # fmt: skip
        self.verifier = verifier
        self.name = name or verifier.name
        asked = reasoner if reasoner is not None else getattr(verifier, "reasoner", None)
        self.builder = builder if builder is not None or asked is None else ChecklistBuilder(asked)
        self.concurrent = bool(getattr(verifier, "concurrent", False))
        self.max_batch: int | None = getattr(verifier, "max_batch", None)

    async def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        """One verdict per sample, in order. Raises what the verifier raises."""
        ready = await self._with_checklists(samples)
        verdicts: list[Verdict | None] = [self._without(sample) for sample in ready]
        rest = [i for i, verdict in enumerate(verdicts) if verdict is None]
        judged = list(await self.verifier.verify([ready[i] for i in rest])) if rest else []
        if len(judged) != len(rest):
            raise RewardError(
                f"the verifier {self.verifier.name} returned {len(judged)} verdicts for {len(rest)} samples",
                "return one verdict per sample, in order",
            )
        for i, verdict in zip(rest, judged, strict=True):
            verdicts[i] = verdict
        return [verdict for verdict in verdicts if verdict is not None]

    async def aclose(self) -> None:
        """Closes the reasoners that write and that answer, where these have anything to close."""
        found = {id(r): r for r in (getattr(self.builder, "reasoner", None), getattr(self.verifier, "reasoner", None))}
        for reasoner in found.values():
            await close(reasoner)

    async def _with_checklists(self, samples: Sequence[Sample]) -> list[Sample]:
        ready = [
            replace(s, checklist=self._given(s.task) if s.checklist is None else whole(s.checklist)) for s in samples
        ]
        lacking = [i for i, s in enumerate(ready) if s.checklist is None and self.verifier.wants_checklist(s.task)]
        if lacking and self.builder is not None:
            written = await self.builder.write([subject_of(ready[i]) for i in lacking])
            for i, checklist in zip(lacking, written, strict=True):
                ready[i] = replace(ready[i], checklist=checklist)
        return ready

    def _given(self, task: Task) -> Checklist | None:
        """The checklist that the task brings along, where the verifier wants one."""
        return given(task.meta) if self.verifier.wants_checklist(task) else None

    def _without(self, sample: Sample) -> Verdict | None:
        """The verdict on a sample whose checklist is missing or no good, None where it can be judged."""
        checklist = sample.checklist
        if checklist is None:
            if not self.verifier.wants_checklist(sample.task):
                return None
            why = "there is no checklist: give meta.checklist, or a reasoner that writes it"
            return Verdict(status="unavailable", verifier=self.name, reason=why)
        if checklist.status == "scored":
            return None
        why = f"the checklist is {checklist.status} ({' '.join(checklist.raw.split())[:200]})"
        return Verdict(status=checklist.status, verifier=self.name, reason=why)


def given(meta: Mapping[str, Any]) -> Checklist | None:
    """The checklist that a task brings along in its `meta`; "unparsable" where it is none, None where there is none."""
    items = meta.get("checklist")
    if items is None:
        return None
    try:
        found = Checklist(items=tuple(ChecklistItem.model_validate(item) for item in items), author="the task")
    except (ValueError, TypeError) as error:
        return Checklist(status="unparsable", raw=f"meta.checklist: {one_line(error)}", author="the task")
    return whole(found, "meta.checklist: ")


def whole(checklist: Checklist, where: str = "") -> Checklist:
    """A checklist that came from outside, "unparsable" where it is none (`premeditate.prompts.general.fault`); the raw
    text then says why, behind `where`."""
    why = fault(checklist.items)
    return checklist if why is None else Checklist(status="unparsable", raw=where + why, author=checklist.author)
