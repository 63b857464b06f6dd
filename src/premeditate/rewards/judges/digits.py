"""The digit-logit judge of UniWorld-V2 (arXiv 2510.16888): the expectation of the digit that a model would say.

With z_d the logit of digit d at the place where the answer begins, p = softmax(z_0 .. z_5) and

    score = sum_d d p_d / 5    in [0, 1].

Nothing is generated, so there is no reasoning either, and the score moves where a sampled digit would not. It means
something only where the model was about to say a digit at all: the *captured mass* is the share of the whole
distribution that the six digits hold.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from premeditate.errors import ModelError
from premeditate.prompts.general import failure
from premeditate.prompts.judging import DIGITS, EVIDENCE, digit
from premeditate.reasoners.base import ChatRequest, Completion, Reasoner, close
from premeditate.rewards.base import Sample
from premeditate.rewards.judges.votes import ask
from premeditate.trace import Status, Verdict

WHOLE = 1e-3
"""How far a sum of shares may be from 1 by rounding."""
MASS = 0.5


@dataclass(frozen=True)
class Digit:
    """`score` in [0, 1], None unless "scored". `sd`: of the digit, on the same scale. `mass`: captured, None where the
    reasoner hands on shares that it has already made to sum to 1."""

    status: Status
    score: float | None = None
    sd: float | None = None
    mass: float | None = None
    reason: str = ""


class DigitScore:
    """`least_mass`: the captured mass without which a sample is not scored. A task's meta["requirement"] is put beside
    the instruction. A reasoner that has no probabilities, or counts sampled answers instead, is "unavailable"."""

    dimensions: tuple[str, ...] = ("overall",)

    def __init__(self, reasoner: Reasoner, *, least_mass: float = MASS, name: str = "digits") -> None:
        """Raises `ModelError` for a reasoner of the terse prompt set, which was never asked for a digit."""
        if not 0 <= least_mass <= 1:
            raise ValueError(f"least_mass is {least_mass}; give a share from 0 to 1")
        if reasoner.prompts == "terse":
            raise ModelError(f"{reasoner.name} speaks terse prompts, among which there is no question for a digit",
                             "use viescore or reasoner, or another model")  # fmt: skip
        self.reasoner, self.least_mass, self.name = reasoner, least_mass, name
        self.max_batch: int | None = getattr(reasoner, "max_batch", None)
        self.concurrent = bool(getattr(reasoner, "concurrent", False))

    async def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        """One verdict per sample, in order. Raises what the reasoner raises."""
        start = time.perf_counter()
        completions = await ask(self.reasoner, [[self._request(sample)] for sample in samples])
        seconds = (time.perf_counter() - start) / max(1, len(samples))
        return [self._verdict(done, seconds) for (done,) in completions]

    async def aclose(self) -> None:
        await close(self.reasoner)

    def _request(self, sample: Sample) -> ChatRequest:
        requirement = sample.task.meta.get("requirement")
        text = digit(sample.task.instruction, requirement if isinstance(requirement, str) else "")
        return ChatRequest((sample.source, sample.edit), text, labels=DIGITS, max_tokens=4)

    def _verdict(self, done: Completion, seconds: float) -> Verdict:
        found = read_digit(done, self.least_mass)
        scores = {} if found.score is None else {"overall": found.score}
        return Verdict(status=found.status, scores=scores, verifier=self.name, reason=found.reason, seconds=seconds,
                       tokens=done.tokens)  # fmt: skip


def read_digit(done: Completion, least_mass: float = MASS) -> Digit:
    """The expected digit of a completion, as a share of the largest."""
    if done.error is not None:
        return Digit("unavailable", reason=done.error[:EVIDENCE])
    if not done.probabilities:
        if failure(done.text) == "refused":
            return Digit("refused", reason=done.text[:EVIDENCE])
        return Digit("unavailable", reason="the reasoner gave no label probabilities")
    if done.text:  # a reasoner that reads probabilities off writes nothing
        return Digit("unavailable", reason="the reasoner counted sampled answers, which are no label probabilities")
    return expectation(done.probabilities, least_mass)


def expectation(shares: Mapping[str, float], least_mass: float = MASS) -> Digit:
    """E[d] / 5 over the digits in `shares`, made to sum to 1; a digit that is absent has none."""
    found = [shares.get(label, 0.0) for label in DIGITS]
    mass = math.fsum(found) if all(0 <= share <= 1 + WHOLE for share in found) else math.nan
    if not 0 <= mass <= 1 + WHOLE:
        return Digit("unparsable", reason="the shares of the digits are no probabilities")
    told = None if mass > 1 - WHOLE else mass
    if mass == 0 or mass < least_mass:
        why = f"the digits hold {mass:.3f} of the probability, less than {least_mass:g}"
        return Digit("unparsable", mass=told, reason=why)
    values = [k / (len(DIGITS) - 1) for k in range(len(DIGITS))]
    mean = min(1.0, math.fsum(v * p for v, p in zip(values, found, strict=True)) / mass)
    variance = math.fsum((v - mean) ** 2 * p for v, p in zip(values, found, strict=True)) / mass
    held = "mass not told" if told is None else f"mass {mass:.3f}"
    return Digit("scored", mean, math.sqrt(variance), told, f"sd {math.sqrt(variance):.3f}, {held}")
