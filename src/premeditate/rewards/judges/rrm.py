"""The judge that reasons over principles (Edit-RRM: Edit-R1, arXiv 2604.27505, section 3).

The principles are a checklist. One answer holds a thought, a verdict v_k in {0, 1} per principle and a score s in
[0, 10] (`premeditate.prompts.verify`, and `verify_terse` for small models trained on its words). For pass i of k:

    overall       mean_i s_i / 10
    follow, ...   mean_i of the share of v = 1 among the principles of that dimension

A pass that could not be read is left out, never filled in; with fewer readable passes than needed there is no score.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from premeditate.errors import ModelError
from premeditate.images import resize_back
from premeditate.prompts import verify, verify_words
from premeditate.prompts.general import DIMENSIONS
from premeditate.prompts.verify import EVIDENCE, Judged, Mode, Words
from premeditate.reasoners.base import ChatRequest, Completion, Reasoner
from premeditate.rewards.base import Sample, worst
from premeditate.rewards.checklists.builder import ChecklistBuilder
from premeditate.rewards.judges.votes import Repeats, Votes, ask
from premeditate.rewards.verified import VerifiedReward
from premeditate.trace import Answer, ChecklistItem, Status, Task, Verdict


@dataclass(frozen=True)
class Opinion:
    """What the passes over one sample came to. `votes`: "overall" and the dimensions that were asked about, per pass in
    [0, 1]. `answers`: per principle; yes where more than half of the passes said so. `problem`: of the first pass that
    could not be read."""

    status: Status
    passes: tuple[Judged, ...] = ()
    votes: Mapping[str, Votes] = field(default_factory=dict)
    answers: tuple[Answer, ...] = ()
    problem: str = ""
    tokens: int = 0


class PrincipleJudge:
    """A `Verifier` over a sample's checklist. Requests of all samples and passes go to the reasoner in one call; the
    edit is shown in the source's size."""

    uses_reasoner = True

    def __init__(
        self, reasoner: Reasoner, *, mode: Mode = "both", dimensions: Sequence[str] = ("overall",),
        repeats: Repeats | None = None, name: str = "rrm",
    ) -> None:  # fmt: skip
        """Raises `ModelError` for dimensions that the mode does not give, ValueError for another mode."""
        self.mode = verify.check_mode(mode)
        self.words = verify_words(reasoner.prompts)
        known = ("overall",) if self.mode == "think" else ("overall", *DIMENSIONS)
        self.dimensions = tuple(dimensions)
        if not self.dimensions or len(set(self.dimensions)) < len(self.dimensions):
            raise ModelError(f"{name} has the dimensions {list(self.dimensions)}", "give at least one, each once")
        if unknown := [part for part in self.dimensions if part not in known]:
            raise ModelError(f"{name} in mode {self.mode} gives no score {unknown[0]!r}",
                             f"choose from {', '.join(known)}")  # fmt: skip
        self.reasoner, self.name = reasoner, name
        self.repeats = repeats if repeats is not None else Repeats()
        self.max_batch: int | None = getattr(reasoner, "max_batch", None)
        self.concurrent = bool(getattr(reasoner, "concurrent", False))

    def wants_checklist(self, task: Task) -> bool:
        return True

    async def verify(self, samples: Sequence[Sample]) -> list[Verdict]:
        """One verdict per sample, in order; its reason tells the spread over passes. Raises what the reasoner does."""
        start = time.perf_counter()
        opinions = await self.judge(samples)
        seconds = (time.perf_counter() - start) / max(1, len(samples))
        return [self._verdict(opinion, seconds) for opinion in opinions]

    async def judge(self, samples: Sequence[Sample]) -> list[Opinion]:
        """All that was said about each sample, in order. Raises what the reasoner raises."""
        completions = await ask(self.reasoner, [self._requests(sample) for sample in samples])
        return [self._opinion(_items(sample), done) for sample, done in zip(samples, completions, strict=True)]

    def _requests(self, sample: Sample) -> list[ChatRequest]:
        items = _items(sample)
        if not items:
            return []
        asked = question(self.words, self.mode, sample.task.instruction, items, sample.source, sample.edit)
        return self.repeats.of(asked)

    def _opinion(self, items: Sequence[ChecklistItem], completions: Sequence[Completion]) -> Opinion:
        if not items:
            return Opinion("unparsable", problem="the checklist has no items")
        passes = tuple(self._pass(done, len(items)) for done in completions)
        read = [one if one.status == "scored" else None for one in passes]
        needed = self.repeats.needed
        votes = {"overall": Votes(tuple(None if one is None else _unit(one) for one in read), needed)}
        if self.mode != "think":
            for dimension in DIMENSIONS:
                at = [i for i, item in enumerate(items) if item.dimension == dimension]
                if at:
                    votes[dimension] = Votes(tuple(None if one is None else _share(one, at) for one in read), needed)
        bad = [one for one in passes if one.status != "scored"]
        status: Status = "scored" if votes["overall"].enough else worst([one.status for one in bad])
        problem = (bad[0].thought[:EVIDENCE] or "an empty answer") if bad else ""
        answers: tuple[Answer, ...] = ()
        if self.mode != "think":
            good = [one for one in read if one is not None] if status == "scored" else []
            answers = tuple(_answer(item, i, good, status, problem) for i, item in enumerate(items))
        tokens = sum(done.tokens for done in completions)
        return Opinion(status, passes, votes, answers, problem, tokens)

    def _pass(self, done: Completion, count: int) -> Judged:
        if done.error is not None:
            return Judged("unavailable", thought=done.error[:EVIDENCE])
        return self.words.parse(done.text, count, self.mode)

    def _verdict(self, found: Opinion, seconds: float) -> Verdict:
        votes = [(part, found.votes[part].mean) for part in self.dimensions if part in found.votes]
        scores = {part: mean for part, mean in votes if mean is not None}
        status: Status = found.status
        if status != "scored":
            read = sum(one.status == "scored" for one in found.passes)
            reason = found.problem
            if len(found.passes) > 1:
                reason = f"{read} of {len(found.passes)} passes could be read; {reason}"
        else:
            reason = "; ".join(self._told(part, found) for part in self.dimensions)
            thought = next((one.thought for one in found.passes if one.status == "scored" and one.thought), "")
            reason += f" ({' '.join(thought.split())[:EVIDENCE]})" if thought else ""
            if not scores:  # the checklist asks nothing about any of them
                status = "unavailable"
        return Verdict(status=status, answers=found.answers, scores=scores, verifier=self.name, reason=reason,
                       seconds=seconds, tokens=found.tokens)  # fmt: skip

    @staticmethod
    def _told(part: str, found: Opinion) -> str:
        vote = found.votes.get(part)
        if vote is None or vote.mean is None:
            return f"no {part}: the checklist asks nothing about it"
        text = f"{part} {vote.mean:.3f}"
        if vote.sd is not None:
            text += f", sd {vote.sd:.3f} over {len(vote.read)} passes"
        return text + (f", {vote.missing} unreadable" if vote.missing else "")


class RRM(VerifiedReward):
    """overall = s / 10 in [0, 1], or the parts that `dimensions` names: "overall", "follow", "keep", "quality" (a
    dimension about which the checklist asks nothing is absent; in mode "think" there is "overall" only).

    `k`: passes; above 1 they are sampled at `temperature` (0 means 0.7 then). The principles are the sample's
    checklist, the task's `meta["checklist"]`, or what `builder` (by default the same reasoner) writes once per task.
    """

    def __init__(
        self, reasoner: Reasoner, *, mode: Mode = "both", k: int = 1, dimensions: Sequence[str] = ("overall",),
        temperature: float = 0.0, seed: int = 42, least: int | None = None, builder: ChecklistBuilder | None = None,
        name: str = "rrm",
    ) -> None:  # fmt: skip
        """Raises `ModelError` or ValueError for settings that cannot be."""
        repeats = Repeats.sampled(k, temperature, seed, least)
        self.judging = PrincipleJudge(reasoner, mode=mode, dimensions=dimensions, repeats=repeats, name=name)
        super().__init__(self.judging, builder=builder, name=name)
        self.dimensions = self.judging.dimensions


def question(
    words: Words, mode: Mode, instruction: str, items: Sequence[ChecklistItem], source: Image.Image, edit: Image.Image
) -> ChatRequest:
    """What a judge is asked about an edit, which is shown in the source's size."""
    text = words.judge(instruction, items, mode)
    return ChatRequest((source, resize_back(edit, source.size)), text, max_tokens=words.tokens(len(items), mode))


def _items(sample: Sample) -> tuple[ChecklistItem, ...]:
    checklist = sample.checklist
    return checklist.items if checklist is not None and checklist.status == "scored" else ()


def _unit(one: Judged) -> float:
    assert one.score is not None
    return one.score / verify.TOP


def _share(one: Judged, at: Sequence[int]) -> float:
    return sum(one.verdicts[i] for i in at) / len(at)


def _answer(item: ChecklistItem, at: int, good: Sequence[Judged], status: Status, problem: str) -> Answer:
    """The answer of the readable passes about principle `at`. A tie is a no: what cannot be told is not met."""
    if not good:
        return Answer(item=item, status=status, evidence=problem)
    p_yes = sum(one.verdicts[at] for one in good) / len(good)
    yes = p_yes > 0.5
    said = next((one.evidence[at] for one in good if one.verdicts[at] == yes), "")
    told = said if len(good) == 1 else f"{round(p_yes * len(good))} of {len(good)} passes said 1; {said}"
    return Answer(item=item, status="scored", yes=yes, p_yes=p_yes, evidence=told[:EVIDENCE])
