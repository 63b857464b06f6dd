"""The answer: the best verified round of all chains, the untouched first edit included; never simply the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from premeditate.trace import Round, Selection, Trace


def select(trace: Trace) -> Selection | None:
    """The round to hand back, and why; None where no edit was made.

    1. verified rounds: the highest mean p(yes), to two decimals; ties go to fewer rounds, then the earlier chain;
    2. none verified: the highest mean p(yes) among the rounds that were scored;
    3. none scored by a verifier: the highest score of the critic, sqrt(semantic x quality) / 10;
    4. nothing scored: the first edit.
    Only (1) is `verified`.
    """
    rounds = list(_rounds(trace))
    if not rounds:
        return None
    passed = [r for r in rounds if r[2].verdict is not None and r[2].verdict.passed]
    if passed:
        chain, index, score = _best(passed, _verdict_score)
        n = len(passed[0][2].verdict.answers) if len(passed) == 1 and passed[0][2].verdict else 0
        what = f"all {n} checks passed" if n else f"the highest score ({score:.2f}) of {len(passed)} verified rounds"
        return Selection(chain=chain, round=index, verified=True, reason=what)
    scored = [r for r in rounds if _verdict_score(r[2]) is not None]
    if scored:
        chain, index, score = _best(scored, _verdict_score)
        verdict = trace.chains[chain].rounds[index].verdict
        assert verdict is not None
        yes = sum(a.yes is True for a in verdict.answers)
        checks = f"{yes} of {len(verdict.answers)} checks passed"
        reason = (f"no round was verified; the highest score ({score:.2f}, {checks}) of"
                  f" {_count(len(scored), 'scored round')}")  # fmt: skip
        return Selection(chain=chain, round=index, verified=False, reason=reason)
    why = _unscored(rounds)
    looked = [r for r in rounds if _critic_score(r[2]) is not None]
    if looked:
        chain, index, score = _best(looked, _critic_score)
        reason = f"{why}; the critic's highest score ({score:.2f}) of {_count(len(looked), 'round')}"
        return Selection(chain=chain, round=index, verified=False, reason=reason)
    chain, index, _ = rounds[0]
    return Selection(chain=chain, round=index, verified=False, reason=f"{why}; the first edit")


def _rounds(trace: Trace) -> Iterator[tuple[int, int, Round]]:
    """(chain, round index, round): earliest rounds first, so that the first of equals is the cheapest."""
    found = [(c, i, r) for c, chain in enumerate(trace.chains) for i, r in enumerate(chain.rounds)]
    return iter(sorted(found, key=lambda entry: (entry[1], entry[0])))


def _best(rounds: list[tuple[int, int, Round]], score: Callable[[Round], float | None]) -> tuple[int, int, float]:
    # A hundredth of a probability is no evidence: rounds that close are equals, and max keeps the first of equals.
    chain, index, best = max(rounds, key=lambda entry: round(score(entry[2]) or 0.0, 2))
    return chain, index, score(best) or 0.0


def _verdict_score(past: Round) -> float | None:
    return None if past.verdict is None else past.verdict.score


def _critic_score(past: Round) -> float | None:
    critique = past.critique
    if critique is None or critique.status != "scored" or critique.semantic is None or critique.quality is None:
        return None
    return float((critique.semantic * critique.quality) ** 0.5 / 10)


def _unscored(rounds: list[tuple[int, int, Round]]) -> str:
    verdicts = [r.verdict for _, _, r in rounds if r.verdict is not None]
    if not verdicts:
        return "no verifier looked at the rounds"
    kinds = ", ".join(sorted({v.status for v in verdicts}))
    reason = next((v.reason for v in verdicts if v.reason), "")
    return f"no verdict could be had ({kinds}{': ' + reason if reason else ''})"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
