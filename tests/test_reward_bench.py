"""Judges on pairs of edits: what is counted, the published protocols, repeats, and the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from premeditate.benchmarks.reward_models import run
from premeditate.benchmarks.reward_models.seeds import reseeding
from premeditate.datasets.preferences import BadPair, Pair, read
from premeditate.microworld.pairs import micro_pairs
from premeditate.microworld.verifier import ExactVerifier
from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.rewards.base import Sample
from premeditate.rewards.specs import load_reward
from premeditate.trace import Answer, ChecklistItem, Verdict
from support.pair_files import EDITSCORE, ROW, bench, painted, pairs_of, reddened, vote, write
from support.rewards import Plain, function


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return reddened(painted(tmp_path))


# -- judges on pairs --------------------------------------------------------------------------------------------------


def brightness(sample: Sample) -> float:
    return float(np.asarray(sample.edit).mean())


def pair(name: str, first: int, second: int, preference: Any, **more: Any) -> Pair:
    grey = [Image.new("RGB", (4, 4), (v, v, v)) for v in (0, first, second)]
    return Pair(name, "brighter", *grey, preference, **more)


def test_a_report_counts_what_was_said() -> None:
    calls: list[int] = []

    def bright(ss: Sequence[Sample]) -> list[float | None]:
        calls.append(len(ss))
        return [None if brightness(s) == 7 else brightness(s) for s in ss]

    pairs = [
        pair("a", 9, 1, "first", kind="x"), pair("b", 9, 1, "second", kind="y"), pair("c", 5, 5, "first", kind="y"),
        pair("d", 7, 1, "first"), BadPair("e", "broken"), pair("f", 3, 3, "tie"),
    ]  # fmt: skip
    report = run.evaluate(function(bright), pairs, batch=4)
    assert calls == [8, 2] and [b.id for b in report.bad] == ["e"]
    assert [(report.accuracy(t).right, report.accuracy(t).n) for t in run.TIES] == [(1, 3), (1.5, 3), (1, 2), (2, 4)]
    assert report.accuracy().missing == 1 and report.statuses == {"scored": 9, "unavailable": 1}
    assert {k: a.value for k, a in report.by("kind").items()} == {"x": 1.0, "y": 0.0}
    data = report.to_json(rows=True)
    assert data["accuracy"]["wrong"]["coverage"] == 0.75 and data["rows"][3]["scores"] == [[None, 1.0]]
    assert json.loads(json.dumps(data)) and data["bad"] == 1 and data["problems"] == ["broken"]
    assert report.spread is None and report.reliability is None


def test_an_edit_in_several_pairs_is_scored_once_unless_it_is_judged_beside_another() -> None:
    seen: list[float] = []

    def bright(ss: Sequence[Sample]) -> list[float]:
        seen.extend(map(brightness, ss))
        return list(map(brightness, ss))

    trio = [
        pair("ab", 9, 5, "first", group="g", names=("A", "B")), pair("ac", 9, 1, "first", group="g", names=("A", "C")),
        pair("bc", 5, 1, "first", group="g", names=("B", "C")),
    ]  # fmt: skip
    assert run.evaluate(function(bright), trio, batch=1).accuracy().value == 1 and sorted(seen) == [1, 5, 9]
    seen.clear()
    run.evaluate(function(bright, groupwise=True), trio)
    assert len(seen) == 6


def test_an_edit_is_not_taken_for_another_of_its_name(folder: Path) -> None:
    """The public rows of editreward-bench hold ids twice."""
    other = {"instruction": "y", "source_image": "d.png", "candidate_1": "b.png", "candidate_2": "c.png"}
    rows = [{**ROW, "id": "7_AvsB", "ranking": "A>B"}, {**ROW, **other, "id": "7_AvsB", "ranking": "A>B"}]
    for groupwise in (False, True):
        judge = function(lambda ss: [s.edit.getpixel((0, 0))[0] for s in ss], groupwise=groupwise)
        report = run.evaluate(judge, pairs_of(write(folder, rows)))
        assert [row.scores for row in report.rows] == [((255.0, 0.0),), ((0.0, 0.0),)]
        assert [row.edits for row in report.rows] == [(0, 1), (2, 3)]

    def beside(ss: Sequence[Sample]) -> list[float]:
        assert len(ss) == 2 and len({s.group for s in ss}) == 1
        return [1.0, 0.0]

    assert run.evaluate(function(beside, groupwise=True, max_batch=1), pairs_of(write(folder, rows))).accuracy().n == 2


def test_an_edit_of_several_pairs_is_counted_once() -> None:
    names = (("A", "B"), ("A", "C"), ("B", "C"))
    values = {"A": 9, "B": 5, "C": 1}
    trio = [pair("".join(two), values[two[0]], values[two[1]], "first", group="g", names=two) for two in names]
    report = run.evaluate(function(lambda ss: [None if brightness(s) == 1 else 1.0 for s in ss]), trio, repeats=2)
    assert report.spread is not None and (report.spread.edits, report.spread.scores) == (2, 6)
    assert report.statuses == {"scored": 4, "unavailable": 2} and report.reasons == {"the function gave no score": 2}
    assert report.to_json()["reasons"] == {"the function gave no score": 2}


def test_repeats_turn_the_pairs_round() -> None:
    orders: list[list[float]] = []

    def first_is_best(ss: Sequence[Sample]) -> list[float]:
        orders.append(list(map(brightness, ss)))
        return [1.0 - k for k in range(len(ss))]

    judge = function(first_is_best, groupwise=True, max_batch=2)
    pairs = [pair(str(k), 9, 1, "first" if k % 2 else "second") for k in range(6)]
    report = run.evaluate(judge, pairs, repeats=2)
    assert orders == [[9.0, 1.0]] * 6 + [[1.0, 9.0]] * 6
    assert report.orders is not None and report.orders.first_shown.value == 1 and report.orders.consistent.value == 0
    assert report.accuracy().ties == 6  # the means of both orders
    assert report.spread is not None and report.spread.within == pytest.approx(0.5)
    single = report.to_json()["repeats"]["single"]
    assert [one["value"] for one in single] == [0.5, 0.5]


def test_which_score_is_compared() -> None:
    judge = Plain(lambda s: {"low": brightness(s), "high": -3 * brightness(s)})
    judge.calls = []
    pairs = [pair("a", 9, 1, "first", dimension="x", kind="extract"), pair("b", 9, 1, "second", dimension="y")]
    for p in pairs:
        p.meta["k"] = 0
    assert run.evaluate(judge, pairs, score="low").accuracy().right == 1
    report = run.evaluate(judge, pairs, score={"x": "low", "y": "high"})
    assert report.accuracy().right == 2 and report.tasks["x"].mean == 1.0
    assert [row.difference for row in run.evaluate(judge, pairs).rows] == [-8.0, -8.0]  # the mean of both
    with pytest.raises(ValueError, match="no dimension 'middle'; it has low, high"):
        run.evaluate(judge, pairs, score="middle")
    with pytest.raises(ValueError, match="0 repeats"):
        run.evaluate(judge, pairs, repeats=0)


def test_the_checker_answers_the_judges_questions() -> None:
    class Yes:
        """Says yes to whether all is sharp, with 80 %."""

        name, dimensions = "yes", ("quality",)

        async def score(self, samples: Sequence[Sample]) -> list[Verdict]:
            item = ChecklistItem(question="is every shape sharp?", dimension="quality")
            answer = Answer(item=item, status="scored", yes=True, p_yes=0.8)
            return [Verdict(status="scored", answers=(answer,), scores={"quality": 1.0}) for _ in samples]

    pairs = micro_pairs(12)
    report = run.evaluate(Yes(), pairs, checker=ExactVerifier())
    blurred = sum(d == "blurred cell" for p in pairs for d in p.meta["damages"])
    found = report.agreement["quality"]
    assert (found.agree.n, found.false_yes.k, found.false_yes.n) == (24, blurred, blurred) and found.false_no.k == 0
    assert report.reliability is not None
    assert report.reliability.ece == pytest.approx(abs(0.8 - (24 - blurred) / 24))
    assert report.accuracy("half").value == 0.5  # it tells nothing apart


@pytest.mark.parametrize(
    ("score", "said"),
    [
        ({"x": "low"}, "some pairs are about 'y', .*; add --score y=NAME"),
        ({"x": "low", "y": "high", "z": "low"}, "no pair is about 'z'; they are about x, y"),
    ],
)
def test_a_score_is_said_for_every_dimension_of_the_pairs_and_no_other(score: Any, said: str) -> None:
    judge = Plain(lambda s: {"low": 1.0, "high": 2.0})
    pairs = [pair("a", 9, 1, "first", dimension="x"), pair("b", 9, 1, "first", dimension="y")]
    with pytest.raises(ValueError, match=said):
        run.evaluate(judge, pairs, score=score)
    assert not judge.calls  # nothing was asked before
    with pytest.raises(ValueError, match="some pairs are about 'y'"):
        run.evaluate(judge, iter(pairs), score={"x": "low"})
    with pytest.raises(ValueError, match="do not say what they are about"):
        run.evaluate(judge, [pair("a", 9, 1, "first")], score=score)


# -- published protocols, of all that the file holds ------------------------------------------------------------------


def redder(ss: Sequence[Sample]) -> list[float]:
    return [float(s.edit.getpixel((0, 0))[0]) for s in ss]


def tiger_of(path: Path, how: str = "strict") -> Any:
    found = run.evaluate(function(redder), read(path)).tiger[how]
    return ({k: (r.k, r.n) for k, r in found.all.by_size.items()}, (found.all.overall.k, found.all.overall.n),
            (found.answered.overall.k, found.answered.overall.n), found.answered.left)  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "sizes", "overall", "answered", "left"),
    [
        ([bench("r", "s"), bench("r", "s", "t"), bench("r", "s", "t", "u")], {2: (1, 1), 3: (1, 1), 4: (1, 1)},
         (3, 3), (3, 3), 0),
        ([bench("r", "s", "no"), bench("r", "s", "t", "no")], {3: (0, 1), 4: (0, 1)}, (0, 2), (0, 0), 2),
        ([bench("r", "s", "t", "t")], {4: (0, 1)}, (0, 1), (0, 0), 1),  # two equal edits
        ([bench("no", "r"), bench("r", "s")], {2: (1, 2)}, (1, 2), (1, 1), 1),  # nothing of a group can be read
        ([bench("r", "s", "t", ranking="A>B"), bench("r", "s")], {2: (1, 1), 3: (0, 1)}, (1, 2), (1, 1), 1),
        ([bench("s", "r")], {2: (0, 1)}, (0, 1), (0, 1), 0),
    ],
)  # fmt: skip
def test_a_group_that_cannot_be_read_is_still_one(
    folder: Path, rows: Any, sizes: Any, overall: Any, answered: Any, left: int
) -> None:
    assert tiger_of(write(folder, rows)) == (sizes, overall, answered, left)


def erb(id: str, two: str, compared: str = "AvsB", kind: str = "2pair", **more: Any) -> dict[str, Any]:
    return {"id": id, "instruction": "x", "source_image": "src.png", "candidate_1": f"{two[0]}.png",
            "candidate_2": f"{two[1]}.png", "comparison_type": compared, "dataset": kind,
            "ranking": compared.replace("vs", ">"), **more}  # fmt: skip


def test_groups_of_rows_whose_ids_come_again(folder: Path) -> None:
    trio = [erb("7_0", "rs", kind="3pair"), erb("7_1", "rt", "AvsC", "3pair"), erb("7_2", "st", "BvsC", "3pair")]
    two = [erb("7_0", "rs"), erb("7_0", "ts", instruction="y"), erb("7_0", "rs")]  # the third is the first again
    assert tiger_of(write(folder, [*trio, *two])) == ({2: (1, 2), 3: (1, 1)}, (2, 3), (2, 3), 0)
    lost = [*trio[:2], {**trio[2], "ranking": "?"}, erb("8_0", "r-"), *two]
    assert tiger_of(write(folder, lost)) == ({2: (1, 3), 3: (0, 1)}, (1, 4), (1, 2), 2)


@pytest.mark.parametrize(("n", "count"), [(1, 3), (3, 3), (5, 4), (9, 4), (10, 10), (99, 11), (None, 11)])
def test_a_part_of_a_file_cuts_no_group(folder: Path, n: int | None, count: int) -> None:
    rows = [bench("r", "s", "no"), bench("r", "s"), bench("r", "s", "t", "u"), bench("r", "s")]
    pairs = list(run.load_pairs(str(write(folder, rows)), n))
    assert len(pairs) == count
    (loose,) = run.load_pairs(str(write(folder, [EDITSCORE] * 3)), 1)
    assert loose.group == ""


def test_ties_of_two_edits_have_a_threshold_from_the_other_half(folder: Path) -> None:
    rows = [bench("r", "s", ranking="A=B") if k % 2 else bench("r", "u") for k in range(40)]
    strict, calibrated = tiger_of(write(folder, rows))[1], tiger_of(write(folder, rows), "calibrated")[1]
    assert (strict, calibrated) == ((20, 40), (40, 40))


def test_genai_bench(folder: Path) -> None:
    kinds = [vote("r", "u", "leftvote"), vote("u", "r", "rightvote"), vote("r", "s", "tievote"),
             vote("t", "u", "bothbad_vote")]  # fmt: skip
    found = run.evaluate(function(redder), read(write(folder, [*kinds * 20, vote("r", "no", "leftvote")])))
    assert len(found.rows) == 80 and found.rows[0].four == ("A>B" if found.rows[0].preference == "first" else "B>A")
    assert {r.four for r in found.rows} == {"A>B", "B>A", "A=B=Good", "A=B=Bad"}
    strict, calibrated = found.genai["strict"], found.genai["calibrated"]
    assert (strict.all.right, strict.all.n, strict.answered.n) == (40, 81, 80)  # no score ties
    assert (calibrated.all.right, calibrated.all.n, calibrated.all.missing) == (80, 81, 1)
    assert all(eps == 64 and 96 < good <= 224 for eps, good in calibrated.thresholds)
    data = json.loads(json.dumps(found.to_json(rows=True)))
    assert data["genai"]["calibrated"]["all"]["n"] == 81 and "tiger" not in data
    (bad,) = read(write(folder, [vote("r", "s", "maybe")]))
    assert isinstance(bad, BadPair) and "'maybe' is none of leftvote" in bad.problem
    # EditReward-Bench's groups of two may say as much.
    rows = [bench("r", "s", ranking="A=B=Good"), bench("t", "u", ranking="A=B=Bad"), bench("r", "u")]
    assert run.evaluate(function(redder), read(write(folder, rows))).genai["strict"].all.n == 3


# -- repeats of judges that sample ------------------------------------------------------------------------------------


def test_every_repeat_has_seeds_of_its_own() -> None:
    class Noisy:
        """Scores by the seed alone, as a backend that honours seeds would draw."""

        name, prompts = "noisy", "general"
        seeds: ClassVar[list[int]] = []
        closed = 0

        async def chat(self, requests: Sequence[ChatRequest]) -> list[Completion]:
            self.seeds.extend(r.seed for r in requests)
            return [Completion(json.dumps({"reasoning": "x", "score": [r.seed // 1000, 5]})) for r in requests]

        async def aclose(self) -> None:
            self.closed += 1

    noisy, asked = Noisy(), []

    def load(spec: str) -> Any:
        asked.append(spec)
        return noisy

    pairs = [pair("a", 9, 1, "first"), pair("b", 1, 9, "first")]
    report = run.evaluate(reseeding("viescore[temperature=1,seed=2000]:x", load), pairs, repeats=3)
    assert report.spread is not None and report.spread.within and report.settings["reseeded"]
    assert set(noisy.seeds) == {2000, 3000, 4000} and asked == ["x"] and noisy.closed
    again = run.evaluate(load_reward("viescore[temperature=1,seed=2000]:x", load), pairs, repeats=3)
    assert again.spread is not None and again.spread.within == 0 and not again.settings["reseeded"]
    # A checklist is written once, and a reward that asks nobody is the same one each time.
    make = reseeding("reasoner:x", load)
    one, two = make(0), make(1)
    assert one is not two and one.builder is two.builder  # type: ignore[attr-defined]
    make = reseeding("exact", load)
    assert make(0) is make(1)
    with pytest.raises(ValueError, match="different dimensions"):
        run.evaluate(lambda r: function(lambda ss: [], dimensions=(f"d{r}",)), [], repeats=2)
