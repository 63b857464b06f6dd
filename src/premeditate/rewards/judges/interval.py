"""Judges that give scores in words: the questions of `premeditate.prompts.judging`, asked once or several times.

With (s, o) the answer about the instruction and (n, a) that about the picture, all scaled to 0-10 (VIEScore, arXiv
2312.14867; GEdit-Bench; EditScore, arXiv 2509.23909):

    SC = min(s, o)      PQ = min(n, a)      O = sqrt(SC PQ)

and over passes i:

    average_last     O = mean_i sqrt(SC_i PQ_i)
    average_first    O = sqrt(mean_i SC_i mean_i PQ_i)

Every other part is the mean over the passes in which it could be read. A pass that could not be read is left out, never
filled in; with fewer readable passes than needed a part has no score.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from premeditate.errors import ModelError
from premeditate.images import resize_back
from premeditate.prompts import judging
from premeditate.prompts.judging import PARTS, Reading
from premeditate.reasoners.base import ChatRequest, Completion, Reasoner, close
from premeditate.rewards.base import Sample, worst
from premeditate.rewards.judges.votes import Repeats, Votes, ask
from premeditate.trace import Status, Verdict

Reduction = Literal["average_last", "average_first"]


@dataclass(frozen=True)
class Judgement:
    """What the passes over one sample came to. `votes`: by part, the scores of the passes, 0-10; `scores`: by part,
    0-10, without those that too few passes gave. `problem`: of the first answer that could not be read."""

    votes: Mapping[str, Votes]
    scores: Mapping[str, float]
    status: Status
    problem: str = ""
    evidence: str = ""
    tokens: int = 0


class IntervalJudge:
    """`dimensions`: the parts that are handed on, in [0, 1] (see `premeditate.prompts.judging.PARTS`). `top`: the best
    score that the judge is asked for. `reduction`: of "overall" over passes.

    The edit is shown in the source's size, as the published protocols do. Requests of all samples and passes go to the
    reasoner in one call. A reasoner of the terse prompt set gives "semantic", "quality" and "overall" only, and always
    from 0 to 10.
    """

    def __init__(
        self, reasoner: Reasoner, *, name: str, dimensions: Sequence[str] = ("overall",), top: int = 10,
        repeats: Repeats | None = None, reduction: Reduction = "average_last",
    ) -> None:  # fmt: skip
        """Raises `ModelError` for dimensions that this reasoner cannot give, ValueError for other bad settings."""
        self.questions = judging.interval(reasoner.prompts, top)
        known = (*self.questions.parts, "overall")
        self.dimensions: tuple[str, ...] = tuple(dimensions)
        if not self.dimensions or len(set(self.dimensions)) < len(self.dimensions):
            raise ModelError(f"{name} has the dimensions {list(self.dimensions)}", "give at least one, each once")
        if unknown := [part for part in self.dimensions if part not in known]:
            what = f"{reasoner.name} gives no score" if unknown[0] in PARTS else "there is no part"
            raise ModelError(f"{name}: {what} {unknown[0]!r}", f"choose from {', '.join(known)}")
        if type(top) is not int or not 1 <= top <= 100:
            raise ValueError(f"the top score is {top!r}; give a whole number from 1 to 100")
        if reduction not in ("average_last", "average_first"):
            raise ValueError(f"there is no reduction {reduction!r}; use average_last or average_first")
        self.reasoner, self.name, self.top, self.reduction = reasoner, name, top, reduction
        self.repeats = repeats if repeats is not None else Repeats()
        self.max_batch: int | None = getattr(reasoner, "max_batch", None)
        self.concurrent = bool(getattr(reasoner, "concurrent", False))

    async def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        """One verdict per sample, in order; its reason tells the spread over passes. Raises what the reasoner does."""
        start = time.perf_counter()
        judgements = await self.judge(samples)
        seconds = (time.perf_counter() - start) / max(1, len(samples))
        return [self._verdict(found, seconds) for found in judgements]

    async def judge(self, samples: Sequence[Sample]) -> list[Judgement]:
        """All that was said about each sample, in order. Raises what the reasoner raises."""
        completions = await ask(self.reasoner, [self._requests(sample) for sample in samples])
        return [self._judgement(done) for done in completions]

    async def aclose(self) -> None:
        await close(self.reasoner)

    def _requests(self, sample: Sample) -> list[ChatRequest]:
        edit = resize_back(sample.edit, sample.source.size)
        out: list[ChatRequest] = []
        for question in self.questions.questions(sample.task.instruction):
            images = (sample.source, edit) if question.pictures == "both" else (edit,)
            request = ChatRequest(images, question.text, max_tokens=question.max_tokens, schema=question.schema)
            out += self.repeats.of(request)
        return out

    def _judgement(self, completions: Sequence[Completion]) -> Judgement:
        k = self.repeats.k
        readings = [self._reading(i // k, done) for i, done in enumerate(completions)]
        passes: list[dict[str, float]] = [
            {part: value for reading in readings[i::k] for part, value in reading.parts.items()} for i in range(k)
        ]
        for parts in passes:
            if "semantic" in parts and "quality" in parts:
                parts["overall"] = math.sqrt(parts["semantic"] * parts["quality"])
        names = (*self.questions.parts, "overall")
        votes = {part: Votes(tuple(p.get(part) for p in passes), self.repeats.needed) for part in names}
        scores = {part: mean for part, vote in votes.items() if (mean := vote.mean) is not None}
        if self.reduction == "average_first":
            scores.pop("overall", None)
            if "semantic" in scores and "quality" in scores:
                scores["overall"] = math.sqrt(scores["semantic"] * scores["quality"])
        bad = [reading for reading in readings if reading.status != "scored"]
        return Judgement(
            votes=votes, scores=scores, status=worst([reading.status for reading in bad]),
            problem=(bad[0].evidence or "an empty answer") if bad else "",
            evidence=next((reading.evidence for reading in readings if reading.status == "scored"), ""),
            tokens=sum(done.tokens for done in completions),
        )  # fmt: skip

    def _reading(self, question: int, done: Completion) -> Reading:
        if done.error is not None:
            return Reading("unavailable", evidence=done.error[: judging.EVIDENCE])
        return self.questions.read(question, done.text)

    def _verdict(self, found: Judgement, seconds: float) -> Verdict:
        scores = {part: found.scores[part] / 10 for part in self.dimensions if part in found.scores}
        missing = [part for part in self.dimensions if part not in scores]
        if missing:
            reason = f"no {', '.join(missing)}: {found.problem}"
        else:
            reason = "; ".join(self._told(part, found) for part in self.dimensions)
            reason += f" ({found.evidence})" if found.evidence else ""
        return Verdict(status=found.status if missing else "scored", scores=scores, verifier=self.name, reason=reason,
                       seconds=seconds, tokens=found.tokens)  # fmt: skip

    def _told(self, part: str, found: Judgement) -> str:
        vote = found.votes[part]
        text = f"{part} {found.scores[part]:.2f} of 10"
        if vote.sd is not None:
            text += f", sd {vote.sd:.2f} over {len(vote.read)} passes"
        return text + (f", {vote.missing} unreadable" if vote.missing else "")
