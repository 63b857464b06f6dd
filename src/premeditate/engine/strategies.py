"""Strategies: pure functions of the trace so far that say what a chain does next. They do no I/O and keep no state, so
every strategy is resumed, batched and logged by the same engine (`premeditate.engine.runner`).

direct             the instruction goes to the editor as it is
plan               a plan in explicit words, then the edit
reflect            ThinkRL-Edit (arXiv 2601.03467): plan, edit, reflect, edit the *original* again; one reflection
think-while-edit   EditThinker (arXiv 2512.05965): plan, edit, then critique and edit, up to `max_rounds`

Rules that hold for all of them:
- With a verifier every round is judged. A verdict that passed ends its chain (`early_stop=False` makes `reflect` edit
  twice whatever the verdict, as the paper does), and ends the other chains before their next round; they finish the
  round in hand, because the selection wants the best of what was made.
- Satisfaction is the verifier's word where there is one that answers; the critic's where there is none. A critic that
  could not be asked or read never counts as satisfied.
- A plan or a critique without a result falls back to the last complete prompt (at first the instruction itself), from
  the original image and with another seed. The record's `status` says that this happened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from premeditate.prompts.terse import JOIN
from premeditate.trace import Base, Chain, Round, Trace


@dataclass(frozen=True)
class Settings:
    """What a run does with each task.

    `max_rounds`: edits-and-looks per chain, at least 1 (`direct` and `plan` make one, `reflect` at most two).
    `chains`: reasoning paths per task; chain 0 is greedy, the others are sampled at `temperature` with their own seeds.
    `stepwise`: a prompt of several steps becomes one edit per step, each on the result of the one before.
    `judged`: there is a verifier. `early_stop`: `reflect` keeps a first edit that was verified.
    """

    strategy: str = "think-while-edit"
    max_rounds: int = 4
    chains: int = 1
    stepwise: bool = False
    seed: int = 0
    temperature: float = 0.8
    judged: bool = True
    early_stop: bool = True

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"there is no strategy {self.strategy!r}; use one of: {', '.join(STRATEGIES)}")
        ranges = (("max_rounds", 1, 64), ("chains", 1, 64), ("seed", 0, 2**63 - 1), ("temperature", 0, 2))
        for name, low, high in ranges:
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; give a value from {low} to {high}")


@dataclass(frozen=True)
class WritePlan:
    """Ask the reasoner for a plan."""


@dataclass(frozen=True)
class MakeEdits:
    """One round: `prompts[0]` on `base` (the original, or the last round's image), each further one on its result."""

    prompts: tuple[str, ...]
    base: Base = "original"


@dataclass(frozen=True)
class Judge:
    """Ask the verifier about a round."""

    round: int


@dataclass(frozen=True)
class Critique:
    """Ask the critic about a round."""

    round: int


@dataclass(frozen=True)
class Stop:
    reason: str


Action = WritePlan | MakeEdits | Judge | Critique | Stop
Strategy = Callable[[Trace, int, Settings], Action]


def direct(trace: Trace, chain: int, settings: Settings) -> Action:
    """One edit with the instruction as it is."""
    here = trace.chains[chain]
    if not here.rounds:
        return MakeEdits((trace.task.instruction,))
    return _judge(here, settings) or _stop(here, "the strategy makes one edit")


def plan(trace: Trace, chain: int, settings: Settings) -> Action:
    """A plan, then one edit with it."""
    here = trace.chains[chain]
    if here.plan is None:
        return WritePlan()
    if not here.rounds:
        return _edits(_planned(trace, here), "original", settings)
    return _judge(here, settings) or _stop(here, "the strategy makes one edit")


def reflect(trace: Trace, chain: int, settings: Settings) -> Action:
    """Plan, edit, reflect, and edit the original again with the refined prompt (ThinkRL-Edit, section 3.2)."""
    here = trace.chains[chain]
    if len(here.rounds) != 1:
        return plan(trace, chain, settings) if not here.rounds else _judge(here, settings) or _stop(
            here, "the strategy reflects once")  # fmt: skip
    if (action := _judge(here, settings)) is not None:
        return action
    if (stop := _may_stop(trace, chain)) is not None and settings.early_stop:
        return stop
    if settings.max_rounds < 2:
        return Stop("max_rounds is reached")
    critique = here.rounds[0].critique
    if critique is None:
        return Critique(0)
    if settings.early_stop and (stop := _contented(here, settings)) is not None:
        return stop
    prompt = critique.prompt
    if critique.status != "scored" or not prompt:
        prompt = _planned(trace, here)
    elif critique.base == "last":
        # A repair of the edited picture says only what is left: the original also needs what was already done.
        prompt = (*_planned(trace, here), *prompt)
    return _edits(prompt, "original", settings)


def think_while_edit(trace: Trace, chain: int, settings: Settings) -> Action:
    """Plan, edit, look, criticise, edit again ... until verified or `max_rounds` (EditThinker, section 3)."""
    here = trace.chains[chain]
    if not here.rounds:
        return plan(trace, chain, settings)
    if (action := _judge(here, settings)) is not None:
        return action
    if (stop := _may_stop(trace, chain)) is not None:
        return stop
    full = len(here.rounds) >= settings.max_rounds
    critique = here.rounds[-1].critique
    if critique is None and not (full and settings.judged):
        # Without a verifier the critic's scores rank the rounds, so the last one is looked at as well.
        return Critique(len(here.rounds) - 1)
    if (stop := _contented(here, settings)) is not None:
        return stop
    if full:
        return Stop("max_rounds is reached")
    assert critique is not None
    if critique.status == "scored" and critique.prompt and not critique.satisfied:
        return _edits(critique.prompt, critique.base, settings)
    # Nothing new from the critic, yet the round did not pass: the same complete prompt again, with another seed.
    return _edits(_complete(trace, here), "original", settings)


STRATEGIES: dict[str, Strategy] = {
    "direct": direct,
    "plan": plan,
    "reflect": reflect,
    "think-while-edit": think_while_edit,
}


def next_action(trace: Trace, chain: int, settings: Settings) -> Action | None:
    """What `chain` does next; None where it has stopped."""
    if trace.chains[chain].stopped is not None:
        return None
    return STRATEGIES[settings.strategy](trace, chain, settings)


def _planned(trace: Trace, chain: Chain) -> tuple[str, ...]:
    """The plan's steps, or the instruction itself where there is no plan to be had."""
    if chain.plan is not None and chain.plan.status == "scored" and chain.plan.steps:
        return chain.plan.steps
    return (trace.task.instruction,)


def _complete(trace: Trace, chain: Chain) -> tuple[str, ...]:
    """The prompts of the last round that started from the original."""
    for past in reversed(chain.rounds):
        if past.edits[0].base == "original":
            return tuple(edit.prompt for edit in past.edits)
    return _planned(trace, chain)


def _edits(steps: tuple[str, ...], base: Base, settings: Settings) -> MakeEdits:
    return MakeEdits(steps if settings.stepwise else (JOIN.join(steps),), base)


def _judge(chain: Chain, settings: Settings) -> Action | None:
    last = len(chain.rounds) - 1
    return Judge(last) if settings.judged and chain.rounds[last].verdict is None else None


def _passed(past: Round) -> bool:
    return past.verdict is not None and past.verdict.passed


def _may_stop(trace: Trace, chain: int) -> Stop | None:
    if _passed(trace.chains[chain].rounds[-1]):
        return Stop("verified")
    if any(_passed(past) for other in trace.chains for past in other.rounds):
        return Stop("another chain is verified")
    return None


def _contented(chain: Chain, settings: Settings) -> Stop | None:
    """The critic's word, where no verdict was to be had."""
    last = chain.rounds[-1]
    if last.critique is None or last.critique.status != "scored" or not last.critique.satisfied:
        return None
    if not settings.judged:
        return Stop("the critic is satisfied")
    if last.verdict is not None and last.verdict.status == "unavailable":
        return Stop("the critic is satisfied; the verifier was unavailable")
    return None


def _stop(chain: Chain, reason: str) -> Stop:
    return Stop("verified" if _passed(chain.rounds[-1]) else reason)
