"""Strategies: pure functions of the trace so far that say what a chain does next. They do no I/O and keep no state, so
every strategy is resumed, batched and logged by the same engine (`premeditate.engine.runner`).

direct             the instruction goes to the editor as it is
plan               a plan in explicit words, then the edit
reflect            ThinkRL-Edit (arXiv 2601.03467): plan, edit, reflect, edit the *original* again; one reflection
think-while-edit   EditThinker (arXiv 2512.05965): plan, edit, then critique and edit, up to `max_rounds`
expert             EditThinker's expert mode: as think-while-edit, but the critic decides by itself, without scores
best-of-n          `chains` plans, each edited once, to the end; the verifier chooses
best-of-n+S        the same over any other strategy S: no chain stops because another one is verified

Rules that hold for all of them:
- With a verifier every round is judged. A verdict that passed ends its chain (`early_stop=False` makes `reflect` edit
  twice whatever the verdict, as the paper does), and ends the other chains before their next round; they finish the
  round in hand, because the selection wants the best of what was made.
- Chains do not wait for each other inside a round: one is looked at while another is still being edited. Between two
  rounds they do, since what a chain does next depends on how the others' rounds ended, and a trace must not depend on
  who was faster.
- Satisfaction is the verifier's word where there is one that answers; the critic's where there is none, and always in
  `expert`. A critic that could not be asked or read never counts as satisfied.
- A plan or a critique without a result falls back to the last complete prompt (at first the instruction itself), from
  the original image and with another seed. The record's `status` says that this happened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack

from premeditate.prompts.terse import JOIN
from premeditate.trace import Base, Chain, Round, Trace


@dataclass(frozen=True)
class Settings:
    """What a run does with each task.

    `max_rounds`: edits-and-looks per chain, at least 1 (`direct` and `plan` make one, `reflect` at most two).
    `chains`: reasoning paths per task; chain 0 is greedy, the others are sampled at `temperature` with their own seeds.
    `stepwise`: a prompt of several steps becomes one edit per step, each on the result of the one before.
    `judged`: there is a verifier. `early_stop`: `reflect` keeps a first edit that was verified.
    `first`: what the first edit of a chain is made with, a "plan" or the "instruction" as it is (as EditThinker runs).
    `refine`: what later edits start from: the "original", the "last" result, or what the "critic" says.
    `history`: the critic is shown the earlier rounds' prompts and what was wrong with them.
    """

    strategy: str = "think-while-edit"
    max_rounds: int = 4
    chains: int = 1
    stepwise: bool = False
    seed: int = 0
    temperature: float = 0.8
    judged: bool = True
    early_stop: bool = True
    first: Literal["plan", "instruction"] = "plan"
    refine: Literal["critic", "original", "last"] = "critic"
    history: bool = False

    def __post_init__(self) -> None:
        if self.inner not in STRATEGIES or (self.competes and self.strategy == f"{BEST_OF_N}+"):
            known = (*STRATEGIES, BEST_OF_N, f"{BEST_OF_N}+STRATEGY")
            raise ValueError(f"there is no strategy {self.strategy!r}; use one of: {', '.join(known)}")
        for name, values in (("first", ("plan", "instruction")), ("refine", ("critic", "original", "last"))):
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}; use one of: {', '.join(values)}")
        ranges = (("max_rounds", 1, 64), ("chains", 1, 64), ("seed", 0, 2**63 - 1), ("temperature", 0, 2))
        for name, low, high in ranges:
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; give a value from {low} to {high}")

    @property
    def competes(self) -> bool:
        """Chains run to their end whatever the others reach."""
        return self.strategy.split("+")[0] == BEST_OF_N

    @property
    def inner(self) -> str:
        """What each chain does."""
        head, _, tail = self.strategy.partition("+")
        return (tail or "plan") if head == BEST_OF_N else self.strategy

    @property
    def decides(self) -> bool:
        """The critic decides, without scores."""
        return self.inner == "expert"


class Options(TypedDict, total=False):
    """The fields of `Settings`, as keywords; `judged` is the engine's to set."""

    strategy: str
    max_rounds: int
    chains: int | None
    stepwise: bool
    seed: int
    temperature: float
    early_stop: bool
    first: Literal["plan", "instruction"]
    refine: Literal["critic", "original", "last"]
    history: bool


def make_settings(**options: Unpack[Options]) -> Settings:
    """`Settings`; without `chains` there is one, and four for best-of-n. Raises ValueError with what is allowed."""
    chains = options.get("chains")
    if chains is None:
        chains = FOR_BEST_OF_N if options.get("strategy", "").startswith(BEST_OF_N) else 1
    return Settings(**{**options, "chains": chains})  # type: ignore[arg-type]


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


@dataclass(frozen=True)
class Wait:
    """Nothing, until another chain has gone on."""


Action = WritePlan | MakeEdits | Judge | Critique | Stop | Wait
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
    if here.plan is None and settings.first == "plan":
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
    if _passed(here.rounds[0]) and settings.early_stop:
        return Stop("verified")
    if settings.max_rounds < 2:
        return Stop("max_rounds is reached")
    critique = here.rounds[0].critique
    if critique is None:
        return Critique(0)
    if settings.early_stop and (stop := _contented(here, settings) or _others(trace, chain, settings)) is not None:
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
    if _passed(here.rounds[-1]) and not settings.decides:
        return Stop("verified")
    full = len(here.rounds) >= settings.max_rounds
    critique = here.rounds[-1].critique
    if critique is None and not (full and settings.judged):
        # Without a verifier the critic's scores rank the rounds, so the last one is looked at as well.
        return Critique(len(here.rounds) - 1)
    if (stop := _contented(here, settings)) is not None:
        return stop
    if full:
        return Stop("max_rounds is reached")
    if (action := _others(trace, chain, settings)) is not None:
        return action
    assert critique is not None
    if critique.status == "scored" and critique.prompt and not critique.satisfied:
        base = critique.base if settings.refine == "critic" else settings.refine
        prompt = critique.prompt
        if base == "original" and critique.base == "last":
            prompt = (*_complete(trace, here), *prompt)
        return _edits(prompt, base, settings)
    # Nothing new from the critic, yet the round did not pass: the same complete prompt again, with another seed.
    return _edits(_complete(trace, here), "original", settings)


STRATEGIES: dict[str, Strategy] = {
    "direct": direct,
    "plan": plan,
    "reflect": reflect,
    "think-while-edit": think_while_edit,
    "expert": think_while_edit,
}
BEST_OF_N, FOR_BEST_OF_N = "best-of-n", 4


def next_action(trace: Trace, chain: int, settings: Settings) -> Action | None:
    """What `chain` does next; None where it has stopped."""
    if trace.chains[chain].stopped is not None:
        return None
    return STRATEGIES[settings.inner](trace, chain, settings)


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


def _others(trace: Trace, chain: int, settings: Settings) -> Stop | Wait | None:
    """What the other chains have to say before this one begins its next round."""
    if settings.competes or not settings.judged:
        return None
    done = len(trace.chains[chain].rounds)
    others = [other for i, other in enumerate(trace.chains) if i != chain]
    if any(other.stopped is None and not _judged(other, done) for other in others):
        return Wait()
    if any(_passed(past) for other in others for past in other.rounds[:done]):
        return Stop("another chain is verified")
    return None


def _judged(chain: Chain, rounds: int) -> bool:
    return len(chain.rounds) >= rounds and chain.rounds[rounds - 1].verdict is not None


def _contented(chain: Chain, settings: Settings) -> Stop | None:
    """The critic's word, where it decides or no verdict was to be had."""
    last = chain.rounds[-1]
    if last.critique is None or last.critique.status != "scored" or not last.critique.satisfied:
        return None
    if not settings.judged or settings.decides:
        return Stop("the critic is satisfied")
    if last.verdict is not None and last.verdict.status == "unavailable":
        return Stop("the critic is satisfied; the verifier was unavailable")
    return None


def _stop(chain: Chain, reason: str) -> Stop:
    return Stop("verified" if _passed(chain.rounds[-1]) else reason)
