"""The checklist verifier: the reasoner answers each yes/no item about the edited picture.

Answers are label probabilities where the reasoner gives them: p(yes) = p("yes") / (p("yes") + p("no")), yes above 0.5.
A reasoner without probabilities is asked in words, once or `k` times: p(yes) is then the share of yes, and a tie is no
answer. An item without an answer stays without one: it is not a no, and the round is not verified.

With `canary`, items that a judge answers wrongly about the unedited picture, and pictures about which it fails a
control question, are left without a score (`premeditate.rewards.checklists.canary` and `controls` say why).
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from premeditate.errors import PremeditateError
from premeditate.prompts import checklists as words
from premeditate.prompts import get
from premeditate.prompts.base import LABELS, clean
from premeditate.prompts.general import failure, spoken
from premeditate.prompts.labels import read_label
from premeditate.reasoners.base import ChatRequest, Completion, Reasoner, chat_all
from premeditate.rewards.base import Sample, verdict_of
from premeditate.rewards.checklists import canary as canaries
from premeditate.rewards.checklists.canary import Canary, Tried
from premeditate.rewards.checklists.controls import Control, Controls, controls_for, failed
from premeditate.trace import Answer, ChecklistItem, Status, Task, Verdict

_EVIDENCE = 400
WORDS = 256
"""Tokens for an answer in words, at most: models may think first."""
KEPT = 65_536
"""Answers about sources held in memory."""


@dataclass
class _Question:
    """An item about two pictures on its way to an answer."""

    images: tuple[Image.Image, Image.Image]
    item: ChecklistItem
    answer: Answer | None = None
    tokens: int = 0

    @property
    def final(self) -> Answer:
        assert self.answer is not None
        return self.answer


@dataclass
class _Plan:
    """What is asked for one sample. `keys`: what each item's answer about the source is remembered by."""

    items: list[_Question] = field(default_factory=list)
    controls: list[tuple[Control, _Question]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


class ChecklistVerifier:
    """Judges with the *answer* skill of `reasoner`. All questions of a call go to the reasoner in one batch, those of
    one sample side by side, so that it can share their images."""

    uses_reasoner = True

    def __init__(
        self, reasoner: Reasoner, *, k: int = 1, temperature: float = 0.7, seed: int = 0, probabilities: bool = True,
        canary: bool = False, controls: Controls | None = None, explain: bool = False,
    ) -> None:  # fmt: skip
        """`k`: votes on an item where there are no label probabilities, drawn at `temperature` with the seeds `seed`,
        `seed` + 1, ...; 1: one answer at temperature 0. `probabilities`: False asks in words even where the reasoner
        could do better, say one that has to think first. `canary`: sets aside what proves nothing. `controls`: other
        control questions than those for the reasoner's prompt set. `explain`: asks for each item's evidence in words
        too, which takes another call per item (sets that speak JSON only).

        Raises ValueError for a `k` or a temperature that makes no sense."""
        if type(k) is not int or not 1 <= k <= 1_000:
            raise PremeditateError(f"k is {k!r}", "give the number of votes, a whole number from 1 to 1000")
        if isinstance(temperature, bool) or not 0 < temperature <= 10:
            raise PremeditateError(f"the temperature of votes is {temperature!r}", "give more than 0 and at most 10")
        self.reasoner = reasoner
        self.prompts = get(reasoner.prompts)
        self.k, self.temperature, self.seed, self.probabilities = k, float(temperature), seed, probabilities
        self.canary, self.explain = canary, explain and words.takes_examples(self.prompts)
        self.controls = controls or controls_for(self.prompts)
        self.max_batch: int | None = getattr(reasoner, "max_batch", None)
        self.concurrent = bool(getattr(reasoner, "concurrent", False))
        self._tried: OrderedDict[str, Tried] = OrderedDict()

    @property
    def name(self) -> str:
        return f"checklist ({self.reasoner.name})"

    def wants_checklist(self, task: Task) -> bool:
        return True

    async def verify(self, samples: Sequence[Sample]) -> list[Verdict]:
        """One verdict per sample, in order. Raises what the reasoner raises."""
        start = time.perf_counter()
        plans = [self._plan(sample) for sample in samples]
        tried, new = self._about_sources(list(zip(samples, plans, strict=True))) if self.canary else ({}, {})
        asked = [q for plan in plans for q in (*plan.items, *(question for _, question in plan.controls))]
        await self._answer([*asked, *new.values()])
        tried |= {key: canaries.tried(question.final) for key, question in new.items()}
        if self.explain:
            await self._explain([question for plan in plans for question in plan.items])
        seconds = (time.perf_counter() - start) / max(1, len(samples))
        verdicts = [self._verdict(s, p, tried, seconds) for s, p in zip(samples, plans, strict=True)]
        self._remember(tried)
        return verdicts

    async def canaries(self, samples: Sequence[Sample]) -> list[Canary]:
        """What the judge says of each sample's checklist where nothing was edited; the edit is not looked at. Raises
        what the reasoner raises."""
        plans = [_Plan(_questions(s), keys=_keys(s)) for s in samples]
        tried, new = self._about_sources(list(zip(samples, plans, strict=True)))
        await self._answer(list(new.values()))
        tried |= {key: canaries.tried(question.final) for key, question in new.items()}
        self._remember(tried)
        return [Canary(tuple(tried[key] for key in plan.keys)) for plan in plans]

    def _plan(self, sample: Sample) -> _Plan:
        items = _questions(sample)
        if not self.canary or not items:
            return _Plan(items)
        pair = (sample.source, sample.edit)
        controls = [(control, _Question(pair, control.item)) for control in self.controls(sample)]
        return _Plan(items, controls, _keys(sample))

    def _about_sources(self, work: Sequence[tuple[Sample, _Plan]]) -> tuple[dict[str, Tried], dict[str, _Question]]:
        """By key: what is known about the sources, which other calls may make us forget while this one waits; and the
        items that nobody asked about them yet, each once."""
        known: dict[str, Tried] = {}
        new: dict[str, _Question] = {}
        for sample, plan in work:
            for key, question in zip(plan.keys, plan.items, strict=True):
                if key in self._tried:
                    known[key] = self._tried[key]
                else:
                    new[key] = _Question((sample.source, sample.source), question.item)
        return known, new

    def _remember(self, tried: dict[str, Tried]) -> None:
        self._tried |= {key: one for key, one in tried.items() if one.answer.status == "scored"}
        while len(self._tried) > KEPT:
            self._tried.popitem(last=False)

    # -- asking --------------------------------------------------------------------------------------------------

    async def _answer(self, questions: Sequence[_Question]) -> None:
        """Fills in the answers: probabilities, else one answer in words, else votes."""
        open_ = list(questions)
        if self.probabilities or self.k == 1:
            labels = LABELS if self.probabilities else ()
            limit = 8 if self.probabilities else self._limit
            first = await chat_all(self.reasoner, [ChatRequest(q.images, self._text(q), labels, limit) for q in open_])
            for question, done in zip(open_, first, strict=True):
                question.answer, question.tokens = read_answer(question.item, done), done.tokens
            if self.k == 1:
                return
            # A reasoner that failed is not asked again; one that spoke where labels were wanted is asked for votes.
            open_ = [q for q, done in zip(open_, first, strict=True) if done.error is None and q.final.p_yes is None]
        votes = await chat_all(self.reasoner, [
            ChatRequest(q.images, self._text(q), (), self._limit, self.temperature, self.seed + i)
            for q in open_ for i in range(self.k)
        ])  # fmt: skip
        for at, question in enumerate(open_):
            said = votes[at * self.k : (at + 1) * self.k]
            question.answer = vote(question.item, said)
            question.tokens += sum(done.tokens for done in said)

    async def _explain(self, questions: Sequence[_Question]) -> None:
        asked = [q for q in questions if q.final.status == "scored"]
        said = await chat_all(
            self.reasoner, [ChatRequest(q.images, words.explain(q.item.question), max_tokens=WORDS) for q in asked]
        )
        for question, done in zip(asked, said, strict=True):
            question.tokens += done.tokens
            text = " ".join(spoken(done.text).split()) if done.error is None else ""
            if text:
                answer = question.final
                evidence = f"{text[:_EVIDENCE]} ({answer.evidence})" if answer.evidence else text[:_EVIDENCE]
                question.answer = answer.model_copy(update={"evidence": evidence})

    def _text(self, question: _Question) -> str:
        # A question is what a model or a file says: data, whoever wrote it.
        return self.prompts.answer(words.plain(question.item.question))

    @property
    def _limit(self) -> int:
        return min(WORDS, self.prompts.max_tokens)

    # -- putting together ----------------------------------------------------------------------------------------

    def _verdict(self, sample: Sample, plan: _Plan, tried: dict[str, Tried], seconds: float) -> Verdict:
        checklist = sample.checklist
        if checklist is None:
            return Verdict(status="unavailable", verifier=self.name, reason="there is no checklist", seconds=seconds)
        if checklist.status != "scored" or not checklist.items:
            status: Status = "unparsable" if checklist.status == "scored" else checklist.status
            return Verdict(status=status, verifier=self.name, reason=f"the checklist is {status}", seconds=seconds)
        answers = [question.final for question in plan.items]
        if plan.keys:
            answers = [canaries.mark(a, tried[key]) for a, key in zip(answers, plan.keys, strict=True)]
        fault = failed([c for c, _ in plan.controls], [q.final for _, q in plan.controls])
        if fault:
            answers = [Answer(item=a.item, status="unavailable", evidence=fault[:_EVIDENCE]) for a in answers]
        tokens = sum(q.tokens for q in (*plan.items, *(q for _, q in plan.controls)))
        return verdict_of(answers, self.name, seconds, tokens)


def read_answer(item: ChecklistItem, completion: Completion) -> Answer:
    """The answer that a completion gives: probabilities first, then its text; else a status that says why not."""
    if completion.error is not None:
        return Answer(item=item, status="unavailable", evidence=clean(completion.error)[:_EVIDENCE])
    yes, no = (completion.probabilities.get(label, 0.0) for label in LABELS)
    # NaN fails every comparison, so damaged probabilities fall through to the text.
    if completion.probabilities and 0 <= yes <= 1 and 0 <= no <= 1 and yes + no > 0:
        p_yes = min(1.0, yes / (yes + no))
        told = f"label probabilities: yes {yes:.3g}, no {no:.3g}"
        return Answer(item=item, status="scored", yes=p_yes > 0.5, p_yes=p_yes, evidence=told)
    text = spoken(completion.text).strip()
    label = read_label(text, LABELS)
    if label is None:
        return Answer(item=item, status=failure(text), evidence=text[:_EVIDENCE] or "an empty answer")
    return Answer(item=item, status="scored", yes=label == "yes", evidence=text[:_EVIDENCE])


def vote(item: ChecklistItem, completions: Sequence[Completion]) -> Answer:
    """The answer of several completions, each read by itself: p(yes) is the share of yes among those that answered.

    More than half have to answer, else the item has the commonest of the others' statuses; a tie is no answer either
    ("unparsable"): a coin would be random, and no would be a score."""
    answers = [read_answer(item, done) for done in completions]
    counted = [a for a in answers if a.status == "scored"]
    if 2 * len(counted) <= len(answers):
        missing = [a for a in answers if a.status != "scored"]
        status = Counter(a.status for a in missing).most_common(1)[0][0] if missing else "unparsable"
        why = next((a.evidence for a in missing if a.status == status), "")
        told = f"{len(counted)} of {len(answers)} votes could be read; {why}"
        return Answer(item=item, status=status, evidence=told[:_EVIDENCE])
    yes = sum(a.yes is True for a in counted)
    told = f"{yes} of {len(counted)} votes said yes"
    if 2 * yes == len(counted):
        return Answer(item=item, status="unparsable", evidence=f"{told}: a tie")
    won = 2 * yes > len(counted)
    sample = next(a.evidence for a in counted if (a.yes is True) == won)
    return Answer(item=item, status="scored", yes=won, p_yes=yes / len(counted),
                  evidence=f"{told}; {sample}"[:_EVIDENCE])  # fmt: skip


def _questions(sample: Sample) -> list[_Question]:
    checklist = sample.checklist
    items = checklist.items if checklist is not None and checklist.status == "scored" else ()
    return [_Question((sample.source, sample.edit), item) for item in items]


def _keys(sample: Sample) -> list[str]:
    """What an answer about the source is remembered by: the source and the item."""
    source = sample.source
    base = hashlib.sha256(f"{source.mode} {source.size}\0".encode() + source.tobytes()).hexdigest()
    return [f"{base} {question.item.dimension} {question.item.question}" for question in _questions(sample)]
