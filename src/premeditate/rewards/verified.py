"""Any verifier as a reward: the shares of yes among the questions about follow, keep and quality.

A verifier that answers a checklist gets it from, in this order: the sample; the task's `meta["checklist"]` (a list of
{"question", "dimension"}); a reasoner, which writes it once per task, before any edit of it is judged, and is not asked
for it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from premeditate.errors import one_line
from premeditate.local import Gate
from premeditate.prompts import get
from premeditate.reasoners.base import ChatRequest, Reasoner
from premeditate.rewards.base import RewardError, Sample, Verifier
from premeditate.trace import Checklist, ChecklistItem, Task, Verdict

KEPT = 65_536
"""Checklists held in memory; beyond that the oldest are asked for again."""


class VerifiedReward:
    """Scores are those of the verdict: a dimension about which the checklist asks nothing is absent.

    `reasoner`: writes the checklists; by default the one that answers them, for a verifier that has one. Without it, a
    sample without a checklist is "unavailable".
    """

    dimensions: tuple[str, ...] = ("follow", "keep", "quality")

    def __init__(self, verifier: Verifier, reasoner: Reasoner | None = None, *, name: str = "") -> None:
        self.verifier = verifier
        self.name = name or verifier.name
        asked = reasoner if reasoner is not None else getattr(verifier, "reasoner", None)
        self.writer = None if asked is None else ChecklistWriter(asked)
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
        if self.writer is not None and callable(close := getattr(self.writer.reasoner, "aclose", None)):
            await close()

    async def _with_checklists(self, samples: Sequence[Sample]) -> list[Sample]:
        ready = [replace(s, checklist=self._given(s.task)) if s.checklist is None else s for s in samples]
        lacking = [i for i, s in enumerate(ready) if s.checklist is None and self.verifier.wants_checklist(s.task)]
        if lacking and self.writer is not None:
            written = await self.writer.write([ready[i] for i in lacking])
            for i, checklist in zip(lacking, written, strict=True):
                ready[i] = replace(ready[i], checklist=checklist)
        return ready

    def _given(self, task: Task) -> Checklist | None:
        """The checklist that the task brings along, where the verifier wants one."""
        items = task.meta.get("checklist")
        if items is None or not self.verifier.wants_checklist(task):
            return None
        try:
            return Checklist(items=tuple(ChecklistItem.model_validate(item) for item in items), author="the task")
        except (ValueError, TypeError) as error:
            return Checklist(status="unparsable", raw=f"meta.checklist: {one_line(error)}", author="the task")

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


class ChecklistWriter:
    """Has `reasoner` write the checklist of each task once: a task is its source picture's pixels and its instruction,
    whatever it is called. What could not be written is asked for again the next time."""

    def __init__(self, reasoner: Reasoner) -> None:
        self.reasoner, self.prompts = reasoner, get(reasoner.prompts)
        self._known: dict[str, Checklist] = {}
        self._gate = Gate(1)

    async def write(self, samples: Sequence[Sample]) -> list[Checklist]:
        """The checklist of each sample's task, in order. One that could not be written has a status that says so."""
        keys = [_content(sample) for sample in samples]
        # One at a time: samples of one task that come in two calls ask once.
        async with self._gate():
            wanted = {key: s for key, s in zip(keys, samples, strict=True) if key not in self._known}
            written = dict(zip(wanted, await self._ask(list(wanted.values())), strict=True)) if wanted else {}
            found = [written[key] if key in written else self._known[key] for key in keys]
            self._keep({key: checklist for key, checklist in written.items() if checklist.status == "scored"})
        return found

    async def _ask(self, samples: Sequence[Sample]) -> list[Checklist]:
        requests = [
            ChatRequest(
                images=(s.source,), text=self.prompts.checklist(s.task.instruction),
                max_tokens=self.prompts.max_tokens, schema=self.prompts.schemas.get("checklist"),
            )
            for s in samples
        ]  # fmt: skip
        completions = list(await self.reasoner.chat(requests))
        if len(completions) != len(requests):
            raise RuntimeError(f"{self.reasoner.name} returned {len(completions)} completions for {len(requests)}")
        return [self._read(done) for done in completions]

    def _read(self, done: Any) -> Checklist:
        if done.error is not None:
            record = Checklist(status="unavailable", raw=f"error: {done.error}")
        else:
            record = self.prompts.parse_checklist(done.text)
        return record.model_copy(update={"author": self.reasoner.name, "seconds": done.seconds, "tokens": done.tokens})

    def _keep(self, more: dict[str, Checklist]) -> None:
        self._known |= more
        while len(self._known) > KEPT:
            self._known.pop(next(iter(self._known)))


def _content(sample: Sample) -> str:
    source = sample.source
    found = hashlib.sha256(f"{source.mode} {source.size} {sample.task.instruction}\0".encode())
    found.update(source.tobytes())
    return found.hexdigest()
