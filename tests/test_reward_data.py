"""Pairs of edits: published files read as they are, pairs of the micro world, and judges run on them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from premeditate.benchmarks.reward_models.protocols import tiger
from premeditate.datasets.preferences import BadPair, Pair, PairsError, read, same
from premeditate.microworld.checker import decode, is_exact
from premeditate.microworld.pairs import DAMAGES, damaged, grade, micro_pairs
from premeditate.microworld.reward import graded
from premeditate.microworld.tasks import sample_task
from premeditate.rewards.base import Sample
from support.pair_files import EDITREWARD, EDITSCORE, GREEN, RED, RM_BENCH, ROW, colours, painted, pairs_of, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return painted(tmp_path)


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
        ("3pair/17", "first", ("3pair/17/A", "3pair/17/B")), ("3pair/17", "second", ("3pair/17/A", "3pair/17/C")),
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
