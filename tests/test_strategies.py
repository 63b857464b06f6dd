"""Strategies and selection: pure decisions over a trace."""

from __future__ import annotations

import random

import pytest

from premeditate.engine import strategies as s
from premeditate.engine.select import select
from premeditate.engine.strategies import Settings, next_action
from premeditate.trace import (
    Answer,
    Chain,
    ChecklistItem,
    Critique,
    Edit,
    ImageRef,
    Plan,
    Round,
    Task,
    Trace,
    Verdict,
)

REF = ImageRef(sha256="0" * 64, width=8, height=8)
TASK = Task(id="t", images=(REF,), instruction="melt the ice")
ITEM = ChecklistItem(question="Is it?", dimension="follow")
PLAN = Plan(steps=("remove the ice", "add a puddle"))
PASS = Verdict(status="scored", answers=(Answer(item=ITEM, status="scored", yes=True, p_yes=0.9),))
FAIL = Verdict(status="scored", answers=(Answer(item=ITEM, status="scored", yes=False, p_yes=0.3),))
DOWN = Verdict(status="unavailable", reason="the server is down")
BETTER = Critique(status="scored", satisfied=False, problem="no puddle", semantic=4, quality=9,
                  prompt=("add a puddle",), base="last")  # fmt: skip
HAPPY = Critique(status="scored", satisfied=True, semantic=9, quality=9, prompt=("remove the ice then add a puddle",))
NO_CRITIC = Critique(status="unavailable")
GARBLED = Critique(status="unparsable", raw="???")


def round_(prompt: str = "p", verdict: Verdict | None = None, critique: Critique | None = None, base: str = "original",
           seed: int = 0) -> Round:  # fmt: skip
    edit = Edit(prompt=prompt, base=base, source=REF, image=REF, seed=seed)  # type: ignore[arg-type]
    return Round(edits=(edit,), verdict=verdict, critique=critique)


def trace(*chains: Chain) -> Trace:
    return Trace(id="t", task=TASK, chains=chains or (Chain(),))


def act(
    name: str, *rounds: Round, plan: Plan | None = PLAN, others: tuple[Chain, ...] = (), **options: object
) -> object:
    settings = Settings(strategy=name, **options)  # type: ignore[arg-type]
    return next_action(trace(Chain(plan=plan, rounds=rounds), *others), 0, settings)


JOINED = "remove the ice then add a puddle"


def test_direct_sends_the_instruction_as_it_is() -> None:
    assert act("direct", plan=None) == s.MakeEdits(("melt the ice",))
    assert act("direct", round_(), plan=None) == s.Judge(0)
    assert act("direct", round_(verdict=FAIL), plan=None) == s.Stop("the strategy makes one edit")
    assert act("direct", round_(verdict=PASS), plan=None) == s.Stop("verified")
    assert act("direct", round_(), plan=None, judged=False) == s.Stop("the strategy makes one edit")


def test_plan_writes_then_edits_then_judges() -> None:
    assert act("plan", plan=None) == s.WritePlan()
    assert act("plan") == s.MakeEdits((JOINED,))
    assert act("plan", stepwise=True) == s.MakeEdits(PLAN.steps)
    assert act("plan", round_(JOINED)) == s.Judge(0)
    assert act("plan", round_(JOINED, PASS)) == s.Stop("verified")


@pytest.mark.parametrize("name", ["plan", "reflect", "think-while-edit"])
@pytest.mark.parametrize("status", ["unparsable", "unavailable", "refused"])
def test_without_a_plan_the_instruction_is_used(name: str, status: str) -> None:
    assert act(name, plan=Plan(status=status)) == s.MakeEdits(("melt the ice",))  # type: ignore[arg-type]


def test_reflect_edits_the_original_once_more() -> None:
    assert act("reflect", round_(verdict=FAIL)) == s.Critique(0)
    complete = BETTER.model_copy(update={"base": "original"})
    assert act("reflect", round_(verdict=FAIL, critique=complete)) == s.MakeEdits(("add a puddle",), "original")
    # A repair of the last picture is added to the plan, because it starts from the original again.
    assert act("reflect", round_(verdict=FAIL, critique=BETTER)) == s.MakeEdits((f"{JOINED} then add a puddle",))
    # Nothing usable from the critic: the same prompt with another seed, as the verdict did not pass.
    for critique in (NO_CRITIC, GARBLED):
        assert act("reflect", round_(verdict=FAIL, critique=critique)) == s.MakeEdits((JOINED,), "original")
    done = (round_(verdict=FAIL, critique=BETTER), round_())
    assert act("reflect", *done) == s.Judge(1)
    assert act("reflect", done[0], round_(verdict=FAIL)) == s.Stop("the strategy reflects once")
    assert act("reflect", round_(verdict=FAIL), max_rounds=1) == s.Stop("max_rounds is reached")


def test_reflect_keeps_a_verified_first_edit_unless_told_otherwise() -> None:
    assert act("reflect", round_(verdict=PASS)) == s.Stop("verified")
    assert act("reflect", round_(verdict=PASS), early_stop=False) == s.Critique(0)
    assert isinstance(act("reflect", round_(verdict=PASS, critique=HAPPY), early_stop=False), s.MakeEdits)


def test_think_while_edit_goes_on_until_verified() -> None:
    name = "think-while-edit"
    assert act(name, round_()) == s.Judge(0)
    assert act(name, round_(verdict=PASS)) == s.Stop("verified")
    assert act(name, round_(verdict=FAIL)) == s.Critique(0)
    assert act(name, round_(verdict=FAIL, critique=BETTER)) == s.MakeEdits(("add a puddle",), "last")
    assert act(name, round_(verdict=FAIL), max_rounds=1) == s.Stop("max_rounds is reached")


@pytest.mark.parametrize("critique", [HAPPY, NO_CRITIC, GARBLED])
@pytest.mark.parametrize("verdict", [FAIL, DOWN])
def test_a_round_that_did_not_pass_is_tried_again(critique: Critique, verdict: Verdict) -> None:
    """Neither a happy critic nor a silent one stands for the verifier; the complete prompt goes again."""
    action = act("think-while-edit", round_("the whole prompt", verdict, critique))
    if critique is HAPPY and verdict is DOWN:
        assert action == s.Stop("the critic is satisfied; the verifier was unavailable")
    else:
        assert action == s.MakeEdits(("the whole prompt",), "original")


def test_a_repair_is_never_repeated_on_top_of_itself() -> None:
    first = round_("the whole prompt", FAIL, BETTER)
    repair = round_("add a puddle", FAIL, NO_CRITIC, base="last")
    assert act("think-while-edit", first, repair) == s.MakeEdits(("the whole prompt",), "original")


def test_without_a_verifier_the_critic_decides_and_looks_at_every_round() -> None:
    name = "think-while-edit"
    assert act(name, round_(), judged=False) == s.Critique(0)
    assert act(name, round_(critique=HAPPY), judged=False) == s.Stop("the critic is satisfied")
    assert act(name, round_(critique=NO_CRITIC), judged=False) == s.MakeEdits(("p",), "original")
    assert act(name, round_(), judged=False, max_rounds=1) == s.Critique(0)
    assert act(name, round_(critique=BETTER), judged=False, max_rounds=1) == s.Stop("max_rounds is reached")


def test_a_verified_chain_ends_the_others_before_their_next_round() -> None:
    won = (Chain(plan=PLAN, rounds=(round_(verdict=PASS),), stopped="verified"),)
    for name in ("reflect", "think-while-edit"):
        assert act(name, others=won) == s.MakeEdits((JOINED,))
        assert act(name, round_(), others=won) == s.Judge(0)
        assert act(name, round_(verdict=FAIL), others=won) == s.Critique(0)  # it does not wait to know
        assert act(name, round_(verdict=FAIL, critique=BETTER), others=won) == s.Stop("another chain is verified")


def test_a_chain_waits_for_the_others_only_between_rounds() -> None:
    begun, judged = Chain(plan=PLAN, rounds=(round_(),)), Chain(plan=PLAN, rounds=(round_(verdict=FAIL),))
    failed, ahead = Chain(stopped="the editor failed"), Chain(rounds=(round_(verdict=FAIL), round_(verdict=PASS)))
    here = round_(verdict=FAIL, critique=BETTER)
    for name in ("reflect", "think-while-edit"):
        assert act(name, round_(verdict=FAIL), others=(begun,)) == s.Critique(0)
        assert act(name, here, others=(judged, begun)) == s.Wait()
        assert act(name, here, others=(begun,), judged=False) != s.Wait()
        assert act(f"best-of-n+{name}", here, others=(begun,)) == act(name, here)
        # What another chain reached in a later round is not known here: a faster one must not change the outcome.
        assert act(name, here, others=(judged, failed, ahead)) == act(name, here)


def test_best_of_n_runs_every_chain_to_its_end() -> None:
    won = (Chain(plan=PLAN, rounds=(round_(verdict=PASS),), stopped="verified"),)
    assert act("best-of-n", plan=None, others=won) == s.WritePlan()
    assert act("best-of-n", round_(verdict=FAIL), others=won) == s.Stop("the strategy makes one edit")
    assert isinstance(act("best-of-n+reflect", round_(verdict=FAIL, critique=BETTER), others=won), s.MakeEdits)


def test_the_expert_decides_whatever_the_verifier_says() -> None:
    decided = Critique(status="scored", satisfied=True, prompt=("p",))
    assert act("expert", round_(verdict=PASS)) == s.Critique(0)
    assert act("expert", round_(verdict=FAIL, critique=decided)) == s.Stop("the critic is satisfied")
    assert act("expert", round_(verdict=PASS, critique=BETTER)) == s.MakeEdits(("add a puddle",), "last")
    assert act("expert", round_(verdict=FAIL, critique=NO_CRITIC)) == s.MakeEdits(("p",), "original")


def test_the_first_edit_and_what_later_ones_start_from_can_be_set() -> None:
    assert act("think-while-edit", plan=None, first="instruction") == s.MakeEdits(("melt the ice",))
    here = round_(JOINED, FAIL, BETTER)
    assert act("think-while-edit", here, refine="last") == s.MakeEdits(("add a puddle",), "last")
    # A repair alone would not do from the original: it also needs what was done before.
    assert act("think-while-edit", here, refine="original") == s.MakeEdits((f"{JOINED} then add a puddle",))


def test_a_stopped_chain_does_nothing() -> None:
    for name in s.STRATEGIES:
        assert next_action(trace(Chain(stopped="verified")), 0, Settings(strategy=name)) is None


@pytest.mark.parametrize("options", [{"strategy": "wish"}, {"strategy": "best-of-n+"}, {"strategy": "best-of-n+wish"},
                                     {"first": "wish"}, {"refine": "wish"}, {"max_rounds": 0}, {"chains": 0},
                                     {"chains": 65}, {"seed": -1}, {"temperature": 3}])  # fmt: skip
def test_settings_say_what_is_allowed(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"use one of: |give a value from"):
        Settings(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*s.STRATEGIES, "best-of-n", "best-of-n+reflect"])
def test_every_strategy_ends_whatever_the_models_say(name: str) -> None:
    """Random outcomes: at most max_rounds rounds, every decision repeatable, and a last word from Stop."""
    rng = random.Random(0)
    for _ in range(300):
        settings = Settings(strategy=name, max_rounds=rng.randint(1, 5), judged=rng.random() < 0.7,
                            stepwise=rng.random() < 0.5, early_stop=rng.random() < 0.7)  # fmt: skip
        chain = Chain()
        for _ in range(100):
            action = next_action(trace(chain), 0, settings)
            assert action == next_action(trace(chain), 0, settings)
            rounds = list(chain.rounds)
            match action:
                case s.WritePlan():
                    assert chain.plan is None
                    chain = chain.model_copy(update={"plan": rng.choice((PLAN, Plan(status="unparsable")))})
                case s.MakeEdits():
                    assert action.prompts and all(action.prompts)
                    assert action.base == "original" or chain.rounds
                    edits = tuple(
                        Edit(prompt=p, base=action.base, source=REF, image=REF, seed=0) for p in action.prompts
                    )
                    chain = chain.model_copy(update={"rounds": (*rounds, Round(edits=edits))})
                case s.Judge():
                    assert settings.judged and rounds[action.round].verdict is None
                    rounds[action.round] = rounds[action.round].model_copy(
                        update={"verdict": rng.choice((PASS, FAIL, FAIL, DOWN))})  # fmt: skip
                    chain = chain.model_copy(update={"rounds": tuple(rounds)})
                case s.Critique():
                    assert rounds[action.round].critique is None
                    rounds[action.round] = rounds[action.round].model_copy(
                        update={"critique": rng.choice((BETTER, HAPPY, NO_CRITIC, GARBLED))})  # fmt: skip
                    chain = chain.model_copy(update={"rounds": tuple(rounds)})
                case s.Stop():
                    break
        else:
            pytest.fail("it never stopped")
        most = {"direct": 1, "plan": 1, "reflect": min(2, settings.max_rounds)}.get(name, settings.max_rounds)
        assert 1 <= len(chain.rounds) <= most
        assert not settings.judged or all(r.verdict is not None for r in chain.rounds)


def scored(*probabilities: float) -> Verdict:
    answers = tuple(Answer(item=ITEM, status="scored", yes=p > 0.5, p_yes=p) for p in probabilities)
    return Verdict(status="scored", answers=answers)


def chosen(*chains: tuple[Round, ...]) -> tuple[int, int, bool]:
    selection = select(trace(*(Chain(rounds=rounds) for rounds in chains)))
    assert selection is not None and selection.reason
    return selection.chain, selection.round, selection.verified


def test_the_best_verified_round_wins() -> None:
    assert chosen((round_(verdict=scored(0.6)), round_(verdict=scored(0.9)))) == (0, 1, True)
    assert chosen((round_(verdict=scored(0.9)), round_(verdict=scored(0.9)))) == (0, 0, True)
    assert chosen((round_(verdict=scored(0.3)), round_(verdict=scored(0.8))), (round_(verdict=scored(0.8)),)) == (
        1,
        0,
        True,
    )
    # A higher mean does not beat a passed checklist.
    assert chosen((round_(verdict=scored(0.99, 0.99, 0.45)), round_(verdict=scored(0.6, 0.6, 0.6)))) == (0, 1, True)


def test_unverified_means_the_best_scored_and_never_simply_the_last() -> None:
    assert chosen((round_(verdict=scored(0.45)), round_(verdict=scored(0.1)))) == (0, 0, False)
    assert chosen((round_(verdict=DOWN), round_(verdict=scored(0.1)), round_(verdict=DOWN))) == (0, 1, False)


def test_a_verdict_with_a_gap_is_not_a_score() -> None:
    gap = Verdict(status="unparsable", answers=(Answer(item=ITEM, status="scored", yes=True, p_yes=1.0),
                                                Answer(item=ITEM, status="unparsable")))  # fmt: skip
    assert chosen((round_(verdict=scored(0.2)), round_(verdict=gap))) == (0, 0, False)
    assert chosen((round_(verdict=gap),)) == (0, 0, False)


def test_the_critic_ranks_where_no_verdict_was_to_be_had() -> None:
    assert chosen((round_(critique=BETTER), round_(critique=HAPPY), round_())) == (0, 1, False)
    assert chosen((round_(), round_())) == (0, 0, False)
    assert chosen((round_(verdict=DOWN, critique=NO_CRITIC), round_(verdict=DOWN))) == (0, 0, False)


def test_the_reason_says_what_was_missing() -> None:
    selection = select(trace(Chain(rounds=(round_(verdict=DOWN),))))
    assert selection is not None
    assert selection.reason == "no verdict could be had (unavailable: the server is down); the first edit"
    assert select(trace(Chain())) is None


def test_a_hair_of_probability_does_not_choose_a_later_round() -> None:
    def scored(p: float, yes: bool) -> Round:
        answer = Answer(item=ITEM, status="scored", yes=yes, p_yes=p)
        return round_(verdict=Verdict(status="scored", answers=(answer,)))

    for yes in (True, False):
        near = select(trace(Chain(rounds=(scored(0.601, yes), scored(0.604, yes)))))
        far = select(trace(Chain(rounds=(scored(0.601, yes), scored(0.63, yes)))))
        assert near is not None and (near.round, near.verified) == (0, yes)
        assert far is not None and far.round == 1
