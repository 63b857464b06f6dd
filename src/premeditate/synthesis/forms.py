"""How a judge is asked for a thought, a verdict per principle and a score, and what its candidates are.

joint    one answer holds all of it (`premeditate.rewards.judges.rrm`): for models that write at length
apart    each principle is a question by itself and the thought is a critique: for models that answer single questions

In the form *apart*, p_k is p(yes) of principle k, and a candidate drawn at temperature T has

    verdict_k = p_k > 1/2                                          at T = 0
    verdict_k ~ Bernoulli(p_k^(1/T) / (p_k^(1/T) + (1-p_k)^(1/T)))  above
    thought   = the critique's problem, "good" where it has none
    score     = (10 * mean_k p_k + sqrt(semantic * quality)) / 2, with the critique's two scores, in [0, 10]

where the critique is drawn at T. A judge without label probabilities has p_k = 0 or 1. A candidate without a critique
that can be read, or without one of the answers, is not scored.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from premeditate.datasets.judged import Candidate
from premeditate.images import resize_back
from premeditate.prompts import get
from premeditate.reasoners.base import ChatRequest, Completion, Reasoner, chat_all
from premeditate.rewards.base import Sample
from premeditate.rewards.checklist import ChecklistVerifier
from premeditate.rewards.judges.rrm import PrincipleJudge
from premeditate.rewards.judges.votes import Repeats
from premeditate.trace import Critique, Status, Verdict

PROBLEM = 300
"""Characters kept of what was wrong with a candidate."""
GOOD = "good"


@dataclass(frozen=True)
class Asked:
    """An edit to judge. `last`: the prompt that made it. `seeds`: one for each temperature."""

    sample: Sample
    last: str
    seeds: tuple[int, ...]


class Judge(Protocol):
    """`name`: as it stands in the data. `candidates`: for each edit, one per temperature, in order; all that a judge
    is asked goes out at once. Raises what its reasoner raises."""

    name: str
    reasoner: Reasoner

    async def candidates(self, work: Sequence[Asked]) -> list[list[Candidate]]: ...


class _Drawn:
    """A reasoner whose n-th request gets the n-th temperature and seed."""

    def __init__(self, reasoner: Reasoner, draws: Sequence[tuple[float, int]]) -> None:
        self.reasoner, self.draws, self.prompts = reasoner, draws, reasoner.prompts

    @property
    def name(self) -> str:
        return self.reasoner.name

    async def chat(self, requests: Sequence[ChatRequest]) -> Sequence[Completion]:
        return await self.reasoner.chat(
            [replace(r, temperature=t, seed=s) for r, (t, s) in zip(requests, self.draws, strict=True)]
        )


class Joint:
    def __init__(self, reasoner: Reasoner, temperatures: Sequence[float], name: str) -> None:
        self.reasoner, self.temperatures, self.name = reasoner, tuple(temperatures), name

    async def candidates(self, work: Sequence[Asked]) -> list[list[Candidate]]:
        if not work:
            return []
        # The passes are the temperatures, each with a seed of the edit's own: with one seed for all edits, the same
        # noise would lean on every answer in the same way.
        draws = [(t, s) for one in work for t, s in zip(self.temperatures, one.seeds, strict=True)]
        count = len(self.temperatures)
        judge = PrincipleJudge(_Drawn(self.reasoner, draws), mode="both", name=self.name,
                               repeats=Repeats(count, temperature=1.0, least=1))  # fmt: skip
        opinions = await judge.judge([one.sample for one in work])
        found = []
        for one, opinion in zip(work, opinions, strict=True):
            row = []
            for t, s, said in zip(self.temperatures, one.seeds, opinion.passes, strict=True):
                if said.status == "scored":
                    row.append(Candidate(judge=self.name, temperature=t, seed=s, thought=said.thought,
                                         verdicts=said.verdicts, score=said.score))  # fmt: skip
                else:
                    row.append(unscored(self.name, t, s, said.status, said.thought))
            found.append(row)
        return found


class Apart:
    def __init__(self, reasoner: Reasoner, temperatures: Sequence[float], name: str) -> None:
        self.reasoner, self.temperatures, self.name = reasoner, tuple(temperatures), name
        self.prompts = get(reasoner.prompts)

    async def candidates(self, work: Sequence[Asked]) -> list[list[Candidate]]:
        if not work:
            return []
        verdicts, critiques = await asyncio.gather(
            ChecklistVerifier(self.reasoner).verify([one.sample for one in work]), self._critiques(work)
        )
        rest = iter(critiques)
        return [
            [self._candidate(verdict, next(rest), t, s) for t, s in zip(self.temperatures, one.seeds, strict=True)]
            for one, verdict in zip(work, verdicts, strict=True)
        ]

    async def _critiques(self, work: Sequence[Asked]) -> list[Critique]:
        requests = [self._request(one, t, s) for one in work for t, s in zip(self.temperatures, one.seeds, strict=True)]
        return [self._read(completion) for completion in await chat_all(self.reasoner, requests)]

    def _request(self, one: Asked, temperature: float, seed: int) -> ChatRequest:
        sample = one.sample
        return ChatRequest(
            (sample.source, resize_back(sample.edit, sample.source.size)),
            self.prompts.critique(sample.task.instruction, [one.last]), max_tokens=self.prompts.max_tokens,
            schema=self.prompts.schemas.get("critique"), temperature=temperature, seed=seed,
        )  # fmt: skip

    def _read(self, done: Completion) -> Critique:
        if done.error is not None:
            return Critique(status="unavailable", raw=done.error)
        return self.prompts.parse_critique(done.text)

    def _candidate(self, verdict: Verdict, critique: Critique, temperature: float, seed: int) -> Candidate:
        def missing(status: Status, why: str) -> Candidate:
            return unscored(self.name, temperature, seed, status, why)

        if verdict.status != "scored":
            return missing(verdict.status, verdict.reason)
        if critique.status != "scored":
            return missing(critique.status, f"the critique is {critique.status}: {critique.raw}")
        thought = critique.problem or (GOOD if critique.satisfied else "")
        if critique.semantic is None or critique.quality is None or not thought:
            return missing("unparsable", f"the critique lacks a score or a problem: {critique.raw}")
        p_yes = [a.p_yes if a.p_yes is not None else float(a.yes is True) for a in verdict.answers]
        rng = random.Random(f"verdicts/{seed}")
        verdicts = tuple(p > 0.5 if temperature == 0 else rng.random() < tempered(p, temperature) for p in p_yes)
        score = (10 * math.fsum(p_yes) / len(p_yes) + math.sqrt(critique.semantic * critique.quality)) / 2
        return Candidate(judge=self.name, temperature=temperature, seed=seed, thought=thought, verdicts=verdicts,
                         score=min(10.0, round(score, 4)))  # fmt: skip


def tempered(p: float, temperature: float) -> float:
    """p^(1/T) / (p^(1/T) + (1 - p)^(1/T)), for p in [0, 1] and T > 0."""
    if p in (0.0, 1.0):
        return p
    # In the logit it is a division, which no exponent can overflow.
    logit = (math.log(p) - math.log1p(-p)) / temperature
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


def unscored(judge: str, temperature: float, seed: int, status: Status, why: str) -> Candidate:
    told = " ".join(why.split())[:PROBLEM]
    return Candidate(judge=judge, temperature=temperature, seed=seed, status=status, problem=told or "an empty answer")


FORMS: dict[str, type[Joint] | type[Apart]] = {"joint": Joint, "apart": Apart}
