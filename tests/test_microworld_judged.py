"""Judged edits of the micro world: the tasks, the editor that damages, and the whole pipeline with the tiny models."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from premeditate.datasets import judged
from premeditate.editors.base import Editor, EditRequest
from premeditate.microworld import dataset
from premeditate.microworld.checker import Decoded, answer, decode
from premeditate.microworld.damages import damaging, editor
from premeditate.microworld.language import PlanError, execute, parse_plan
from premeditate.microworld.render import render
from premeditate.microworld.scene import CELLS, Scene
from premeditate.microworld.verifier import ExactVerifier
from premeditate.rewards.base import Sample
from premeditate.trace import Checklist, Task
from support.command import premeditate


def target_of(meta: dict) -> Scene:  # type: ignore[type-arg]
    return Scene.from_codes(meta["microworld"]["target"])


# -- tasks --------------------------------------------------------------------------------------------------------


def test_rows_for_judging_are_half_tasks_and_half_prompts_with_true_principles() -> None:
    rows = dataset.judged(200, 3)
    assert rows == dataset.judged(200, 3) and len({r.id for r in rows}) == 200
    explicit = [r for r in rows if r.id.startswith("explicit-train-")]
    assert len(explicit) == 100 and rows[1::2] == explicit
    assert 20 <= sum(" then " in r.meta["prompt"] for r in explicit) <= 46
    longer = 0
    for row in rows:
        target, source = target_of(row.meta), decode(row.images[0]).scene
        assert execute(source, parse_plan(row.meta["prompt"])) == target
        asked = row.meta["checklist"]
        true = row.meta["microworld"]["checklist"]
        assert [i for i in asked if i in true] == true and len({i["question"] for i in asked}) == len(asked)
        more = [i for i in asked if i not in true]
        assert len(more) <= 2 and {i["dimension"] for i in more} <= {"keep"}
        longer += bool(more)
        right = Decoded(target, (True,) * CELLS, (0.0,) * CELLS)
        assert all(answer(i["question"], source, right) is True for i in asked)
        # On the source a question about what is kept says yes too, and some other says no.
        before = Decoded(source, (True,) * CELLS, (0.0,) * CELLS)
        assert all(answer(i["question"], source, before) is True for i in more)
        assert not all(answer(i["question"], source, before) for i in asked)
    assert 75 <= longer <= 125
    assert len(dataset.judged(1)) == 1 and len(dataset.judged(7)) == 7
    assert not {r.id for r in rows} & {r.id for r in dataset.judged_held_out(200, 3)}


# -- damages ------------------------------------------------------------------------------------------------------


def test_damages_are_graded_and_depend_on_the_seed_alone() -> None:
    changes: Counter[str] = Counter()
    for number, row in enumerate(dataset.judged(150)):
        source, target = decode(row.images[0]).scene, target_of(row.meta)
        for seed in range(4 * number, 4 * number + 4):
            found = decode(image := damaging(row.images[0], row.meta["prompt"], seed))
            assert image.tobytes() == damaging(row.images[0], row.meta["prompt"], seed).tobytes()
            wrong = len(target.changed(found.scene))
            assert found.scene == source or wrong <= 6  # three damages, two cells each at most
            assert sum(not s for s in found.sharp) <= 1
            kind = "right" if not wrong and all(found.sharp) else "unedited" if found.scene == source else "wrong"
            changes[kind] += 1
            changes["blurred"] += not all(found.sharp)
            made = [found.scene[i] == target[i] for i in source.changed(target)]
            changes["partly"] += any(made) and not all(made)
    assert 100 <= changes["right"] <= 170 and 30 <= changes["unedited"] <= 110 and changes["wrong"] > 300
    assert changes["blurred"] > 60 and changes["partly"] > 60


def test_the_damaging_editor_says_what_it_cannot_do() -> None:
    row = dataset.judged(1)[0]
    prompts = (row.meta["prompt"], "make it nicer", "remove b9")
    results = asyncio.run(editor.edit([EditRequest(row.images, prompt, 1) for prompt in prompts]))
    assert isinstance(editor, Editor) and results[0].image is not None and results[0].image.size == (64, 64)
    assert [r.error is not None and "PlanError" in r.error for r in results] == [False, True, True]
    scene = decode(row.images[0]).scene
    empty = next(i for i in range(CELLS) if scene[i] is None)
    with pytest.raises(PlanError, match="is empty"):
        damaging(render(scene), f"remove {'abcd'[empty % 4]}{empty // 4 + 1}", 0)


# -- the whole of it ----------------------------------------------------------------------------------------------


def test_the_tiny_models_make_judged_edits(tmp_path: Path) -> None:
    done = premeditate(
        "data", "rrm", "premeditate.microworld.dataset:judged", "--count", 6, "-o", tmp_path / "out", "--editor",
        "micro", "--editor", "premeditate.microworld.damages:editor", "--judge", "apart:micro", "--judge",
        "apart:micro-base", "--temperature", 0, "--temperature", 1, "--shard-size", 3, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = {r.id: r for r in dataset.judged(6)}
    edits = list(judged.read(tmp_path / "out"))
    assert len(edits) + sum(one["count"] for one in done.json["lost"].values()) == 12 and len(edits) >= 10
    for edit in edits:
        row = rows[edit.task]
        source, picture = (judged.picture(tmp_path / "out", name) for name in (edit.source, edit.edit))
        sample = Sample(Task(id="x", images=(), instruction=""), source, picture, Checklist(items=edit.principles))
        assert tuple(a.yes for a in ExactVerifier().judge(sample).answers) == edit.gold
        assert source.tobytes() == row.images[0].tobytes() and edit.instruction == row.instruction
        assert edit.kept.thought and edit.kept.verdicts and edit.kept.score is not None
        exactly = decode(picture)
        assert all(edit.gold) == (exactly.scene == target_of(row.meta) and all(exactly.sharp))
    first = done.json["candidates"]["apart:micro @ 0"]["accuracy"]["value"]
    assert first > done.json["candidates"]["apart:micro-base @ 0"]["accuracy"]["value"]
    assert "explanation" not in json.dumps([e.model_dump() for e in edits])
