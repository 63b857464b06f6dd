"""Pairs of edits: published files read as they are, pairs of the micro world, and judges run on them."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from premeditate.benchmarks.reward_models import run
from premeditate.benchmarks.reward_models.protocols import tiger
from premeditate.benchmarks.reward_models.seeds import reseeding
from premeditate.datasets.preferences import BadPair, Pair, PairsError, read, same
from premeditate.microworld.checker import decode, is_exact
from premeditate.microworld.pairs import DAMAGES, damaged, grade, micro_pairs
from premeditate.microworld.reward import graded
from premeditate.microworld.tasks import sample_task
from premeditate.microworld.verifier import ExactVerifier
from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.rewards.base import Sample
from premeditate.rewards.specs import load_reward
from premeditate.trace import Answer, ChecklistItem, Verdict
from support.command import premeditate
from support.rewards import Plain, function


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in (("src", "white"), ("a", "red"), ("b", "green"), ("c", "blue"), ("d", "black"), ("e", "red")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    return tmp_path


def write(folder: Path, rows: Sequence[Any], *, lines: bool = True) -> Path:
    path = folder / ("rows.jsonl" if lines else "rows.json")
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return path


def pairs_of(path: Path, **options: Any) -> list[Pair]:
    found = list(read(path, **{"mix": None, **options}))
    assert all(isinstance(one, Pair) for one in found), found
    return found  # type: ignore[return-value]


def colours(pair: Pair) -> tuple[Any, Any]:
    return pair.first.getpixel((0, 0)), pair.second.getpixel((0, 0))


RED, GREEN = (255, 0, 0), (0, 128, 0)
EDITREWARD = {
    "prompt": "make it red", "choice_dist": None, "confidence": None, "path_src": "src.png", "path1": "a.png",
    "path2": "b.png", "model1": "MagicBrush", "model2": "Pix2PixZero", "model1_dim1_score": 4, "model2_dim1_score": 2,
    "model1_overall_score": 0.1, "model2_overall_score": 0.9,
}  # fmt: skip
RM_BENCH = {"prompt": "x", "path_src": "src.png", "paths_generated": ["a.png", "b.png", "c.png"]}
ROW = {"instruction": "x", "source_image": "src.png", "candidate_1": "a.png", "candidate_2": "b.png"}
EDITSCORE = {
    "key": ["k1", "k2"], "instruction": "x", "input_image": "src.png", "output_images": ["a.png", "b.png"],
    "task_type": "subject-add", "dimension": "consistency",
}  # fmt: skip


# -- published files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [True, False])
def test_editrewards_training_data(folder: Path, lines: bool) -> None:
    rows = [EDITREWARD, {**EDITREWARD, "tie_case": True}, {**EDITREWARD, "tie_case": False}]
    one, tie, other = pairs_of(write(folder, rows, lines=lines))
    assert one.preference == "first" and colours(one) == (RED, GREEN)  # path1, whatever the overall scores say
    assert (tie.preference, other.preference) == ("tie", "first") and one.instruction == "make it red"
    assert one.meta["model1"] == "MagicBrush" and len({p.id for p in (one, tie, other)}) == 3


def test_editreward_bench_with_scores(folder: Path) -> None:
    path = write(folder, [{**RM_BENCH, "human_vote": {"ranking": "C>A>B", "preference": "-"}}], lines=False)
    found = pairs_of(path)
    assert [(p.id[-4:], p.preference) for p in found] == [("AvsB", "first"), ("AvsC", "second"), ("BvsC", "second")]
    assert {p.kind for p in found} == {"3pair"} and len({p.group for p in found}) == 1
    assert len({name for p in found for name in p.names}) == 3
    assert tiger([p.group for p in found], [p.preference for p in found], [p.preference for p in found]).overall.k == 1


@pytest.mark.parametrize(
    ("ranking", "preference"),
    [("A>B", "first"), ("B>A", "second"), ("A<B", "second"), ("A=B=Good", "tie"), ("A=B=Bad", "tie"), ("A=B", "tie")],
)
def test_rankings_of_two(folder: Path, ranking: str, preference: str) -> None:
    row = {**RM_BENCH, "paths_generated": ["a.png", "b.png"], "human_vote": {"ranking": ranking}}
    assert [p.preference for p in pairs_of(write(folder, [row]))] == [preference]


def test_the_rows_of_editreward_bench(folder: Path) -> None:
    rows = [
        {**ROW, "id": "17_0", "ranking": "A>B", "comparison_type": "AvsB", "dataset": "3pair"},
        {**ROW, "id": "17_1", "ranking": "C>A", "comparison_type": "AvsC", "dataset": "3pair", "candidate_2": "c.png"},
    ]
    found = pairs_of(write(folder, rows))
    assert [(p.group, p.preference, p.names) for p in found] == [
        ("17", "first", ("17/A", "17/B")), ("17", "second", ("17/A", "17/C")),
    ]  # fmt: skip


def test_editscores_bench(folder: Path) -> None:
    (pair,) = pairs_of(write(folder, [EDITSCORE]))
    assert (pair.kind, pair.dimension, pair.preference) == ("subject-add", "consistency", "first")
    assert pair.names == ("k1", "k2") and colours(pair) == (RED, GREEN)


def test_a_winner_that_always_comes_first_is_mixed(folder: Path) -> None:
    path = write(folder, [EDITSCORE] * 100)
    found = [p for p in read(path, mix=0) if isinstance(p, Pair)]
    count = Counter(p.preference for p in found)
    assert min(count["first"], count["second"]) > 30
    for p in found:
        winner = colours(p)[0 if p.preference == "first" else 1]
        assert winner == RED and p.names[0 if p.preference == "first" else 1] == "k1"
    assert [p.preference for p in read(path, mix=0) if isinstance(p, Pair)] == [p.preference for p in found]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**EDITREWARD, "path2": "no.png"}, "no such file"),
        ({**EDITREWARD, "path2": "e.png"}, "the two edits are the same picture"),
        ({**EDITREWARD, "path1": "http://example.com/a.png"}, "an address, and none is fetched"),
        ({**EDITREWARD, "path1": None}, "a picture is no path"),
        ({**EDITREWARD, "prompt": " "}, "the instruction is empty"),
        ({**EDITREWARD, "prompt": ["a"]}, "its instruction is no text"),
        ({**EDITREWARD, "prompt": None}, "its instruction is no text"),
        ({k: v for k, v in EDITREWARD.items() if k != "prompt"}, "has no prompt"),
        ({**RM_BENCH, "human_vote": {"ranking": "A>B"}}, "does not name every one of A, B, C"),
        ({**RM_BENCH, "human_vote": {"ranking": "A>B<C"}}, "does not say which"),
        ({**RM_BENCH, "human_vote": {"ranking": "A>B>C>A"}}, "does not say which"),
        ({**RM_BENCH, "human_vote": {"ranking": "A=A>B>C"}}, "does not say which"),
        ({**RM_BENCH, "human_vote": {}}, "has no ranking"),
        ({**ROW, "id": "1", "ranking": "A>B>A"}, "does not say which of A and B"),
        ({**ROW, "id": "1", "ranking": "A>C"}, "does not say which of A and B"),
        ({**EDITSCORE, "output_images": ["a.png"]}, "not two each"),
        ({"x": 1}, "a row of no format"),
        ([1], "no JSON object"),
    ],
)
def test_a_row_that_is_no_pair_is_told_in_its_place(folder: Path, row: Any, said: str) -> None:
    found = list(read(write(folder, [EDITREWARD, row, EDITREWARD])))
    assert isinstance(found[0], Pair) and isinstance(found[-1], Pair) and len(found) >= 3
    assert all(isinstance(bad, BadPair) and said in bad.problem for bad in found[1:-1]), found[1:-1]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content, said in (
        ("none.jsonl", None, "cannot read"), ("empty.jsonl", b"\n", "is empty"), ("bad.json", b"[1,", "is no JSON"),
        ("deep.json", b"[" * 100_000, "is no JSON"), ("x.parquet", b"PAR1\xff\xfe", "parquet must be exported"),
    ):  # fmt: skip
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(PairsError, match=said):
            list(read(tmp_path / name))
    with pytest.raises(PairsError, match="no format 'csv'"):
        list(read(tmp_path / "none.jsonl", format="csv"))
    for line in ('{"a": 1\n', '{"a": ' + "[" * 100_000 + "\n"):
        (tmp_path / "cut.jsonl").write_text(line)
        assert isinstance(next(iter(read(tmp_path / "cut.jsonl"))), BadPair)


# -- the micro world --------------------------------------------------------------------------------------------------


def test_micro_pairs_prefer_what_the_exact_reward_scores_higher() -> None:
    pairs = micro_pairs(60, seed=3)
    assert len({p.id for p in pairs}) == 60
    kinds = Counter(d for p in pairs for d in p.meta["damages"])
    assert set(kinds) == set(DAMAGES)
    assert min(Counter(p.preference for p in pairs).values()) > 15  # chance decides who comes first
    for pair in pairs:
        assert not same(pair.first, pair.second) and pair.first.size == (64, 64)
        edits = [Sample(_task(pair), pair.source, edit) for edit in (pair.first, pair.second)]
        means = [np.mean(list(v.scores.values())) for v in asyncio.run(graded.score(edits))]
        np.testing.assert_allclose(means, pair.meta["grades"])
        exact = [damage == "none" for damage in pair.meta["damages"]]
        if any(exact):
            assert pair.preference == ("first" if exact[0] else "second")
        else:
            assert pair.preference == ("first" if means[0] > means[1] else "second")


def _task(pair: Pair) -> Any:
    from premeditate.trace import Task

    return Task(id=pair.id, images=(), instruction=pair.instruction, meta=pair.meta)


def test_each_damage_does_what_it_says() -> None:
    seen: Counter[str] = Counter()
    for seed in range(25):
        task = sample_task(seed)
        for damage in DAMAGES:
            image = damaged(task, damage, random.Random(seed))
            if image is None:
                continue
            seen[damage] += 1
            found = decode(image)
            wrong = task.target.changed(found.scene)
            changed = task.source.changed(task.target)
            match damage:
                case "none":
                    assert is_exact(task.target, found) and grade(task, image) == (True, 1.0)
                case "blurred cell":
                    assert found.sharp.count(False) == 1
                case "extra change":
                    assert len(wrong) == 1 and wrong[0] not in changed and all(found.sharp)
                case "wrong colour":
                    assert len(wrong) == 1 and wrong[0] in changed
                    one, two = found.scene[wrong[0]], task.target[wrong[0]]
                    assert one and two and one.shape == two.shape and one.colour != two.colour
                case "wrong cell":
                    assert any(i in changed for i in wrong) and any(i not in changed for i in wrong)
                case "unedited":
                    assert found.scene == task.source
            assert grade(task, image).success == (damage == "none")
    assert set(seen) == set(DAMAGES) and min(seen.values()) > 5


def test_micro_pairs_are_the_same_again() -> None:
    one, two = micro_pairs(5, seed=1), micro_pairs(5, seed=1)
    assert [(p.id, p.preference, p.first.tobytes()) for p in one] == [
        (p.id, p.preference, p.first.tobytes()) for p in two
    ]
    assert not {p.id for p in one} & {p.id for p in micro_pairs(5, seed=2)} and micro_pairs(0) == []
    with pytest.raises(ValueError, match="n is -1"):
        micro_pairs(-1)


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


def test_the_command(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("bench", "rewards", "micro", "--n", 20)
    done = premeditate(*words, "--reward", "premeditate.microworld.reward:graded", "--json")
    assert done.code == 0 and done.json["accuracy"]["wrong"]["value"] >= 0.9 and done.json["pairs"] == 20
    png = tmp_path / "r.png"
    done = premeditate(*words, "--reward", "exact", "--diagram", png)
    assert done.code == 0 and "ECE 0.000" in done.out and png.exists()
    path = write(folder, [EDITREWARD, {"x": 1}])
    (tmp_path / "mine.py").write_text(
        "def dull(samples):\n    return [None for s in samples]\n\n\n"
        "def red(samples):\n    return [s.edit.getpixel((0, 0))[0] for s in samples]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    done = premeditate("bench", "rewards", path, "--reward", "mine:red", "--json")
    assert done.code == 0 and (done.json["pairs"], done.json["bad"]) == (1, 1)
    assert done.json["accuracy"]["wrong"]["value"] == 1
    for more, code, said in (
        (("--reward", "mine:dull"), 5, "no edit of 2 pairs could be scored"),
        (("--reward", "mine:red", "--score", "x"), 2, "no dimension 'x'"),
        (("--reward", "mine:red", "--score", "a", "--score", "b"), 2, "given twice"),
        (("--reward", "mine:red", "--format", "x"), 2, "no format 'x'"),
    ):
        done = premeditate("bench", "rewards", path, *more)
        assert done.code == code and said in done.err, done.err
    assert premeditate("bench", "rewards", tmp_path / "none.jsonl", "--reward", "exact").code == 2


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
