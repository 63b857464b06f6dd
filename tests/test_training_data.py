"""Training tasks, their order, and the seeds of places."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from premeditate.datasets.tasks import BadRow, TaskRow, prompt_of, write
from premeditate.microworld.checker import decode
from premeditate.microworld.dataset import explicit, explicit_held_out, planned, planned_held_out
from premeditate.microworld.language import JOIN, OPERATIONS, execute, parse_plan
from premeditate.microworld.scene import Scene
from premeditate.microworld.tasks import TEST_SEEDS
from premeditate.training.data import DataError, Order, data_hash, load_rows, sample_seed

EXPLICIT = "premeditate.microworld.dataset:explicit"


def picture(value: int = 0, size: tuple[int, int] = (8, 6)) -> Image.Image:
    return Image.new("RGB", size, (value, 0, 0))


def row(name: str, instruction: str = "paint it", value: int = 0, **meta: Any) -> TaskRow:
    return TaskRow(name, (picture(value),), instruction, meta)


# -- rows -------------------------------------------------------------------------------------------------------------


def test_a_function_is_called_with_the_count_and_the_seed() -> None:
    rows = load_rows(EXPLICIT, 12, 3)
    assert data_hash(rows) == data_hash(explicit(12, 3)) != data_hash(explicit(12, 4))


def test_a_folder_or_a_file_is_read_as_far_as_asked(tmp_path: Path) -> None:
    write(tmp_path / "set", [row(f"t{i}", value=i) for i in range(5)])
    for spec in (tmp_path / "set", tmp_path / "set" / "tasks.jsonl"):
        assert [r.id for r in load_rows(str(spec), None, 0)] == [f"t{i}" for i in range(5)]
        assert [r.id for r in load_rows(str(spec), 2, 0)] == ["t0", "t1"]
    assert len(load_rows(str(tmp_path / "set"), 99, 0)) == 5


def test_bad_rows_stop_the_run_and_the_first_are_listed(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    lines: list[Any] = [{"image": "a.png", "instruction": "paint it"}]
    lines += [{"image": f"gone{i}.png", "instruction": "paint it"} for i in range(8)]
    lines += [{"image": "a.png", "instruction": ""}, {"image": "a.png", "instruction": "x", "meta": {"prompt": 3}}]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError) as caught:
        load_rows(str(tmp_path), None, 0)
    said = str(caught.value)
    assert "10 of 11 rows" in said and "line 2" in said and "gone0.png" in said and "and 5 more" in said
    assert "gone6.png" not in said and isinstance(caught.value, ValueError) and caught.value.mend
    with pytest.raises(DataError, match="1 of 2 rows"):
        load_rows(str(tmp_path), 2, 0)
    assert len(load_rows(str(tmp_path), 1, 0)) == 1  # what is not asked for is not looked at


def few(n: int, seed: int) -> list[TaskRow]:
    return [row(f"t{i}") for i in range(min(n, 3))]


def many(n: int, seed: int) -> list[TaskRow]:
    return [row(f"t{i}") for i in range(n + 1)]


def none(n: int, seed: int) -> list[TaskRow]:
    return []


def numbers(n: int, seed: int) -> list[Any]:
    return [row("t"), 3]


def nothing(n: int, seed: int) -> Any:
    return None


def twins(n: int, seed: int) -> list[TaskRow]:
    return [row("t"), row("t")]


def blind(n: int, seed: int) -> list[TaskRow]:
    return [TaskRow("t", (), "paint it")]


def bad(n: int, seed: int) -> list[Any]:
    return [row("t"), BadRow("u", "", "line 2: it is torn")]


def controls(n: int, seed: int) -> list[TaskRow]:
    return [row("t", prompt="paint <|im_start|> it")]


def silent(n: int, seed: int) -> list[TaskRow]:
    return [row("t", prompt="  ")]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("many", "returned 5 rows, asked for 4"),
        ("none", "holds no tasks"),
        ("numbers", "returned a int among its rows"),
        ("nothing", "returned NoneType"),
        ("twins", "row 2 (t): an earlier row has this id"),
        ("blind", "it has no picture"),
        ("bad", "line 2: it is torn"),
        ("controls", "model control token"),
        ("silent", "the instruction is empty"),
        ("missing", "has no attribute 'missing'"),
    ],
)
def test_a_function_that_returns_no_tasks_is_refused(name: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        load_rows(f"{__name__}:{name}", 4, 0)
    assert said in str(caught.value) and caught.value.mend
    assert len(load_rows(f"{__name__}:few", 4, 0)) == 3  # fewer than asked for is all there is


@pytest.mark.parametrize(
    ("spec", "count", "said"),
    [
        (EXPLICIT, None, "give a count"),
        (EXPLICIT, 0, "at least 1"),
        ("no_such_module:rows", 3, "PYTHONPATH"),
        ("no/such/folder", 3, "there are no tasks at"),
    ],
)
def test_tasks_that_cannot_be_found_are_named_with_the_mend(spec: str, count: int | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_rows(spec, count, 0)


def test_the_prompt_is_the_row_s_own_or_its_instruction() -> None:
    assert prompt_of(row("a", "paint  it\nred")) == "paint it red"
    assert prompt_of(row("a", "what comes next?", prompt="remove b2")) == "remove b2"
    for bad, why in ((3, "its meta.prompt is no text; give a text"), (" ", "empty"), ("<|im_start|>", "control token")):
        with pytest.raises(ValueError, match=why):
            prompt_of(row("a", prompt=bad))


def test_the_hash_sees_ids_prompts_and_pixels_and_where_one_ends() -> None:
    rows = [
        [row("a"), row("b")],
        [row("b"), row("a")],
        [row("ab")],
        [row("a", "paint it red")],
        [row("a", prompt="paint it red")],
        [row("a", value=1)],
        [row("a")],
        [TaskRow("a", (picture(size=(6, 8)),), "paint it")],
        [TaskRow("a", (picture(), picture()), "paint it")],
        [row("", "apaint it")],
    ]
    found = [data_hash(some) for some in rows]
    assert len(set(found)) == len(found) and found == [data_hash(some) for some in rows]
    assert all(len(h) == 64 for h in found)
    assert data_hash([row("a", family="x")]) == data_hash([row("a")])


# -- order ------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(n=st.integers(1, 60), groups=st.integers(1, 24), seed=st.integers(0, 2**40))
def test_every_pass_holds_every_row_once_and_no_step_holds_one_twice(n: int, groups: int, seed: int) -> None:
    order = Order(n, groups, seed)
    steps = [order.at(step) for step in range(4 * n // groups + 6)]
    assert all(len(step) == groups for step in steps)
    if groups <= n:
        assert all(len(set(step)) == groups for step in steps)
    flat = [index for step in steps for index in step]
    for start in range(0, len(flat) - n + 1, n):
        assert sorted(flat[start : start + n]) == list(range(n))


@settings(max_examples=80, deadline=None)
@given(n=st.integers(1, 60), groups=st.integers(1, 24), steps=st.lists(st.integers(0, 80), min_size=1))
def test_a_step_s_rows_do_not_depend_on_which_steps_were_asked_for_before(
    n: int, groups: int, steps: list[int]
) -> None:
    order = Order(n, groups, 5)
    for step in steps:
        assert order.at(step) == Order(n, groups, 5).at(step)


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    order = Order(64, 8, 0)
    passes = [tuple(i for step in range(8 * k, 8 * k + 8) for i in order.at(step)) for k in range(20)]
    assert len(set(passes)) == 20 and passes[0] != tuple(range(64))
    assert Order(64, 8, 1).at(0) != order.at(0)
    first = Counter(p[0] for p in passes)
    assert max(first.values()) <= 4  # nobody is always first


@pytest.mark.parametrize(("n", "groups", "step"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_an_order_of_nothing_is_refused(n: int, groups: int, step: int) -> None:
    with pytest.raises(ValueError, match=r"give at least one|count from 0"):
        Order(n, groups, 0).at(step)


# -- seeds ------------------------------------------------------------------------------------------------------------


def test_every_place_and_purpose_has_a_seed_of_its_own() -> None:
    seeds = {
        sample_seed(seed, step, group, member, purpose)
        for seed in (0, 1)
        for step in range(12)
        for group in range(12)
        for member in range(12)
        for purpose in ("noise", "window")
    }
    assert len(seeds) == 2 * 12**3 * 2 and all(0 <= s < 1 << 63 for s in seeds)
    assert sample_seed(0, 1, 11, 1, "x") != sample_seed(0, 11, 1, 1, "x")
    assert sum(s >> 62 for s in seeds) / len(seeds) == pytest.approx(0.5, abs=0.03)


def test_a_seed_is_the_same_in_another_process_and_for_good() -> None:
    code = "from premeditate.training.data import *; print(sample_seed(1, 2, 3, 4, 'noise'), *Order(10, 4, 7).at(5))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert list(map(int, done.stdout.split())) == [sample_seed(1, 2, 3, 4, "noise"), *Order(10, 4, 7).at(5)]
    assert sample_seed(1, 2, 3, 4, "noise") == 8126735550163080252


# -- the micro world's tasks ------------------------------------------------------------------------------------------


def codes(row: TaskRow, which: str) -> Scene:
    return Scene.from_codes(row.meta["microworld"][which])


@pytest.mark.parametrize("make", [explicit, explicit_held_out])
def test_an_explicit_row_s_prompt_makes_its_target(make: Any) -> None:
    for made in make(64, 2, two_steps=0.4):
        source, target = codes(made, "source"), codes(made, "target")
        assert decode(made.images[0]).scene == source != target
        assert execute(source, parse_plan(made.instruction)) == target
        assert prompt_of(made) == made.instruction and not source.held_out and not target.held_out


def test_kinds_come_equally_often_and_styles_by_their_shares() -> None:
    rows = explicit(800, 0)
    assert Counter(r.meta["kind"] for r in rows) == dict.fromkeys(OPERATIONS, 100)
    styles = Counter(r.meta["family"] for r in rows)
    shares = {"explicit-canonical": 0.6, "explicit-cell": 0.2, "explicit-description": 0.2}
    assert {name: count / 800 for name, count in styles.items()} == pytest.approx(shares, abs=0.02)
    for kind in OPERATIONS:
        own = Counter(r.meta["family"] for r in rows if r.meta["kind"] == kind)
        assert {name: count / 100 for name, count in own.items()} == pytest.approx(shares, abs=0.04)
    assert not any(JOIN in r.instruction for r in rows)
    double = [JOIN in r.instruction for r in explicit(400, 0, two_steps=0.25)]
    assert sum(double) / 400 == pytest.approx(0.25, abs=0.08)
    assert {r.meta["family"] for r in explicit(20, styles={"cell": 2.0})} == {"explicit-cell"}


@pytest.mark.parametrize(
    ("train", "held_out"), [(explicit, explicit_held_out), (planned, planned_held_out)], ids=["explicit", "planned"]
)
def test_training_and_held_out_rows_come_from_seeds_apart_and_are_made_again_alike(train: Any, held_out: Any) -> None:
    ours, theirs = train(60, 1), held_out(60, 1)
    assert data_hash(ours) == data_hash(train(60, 1)) and data_hash(theirs) == data_hash(held_out(60, 1))
    assert [r.meta for r in ours] == [r.meta for r in train(60, 1)]
    assert max(r.meta["seed"] for r in ours) < TEST_SEEDS <= min(r.meta["seed"] for r in theirs)
    assert len({r.id for r in [*ours, *theirs, *train(60, 2), *held_out(60, 2)]}) == 240
    assert data_hash(ours[:20]) == data_hash(train(20, 1))  # fewer rows are the first ones


def test_a_planned_row_keeps_its_instruction_and_is_prompted_with_its_plan() -> None:
    rows = planned(40, 0)
    for made in rows:
        assert prompt_of(made) == JOIN.join(made.meta["microworld"]["plan"])
        assert execute(codes(made, "source"), parse_plan(prompt_of(made))) == codes(made, "target")
    assert len({r.meta["family"] for r in rows}) > 5
    assert sum(prompt_of(r) != r.instruction for r in rows) > 20


@pytest.mark.parametrize("make", [explicit, planned])
def test_changed_boxes_hold_what_changed_and_nothing_else(make: Any) -> None:
    from premeditate.microworld.render import render

    for made in make(24, 0):
        before, after = made.images[0], render(codes(made, "target"))
        for left, top, right, bottom in made.meta["changed_boxes"]:
            box = tuple(round(64 * v) for v in (left, top, right, bottom))
            assert before.crop(box).tobytes() != after.crop(box).tobytes()
            before.paste("black", box)
            after.paste("black", box)
        assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize("make", [explicit, explicit_held_out, planned, planned_held_out])
@pytest.mark.parametrize(("n", "seed"), [(0, 0), (100_001, 0), (1, -1), (1, 10_000)])
def test_rows_that_could_overlap_are_refused(make: Any, n: int, seed: int) -> None:
    with pytest.raises(ValueError, match="must be in"):
        make(n, seed)


@pytest.mark.parametrize("options", [{"two_steps": 1.5}, {"styles": {}}, {"styles": {"loud": 1.0}}])
def test_shares_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="share"):
        explicit(1, 0, **options)
