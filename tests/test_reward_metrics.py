"""How judges are measured: against brute force, worked examples and published counts."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premeditate.benchmarks.reward_models.calibration import NoDiagram, draw, reliability
from premeditate.benchmarks.reward_models.pairwise import (
    TIES,
    accuracy,
    both_orders,
    calibrated,
    label,
    tie_threshold,
)
from premeditate.benchmarks.reward_models.protocols import (
    FOUR,
    TASKS,
    VOTES,
    editscore,
    four_label,
    four_of_scores,
    genai,
    task_name,
    tiger,
    tiger_labels,
)
from premeditate.benchmarks.reward_models.repeats import agreement, spread
from premeditate.datasets.preferences import SWAPPED, Preference
from premeditate.stats import wilson
from premeditate.trace import Answer, ChecklistItem, Dimension, Verdict

NAN = math.nan
LABELS: tuple[Preference, ...] = ("first", "second", "tie")
SAID = st.one_of(st.none(), st.sampled_from(LABELS))
PAIRS = st.lists(st.tuples(SAID, st.sampled_from(LABELS)), max_size=30)


# -- pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "eps", "said"),
    [
        (2.0, 1.0, 0.0, "first"), (1.0, 2.0, 0.0, "second"), (1.0, 1.0, 0.0, "tie"), (1.5, 1.0, 0.5, "tie"),
        (1.51, 1.0, 0.5, "first"), (None, 1.0, 0.0, None), (1.0, NAN, 9.0, None), (0.0, 0.0, 0.0, "tie"),
    ],
)  # fmt: skip
def test_what_two_scores_say(first: Any, second: Any, eps: float, said: Any) -> None:
    assert label(first, second, eps) == said


def test_every_policy_for_ties_by_hand() -> None:
    said: list[Preference | None] = ["first", "second", "tie", "tie", "first", None]
    truth: list[Preference] = ["first", "first", "first", "tie", "tie", "second"]
    found = {ties: accuracy(said, truth, ties) for ties in TIES}
    # Of the pairs that people decide one is right, one wrong, one tied, one missing.
    assert [(found[t].right, found[t].n) for t in TIES] == [(1, 3), (1.5, 3), (1, 2), (2, 5)]
    assert [(found[t].asked, found[t].missing, found[t].ties) for t in TIES] == [(4, 1, 1)] * 3 + [(6, 1, 2)]
    assert found["wrong"].coverage.value == 3 / 4 and found["label"].tie_rate.value == 2 / 5
    assert found["wrong"].interval == wilson(1, 3)
    assert accuracy([None], ["first"]).value is None and str(accuracy([], [])) == "-"
    with pytest.raises(ValueError, match="no policy 'ignore'"):
        accuracy([], [], "ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="argument"):
        accuracy(["first"], [])


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_accuracy_knows_no_order_and_a_missing_score_is_no_wrong_answer(pairs: list[tuple[Any, Any]]) -> None:
    for ties in TIES:
        found = accuracy([s for s, _ in pairs], [t for _, t in pairs], ties)
        turned = accuracy([s and SWAPPED[s] for s, _ in pairs], [SWAPPED[t] for _, t in pairs], ties)
        assert found == turned
        less = [(s, t) for s, t in pairs if s is not None]
        without = accuracy([s for s, _ in less], [t for _, t in less], ties)
        assert (without.right, without.n, without.interval) == (found.right, found.n, found.interval)
        if found.interval and found.value is not None:
            low, high = found.interval
            assert 0 <= low <= found.value <= high <= 1
    wrong, half = (accuracy([s for s, _ in pairs], [t for _, t in pairs], t) for t in ("wrong", "half"))
    assert half.right == wrong.right + wrong.ties / 2


def test_a_judge_that_likes_what_it_sees_first_is_found_out() -> None:
    truth: list[Preference] = ["first", "second"] * 50
    biased = both_orders(["first"] * 100, ["first"] * 100, truth)
    assert (biased.forward.value, biased.backward.value, biased.both.value) == (0.5, 0.5, 0.0)
    assert biased.consistent.value == 0 and biased.first_shown.value == 1
    fair = both_orders(truth, [SWAPPED[t] for t in truth], truth)
    assert (fair.forward.value, fair.backward.value, fair.both.value) == (1, 1, 1)
    assert fair.consistent.value == 1 and fair.first_shown.value == 0.5
    partly = both_orders(["first", None, "tie"], ["second", "first", "tie"], ["first", "first", "first"], "half")
    assert (partly.both.right, partly.both.n, partly.both.missing) == (1.5, 2, 1) and partly.consistent.n == 2


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4).map(lambda k: k / 2), st.sampled_from(LABELS)), max_size=14))
def test_the_tie_threshold_is_the_best_there_is(pairs: list[tuple[float, Preference]]) -> None:
    differences, truth = [d for d, _ in pairs], [t for _, t in pairs]

    def right(eps: float) -> float:
        return accuracy([label(d, 0.0, eps) for d in differences], truth, "label").right

    options = sorted({0.0, *map(abs, differences)})
    best = max(map(right, options))
    assert tie_threshold(differences, truth) == min(eps for eps in options if right(eps) == best)


def test_a_calibrated_threshold_is_found_on_the_other_half() -> None:
    rng = random.Random(0)
    truth = [rng.choice(LABELS) for _ in range(400)]
    centre = {"first": 2.0, "second": -2.0, "tie": 0.0}
    differences: list[float | None] = [rng.gauss(centre[t], 0.6) for t in truth]
    found, thresholds = calibrated(differences, truth)
    assert found.value is not None and found.value > 0.9 and all(0.5 < eps < 1.6 for eps in thresholds)
    assert accuracy([label(d, 0.0) for d in differences], truth, "label").value < 0.72
    assert calibrated(differences, truth) == (found, thresholds)  # the same halves again
    gone, _ = calibrated([None, NAN, 1.0], ["first"] * 3)
    assert (gone.n, gone.missing) == (1, 2)
    # A threshold fitted to noise does not flatter itself: coin-flip labels stay near a third.
    noise, _ = calibrated([rng.gauss(0, 1) for _ in truth], truth)
    assert noise.value is not None and noise.value < 0.45


# -- TIGER-Lab's groups -----------------------------------------------------------------------------------------------


def published(right: tuple[int, int, int], of: tuple[int, int, int] = (186, 150, 148)) -> Any:
    """Groups of 2, 3 and 4 edits with so many right ones; a wrong one has a single wrong pair."""
    groups: list[str] = []
    said: list[Preference | None] = []
    for size, count, good in zip((2, 3, 4), of, right, strict=True):
        for g in range(count):
            pairs = size * (size - 1) // 2
            groups += [f"{size}-{g}"] * pairs
            said += ["first"] * (pairs - 1) + ["first" if g < good else "second"]
    return groups, said


@pytest.mark.parametrize(
    ("right", "overall"),
    [((85, 41, 11), 28.31), ((48, 17, 2), 13.84), ((105, 64, 17), 38.43), ((107, 57, 19), 37.81)],
)
def test_the_published_overall_figures_are_right_groups_of_484(right: tuple[int, int, int], overall: float) -> None:
    groups, said = published(right)
    assert len(groups) == 1524
    found = tiger(groups, said, ["first"] * len(said))
    assert tuple(found.by_size[k].k for k in (2, 3, 4)) == right
    assert tuple(found.by_size[k].n for k in (2, 3, 4)) == (186, 150, 148)
    assert found.overall.n == 484 and round(100 * found.overall.k / 484, 2) == overall and found.left == 0


def test_the_published_random_judge() -> None:
    """Three labels for K = 2, a coin for every pair of the others: what the paper prints as random."""
    for size, pairs, expected in ((3, 3, 1 / 8), (4, 6, 1 / 64)):
        every = list(itertools.product(("first", "second"), repeat=pairs))
        said = [s for outcome in every for s in outcome]
        groups = [f"g{i}" for i, outcome in enumerate(every) for _ in outcome]
        assert tiger(groups, said, ["first"] * len(said)).by_size[size].value == expected


def test_a_group_without_one_answer_leaves_or_is_wrong() -> None:
    groups = ["a", "b", "b", "b"]
    said: list[Preference | None] = ["first", "first", None, "first"]
    left = tiger(groups, said, ["first"] * 4)
    assert (left.by_size[2].n, left.by_size[3].n, left.left, left.pairs.missing) == (1, 0, 1, 1)
    assert left.by_size[3].value is None and left.overall.value == 1
    wrong = tiger(groups, said, ["first"] * 4, missing="wrong")
    assert wrong.overall.value == 0.5 and wrong.left == 0
    with pytest.raises(ValueError, match="the group a has 2 pairs"):
        tiger(["a", "a"], ["first"] * 2, ["first"] * 2)


def test_scores_want_the_strict_order_beyond_two_edits() -> None:
    groups = ["two", "three", "three", "three"]
    scores = [(1.0, 1.2), (3.0, 2.9), (3.0, 1.0), (2.9, 1.0)]
    assert tiger_labels(groups, scores, eps=0.5) == ["tie", "first", "first", "first"]
    assert tiger_labels(["g"] * 3, [(1.0, 1.0), (None, 1.0), (2.0, 1.0)], eps=0.5) == ["tie", None, "first"]


# -- EditScore's tasks ------------------------------------------------------------------------------------------------


def test_editscore_is_the_plain_mean_over_tasks_and_ties_are_wrong() -> None:
    tasks = ["subject-add"] * 8 + ["Style Change"] * 2 + ["extract"] * 2
    said: list[Preference | None] = ["first"] * 6 + ["tie", "second"] + ["first", None] + ["tie", "tie"]
    found = editscore(tasks, ["overall"] * 12, said, ["first"] * 12)["overall"]
    values = {task: a.value for task, a in found.tasks.items()}
    assert values == {"subject_add": 0.75, "style_change": 1.0, "extract": 0.0}
    assert found.mean == pytest.approx((0.75 + 1.0 + 0.0) / 3) and found.pairs.right == 7 and found.pairs.n == 11
    assert found.pairs.ties == 3 and found.pairs.coverage.value == 11 / 12
    assert found.groups == {"subject": 0.75, "appearance": 1.0, "scene": 0.0, "advanced": None}
    low, high = found.interval or (1, 0)
    assert 0 <= low < found.mean < high <= 1


def test_editscore_knows_thirteen_tasks_in_four_groups() -> None:
    assert sum(map(len, TASKS.values())) == 13 and task_name(" Subject-Add ") == "subject_add"
    both = editscore(["text_change"] * 2, ["consistency", "overall"], ["first", "second"], ["first"] * 2)
    assert {d: t.mean for d, t in both.items()} == {"consistency": 1.0, "overall": 0.0}
    # Orders are mixed before a judge sees them: what wins is where the preference says.
    assert editscore(["x"], ["overall"], ["second"], ["second"])["overall"].mean == 1


# -- GenAI-Bench's labels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("**Final Verdict**: [[A>B]]", "A>B"), ("[[ B>A ]]", "B>A"), ("4. Both are bad: [[A=B=Bad]]", "A=B=Bad"),
        ("A=B=Good", "A=B=Good"), ("[[A>B]] ... so [[A>B]]", "A>B"), ("[[A>B]] or [[B>A]]", None), ("", None),
        ("A is better", None), ("[[A=B]]", None), (None, None), ("[[A>B", None), ("[A>B]", None),
    ],
)  # fmt: skip
def test_a_label_is_read_and_never_guessed(text: str | None, said: str | None) -> None:
    assert four_label(text) == said


@settings(max_examples=100, deadline=None)
@given(st.text("[]AB=><Good Bad", max_size=40))
def test_any_text_is_a_label_or_none(text: str) -> None:
    assert four_label(text) in (None, *FOUR)


@pytest.mark.parametrize(("percent", "right"), [(53.54, 492), (55.93, 514), (25.24, 232), (25.90, 238), (26.12, 240)])
def test_the_published_shares_are_counts_of_919(percent: float, right: int) -> None:
    truth = ["A=B=Bad"] * 392 + ["B>A"] * 263 + ["A>B"] * 240 + ["A=B=Good"] * 24
    said: list[Any] = [
        t if i < right else None if i % 2 else next(f for f in FOUR if f != t) for i, t in enumerate(truth)
    ]
    found = genai(said, truth, missing="wrong")  # type: ignore[arg-type]
    assert found.n == 919 and found.value is not None and round(100 * found.value, 2) == percent
    left = genai(said, truth)  # type: ignore[arg-type]
    assert left.right == right and left.n == 919 - said.count(None) == 919 - left.missing


def test_votes_and_scores_become_labels() -> None:
    assert set(VOTES.values()) == set(FOUR)
    assert four_of_scores(0.9, 0.2, good=0.5) == "A>B" and four_of_scores(0.1, 0.2, good=0.5) == "B>A"
    assert four_of_scores(0.8, 0.75, good=0.5, eps=0.1) == "A=B=Good"
    assert four_of_scores(0.3, 0.3, good=0.5) == "A=B=Bad" and four_of_scores(None, 0.3, good=0.5) is None


# -- calibration ------------------------------------------------------------------------------------------------------


def test_ece_by_hand() -> None:
    truth = [False, True, True, True, False, True, None, True]
    found = reliability([0.05, 0.15, 0.85, 0.95, 1.0, None, 0.5, NAN], truth, bins=2)
    # [0, 0.5): mean 0.1, half yes; [0.5, 1]: mean 2.8 / 3, two of three yes.
    assert [(b.low, b.yes.k, b.yes.n) for b in found.bins] == [(0.0, 1, 2), (0.5, 2, 3)]
    assert found.ece == pytest.approx((2 * 0.4 + 3 * abs(2 / 3 - 2.8 / 3)) / 5) and (found.n, found.missing) == (5, 3)
    assert found.brier == pytest.approx((0.05**2 + 0.85**2 + 0.15**2 + 0.05**2 + 1) / 5)
    assert found.coverage.value == 5 / 8


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=40), st.integers(1, 12), st.booleans())
def test_every_answer_is_in_one_bin(pairs: list[tuple[float, bool]], bins: int, by_count: bool) -> None:
    probabilities, truth = [p for p, _ in pairs], [t for _, t in pairs]
    found = reliability(probabilities, truth, bins, by="count" if by_count else "width")
    assert sum(b.yes.n for b in found.bins) == len(pairs) and len(found.bins) <= bins
    assert all(b.low - 1e-12 <= b.probability <= b.high + 1e-12 for b in found.bins)
    if pairs:
        last = found.bins[-1]
        parts = [[(p, t) for p, t in pairs if b.low <= p and (p < b.high or b is last)] for b in found.bins]
        by_hand = sum(len(q) * abs(np.mean([t for _, t in q]) - np.mean([p for p, _ in q])) for q in parts) / len(pairs)
        assert found.ece == pytest.approx(by_hand, abs=1e-9)
    else:
        assert found.ece is None and found.brier is None


def test_a_calibrated_judge_has_no_error_and_a_sure_one_has() -> None:
    rng = random.Random(0)
    probabilities = [rng.random() for _ in range(4000)]
    truth = [rng.random() < p for p in probabilities]
    honest, sure = reliability(probabilities, truth), reliability([float(p > 0.5) for p in probabilities], truth)
    assert honest.ece is not None and honest.ece < 0.03 and sure.ece is not None and sure.ece > 0.2
    counts = [b.yes.n for b in reliability([p**4 for p in probabilities], truth, by="count").bins]
    assert len(counts) == 10 and max(counts) == min(counts)
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        reliability([1.5], [True])
    with pytest.raises(ValueError, match="0 bins"):
        reliability([], [], bins=0)


def test_the_diagram_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = reliability([0.1, 0.2, 0.8, 0.9], [False, True, True, True])
    assert draw(found, tmp_path / "a.png", title="x").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(NoDiagram, match="no answer"):
        draw(reliability([], []), tmp_path / "b.png")


# -- repeats ----------------------------------------------------------------------------------------------------------


def test_variance_over_repeats() -> None:
    found = spread([[1.0, 5.0, NAN, 2.0], [3.0, 5.0, 4.0, None]])
    assert found.within == pytest.approx((2.0 + 0.0) / 2) and (found.edits, found.missing, found.scores) == (2, 2, 8)
    assert spread([[1.0, 2.0]]).within is None and spread([[NAN], [1.0]]).reliability is None
    with pytest.raises(ValueError, match="shape"):
        spread([1.0, 2.0])


def test_variance_components_are_recovered() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, 4000)
    scores = true + rng.normal(0, 1, (4, 4000))
    scores[rng.random(scores.shape) < 0.2] = NAN
    found = spread(scores)
    assert found.within == pytest.approx(1, rel=0.05) and found.between == pytest.approx(4, rel=0.08)
    assert found.reliability == pytest.approx(0.8, abs=0.02)
    assert spread(np.tile(true, (3, 1))).within == 0 and spread(np.tile(true, (3, 1))).reliability == 1


# -- the exact checker ------------------------------------------------------------------------------------------------


def verdict(*answers: tuple[Dimension, bool | None]) -> Verdict:
    return Verdict(
        status="scored",
        answers=tuple(
            Answer(item=ChecklistItem(question=f"q{i}?", dimension=d), yes=yes,
                   status="unparsable" if yes is None else "scored")
            for i, (d, yes) in enumerate(answers)
        ),
    )  # fmt: skip


def test_agreement_per_type_of_question() -> None:
    judged = [verdict(("follow", True), ("keep", True), ("quality", None)), verdict(("follow", False), ("keep", True))]
    exact = [verdict(("follow", True), ("keep", False), ("quality", True)), verdict(("follow", True), ("keep", None))]
    found = agreement(judged, exact)
    assert (found["follow"].agree.k, found["follow"].agree.n, found["follow"].false_no.k) == (1, 2, 1)
    assert (found["keep"].agree.k, found["keep"].false_yes.value, found["keep"].unknown) == (0, 1.0, 1)
    assert found["quality"].agree.n == 0 and found["quality"].coverage.value == 0  # not answered is not wrong
    assert (found["all"].agree.k, found["all"].agree.n, found["all"].asked) == (1, 3, 4)
    with pytest.raises(ValueError, match="different questions"):
        agreement(judged, exact[::-1])


def test_kappa() -> None:
    truth = [True] * 50 + [False] * 50
    always = agreement([verdict(*[("follow", True)] * 100)], [verdict(*[("follow", t) for t in truth])])["all"]
    assert always.agree.value == 0.5 and always.kappa == 0
    right = agreement([verdict(*[("follow", t) for t in truth])], [verdict(*[("follow", t) for t in truth])])["all"]
    assert right.kappa == 1
    same = agreement([verdict(("follow", True))], [verdict(("follow", True))])["all"]
    assert same.kappa is None
