"""The checklist verifier: the reasoner answers each yes/no item about the edited picture.

Answers are label probabilities where the reasoner gives them: p(yes) = p("yes") / (p("yes") + p("no")), yes above 0.5.
A reasoner without probabilities is asked in words. An item without an answer stays without one: it is not a no, and
the round is not verified.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence

from premeditate.prompts import get
from premeditate.prompts.base import LABELS
from premeditate.prompts.general import failure, spoken
from premeditate.reasoners.base import ChatRequest, Completion, Reasoner
from premeditate.rewards.base import Sample, verdict_of
from premeditate.trace import Answer, ChecklistItem, Status, Task, Verdict

_WORD = re.compile(r"^[\W_]*(yes|no)\b", re.IGNORECASE)
_TAGGED = re.compile(r"<answer>\s*(yes|no)\b", re.IGNORECASE)
_EVIDENCE = 400


class ChecklistVerifier:
    """Judges with the *answer* skill of `reasoner`. All items of a call go to the reasoner in one batch, the items of
    one sample side by side, so that it can share their images."""

    uses_reasoner = True

    def __init__(self, reasoner: Reasoner) -> None:
        self.reasoner = reasoner
        self.prompts = get(reasoner.prompts)
        self.max_batch: int | None = getattr(reasoner, "max_batch", None)
        self.concurrent = bool(getattr(reasoner, "concurrent", False))

    @property
    def name(self) -> str:
        return f"checklist ({self.reasoner.name})"

    def wants_checklist(self, task: Task) -> bool:
        return True

    async def verify(self, samples: Sequence[Sample]) -> list[Verdict]:
        """One verdict per sample, in order. Raises what the reasoner raises."""
        start = time.perf_counter()
        requests = [
            ChatRequest(images=(s.source, s.edit), text=self.prompts.answer(item.question), labels=LABELS, max_tokens=8)
            for s in samples
            for item in (s.checklist.items if s.checklist and s.checklist.status == "scored" else ())
        ]
        completions = list(await self.reasoner.chat(requests)) if requests else []
        if len(completions) != len(requests):
            raise RuntimeError(f"{self.reasoner.name} returned {len(completions)} completions for {len(requests)}")
        rest = iter(completions)
        seconds = (time.perf_counter() - start) / max(1, len(samples))
        return [self._verdict(sample, rest, seconds) for sample in samples]

    def _verdict(self, sample: Sample, completions: Iterator[Completion], seconds: float) -> Verdict:
        checklist = sample.checklist
        if checklist is None:
            return Verdict(status="unavailable", verifier=self.name, reason="there is no checklist", seconds=seconds)
        if checklist.status != "scored" or not checklist.items:
            status: Status = "unparsable" if checklist.status == "scored" else checklist.status
            return Verdict(status=status, verifier=self.name, reason=f"the checklist is {status}", seconds=seconds)
        said = [next(completions) for _ in checklist.items]
        answers = [read_answer(item, done) for item, done in zip(checklist.items, said, strict=True)]
        return verdict_of(answers, self.name, seconds, sum(done.tokens for done in said))


def read_answer(item: ChecklistItem, completion: Completion) -> Answer:
    """The answer that a completion gives: probabilities first, then its text; else a status that says why not."""
    if completion.error is not None:
        return Answer(item=item, status="unavailable", evidence=completion.error[:_EVIDENCE])
    yes, no = (completion.probabilities.get(label, 0.0) for label in LABELS)
    # NaN fails every comparison, so damaged probabilities fall through to the text.
    if completion.probabilities and 0 <= yes <= 1 and 0 <= no <= 1 and yes + no > 0:
        p_yes = min(1.0, yes / (yes + no))
        return Answer(item=item, status="scored", yes=p_yes > 0.5, p_yes=p_yes)
    text = spoken(completion.text).strip()
    found = _WORD.match(text) or _TAGGED.search(text)
    if found is None:
        return Answer(item=item, status=failure(text), evidence=text[:_EVIDENCE] or "an empty answer")
    return Answer(item=item, status="scored", yes=found[1].lower() == "yes", evidence=text[:_EVIDENCE])
