"""Making judged edits: what is asked of whom, what is kept, and that nothing is lost without being counted."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from premeditate.datasets import judged
from premeditate.datasets.judged import Candidate, JudgedEdit
from premeditate.datasets.tasks import BadRow, TaskRow
from premeditate.editors.base import EditRequest, EditResult
from premeditate.errors import ModelError, PremeditateError
from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.rewards.base import Verifier
from premeditate.rewards.checklist import ChecklistVerifier
from premeditate.rewards.checklists.builder import ChecklistBuilder
from premeditate.synthesis import parts as loading
from premeditate.synthesis.errors import DeadPart
from premeditate.synthesis.forms import FORMS
from premeditate.synthesis.parts import Parts
from premeditate.synthesis.run import Part as Share
from premeditate.synthesis.run import begin, make
from premeditate.synthesis.settings import JudgeSpec, Settings
from premeditate.synthesis.shard import choose, graded
from premeditate.synthesis.source import Source
from support.judging import Fake
from support.synthesis import SECRET, Gold, Judge, Painter, truth
from support.synthesis import make as rows_of

TEMPERATURES = (0.0, 0.8)


def parts_of(
    *, editors: Sequence[Any] = (), judges: Sequence[tuple[str, Any]] = (), verifier: Any = None, writer: Any = None,
    temperatures: Sequence[float] = TEMPERATURES,
) -> Parts:  # fmt: skip
    chosen = judges or (("joint", Judge("first")), ("apart", Judge("second")))
    return Parts(
        {editor.name: editor for editor in editors or (Painter("one"), Painter("other"))},
        tuple(FORMS[form](judge, temperatures, f"{form}:{judge.name}") for form, judge in chosen),
        verifier or Gold(), None if writer is None else ChecklistBuilder(writer),
    )  # fmt: skip


def settings_of(parts: Parts, source: Source, **more: Any) -> Settings:
    return Settings(**{
        "tasks": "rows", "digest": source.digest, "count": None, "seed": 0, "shard_size": 4,
        "editors": tuple(parts.editors), "edits_per_editor": 1, "judges": tuple(j.name for j in parts.judges),
        "temperatures": TEMPERATURES, "reasoner": None, "verifier": "gold", "min_accuracy": 0.0, **more,
    }).check()  # fmt: skip


def made(
    folder: Path, rows: Sequence[TaskRow | BadRow], parts: Parts | None = None, resume: bool = False, **more: Any
) -> dict[str, Any]:
    """The datasheet of a run."""
    parts = parts or parts_of()
    source = Source(rows, len(rows), "digest")
    settings = settings_of(parts, source, **more)
    missing = begin(folder, settings, Share(), source.shards(settings.shard_size), resume=resume)
    return asyncio.run(make(source, parts, settings, folder, missing))


def lost(sheet: dict[str, Any]) -> dict[str, int]:
    return {what: one["count"] for what, one in sheet["lost"].items() if one["count"]}


# -- what is kept -------------------------------------------------------------------------------------------------


def test_every_edit_has_its_candidates_and_keeps_the_one_that_agrees_best_with_gold(tmp_path: Path) -> None:
    rows = rows_of(10, {5: "mixed"})
    made(tmp_path, rows, edits_per_editor=2)
    edits = list(judged.read(tmp_path))
    assert [e.id for e in edits] == [f"task-{i}/{name}/{k}" for i in range(10) for k in range(2)
                                     for name in ("one", "other")]  # fmt: skip
    for edit in edits:
        row = next(r for r in rows if r.id == edit.task)
        assert judged.picture(tmp_path, edit.source).tobytes() == row.images[0].tobytes()
        assert [i.model_dump() for i in edit.principles] == row.meta["checklist"]
        picture = judged.picture(tmp_path, edit.edit)
        assert list(edit.gold) == truth(picture, row.instruction, len(edit.principles))
        assert edit.reasons == tuple(f"seen: {yes}" for yes in edit.gold)
        assert [(c.judge, c.temperature) for c in edit.candidates] == [
            (name, t) for name in ("joint:first", "apart:second") for t in TEMPERATURES
        ]
        for one in edit.candidates:
            assert one.accuracy == sum(a == b for a, b in zip(one.verdicts, edit.gold, strict=True)) / len(edit.gold)
        assert edit.kept.accuracy == max(c.accuracy or 0 for c in edit.candidates)
    assert len({e.edit for e in edits}) == len(edits)  # every editor and every seed made another picture


def test_ties_are_broken_by_the_edit_and_not_by_the_judges_place() -> None:
    same = [Candidate(judge=str(i), verdicts=(True,), score=1, thought="x") for i in range(3)]
    tied = [graded(one, (True,)) for one in same]
    found = [choose(f"edit-{i}", tied) for i in range(300)]
    assert found == [choose(f"edit-{i}", tied) for i in range(300)]
    assert all(60 < n < 140 for n in Counter(found).values()) and set(found) == {0, 1, 2}
    worse = [graded(same[0], (False,)), *tied[1:]]
    assert {choose(f"edit-{i}", worse) for i in range(50)} == {1, 2}
    assert choose("x", [Candidate(judge="a", status="refused", problem="no")]) is None


def test_what_does_not_come_through_is_counted_with_its_reason(tmp_path: Path) -> None:
    words = {1: "fail", 4: "ungold", 6: "refuse", 9: "bare", 10: "leave"}
    rows: list[TaskRow | BadRow] = [*rows_of(12, words), BadRow("bad", "", "line 13: it names no picture")]
    broken = rows_of(14)[13]
    broken.meta["checklist"] = [{"question": "?", "dimension": "taste"}]
    blank = TaskRow("blank", broken.images, "  ", {"checklist": rows_of(1)[0].meta["checklist"]})
    odd = TaskRow("odd", broken.images, "paint", {"prompt": 7, "checklist": rows_of(1)[0].meta["checklist"]})
    sheet = made(tmp_path, [*rows, broken, blank, odd], shard_size=16)
    assert lost(sheet) == {"unreadable task": 3, "no principles": 2, "edit failed": 2, "no gold verdict": 2,
                           "no candidate": 2}  # fmt: skip
    assert sheet["tasks"] == 16 and sheet["edits"] == {"asked": 22, "kept": 16, "same_picture_twice": 1}
    assert sheet["edits"]["asked"] == sheet["edits"]["kept"] + sum(
        one["count"] for one in sheet["lost"].values() if one["of"] == "edits"
    )
    assert sheet["tasks"] == 22 // 2 + sum(one["count"] for one in sheet["lost"].values() if one["of"] == "tasks")
    said = json.dumps(sheet["lost"])
    for word in ("names no picture", "its meta.prompt is no text", "instruction is empty", "the brush broke",
                 "unavailable: the line is dead", "I'm sorry", "no --reasoner writes", "meta.checklist"):  # fmt: skip
        assert word in said, word
    assert sheet["editors"]["one"] | {"all_met": 0} == {"made": 10, "failed": 1, "unedited": 1, "kept": 8, "all_met": 0}
    assert sheet["candidates"]["joint:first @ 0"]["statuses"] == {"scored": 16, "refused": 2}
    assert sheet["candidates"]["apart:second @ 0.8"]["statuses"]["scored"] == 16


def test_a_judge_that_cannot_be_read_is_a_candidate_without_a_score(tmp_path: Path) -> None:
    mute = Judge("mute", mute="instruction 1")
    made(tmp_path, rows_of(2), parts_of(judges=(("joint", Judge("first")), ("joint", mute))))
    for edit in judged.read(tmp_path):
        said = [c for c in edit.candidates if c.judge == "joint:mute"]
        assert [c.status for c in said] == ["refused" if edit.task == "task-1" else "scored"] * 2
        assert edit.task == "task-0" or edit.kept.judge == "joint:first"
    broken = Fake(
        lambda r: "1: 1\n<score>11</score>" if r.temperature else "<think>a</think>\n1: 1\n2: 0\n<score>5</score>"
    )
    made(tmp_path / "b", rows_of(1), parts_of(judges=(("joint", broken),)))
    for edit in judged.read(tmp_path / "b"):
        first, second = edit.candidates
        assert (first.status, first.verdicts, first.score, first.thought) == ("scored", (True, False), 5.0, "a")
        assert (second.status, second.verdicts, second.score, second.accuracy) == ("unparsable", (), None, None)
        assert "score›11" in second.problem and edit.chosen == 0


def test_edits_whose_best_candidate_is_poor_may_be_left_out(tmp_path: Path) -> None:
    every = made(tmp_path / "all", rows_of(12))
    some = made(tmp_path / "some", rows_of(12), min_accuracy=1.0)
    best = [e.kept.accuracy for e in judged.read(tmp_path / "all")]
    assert some["edits"]["kept"] == sum(one == 1.0 for one in best) < every["edits"]["kept"]
    assert lost(some)["below the least accuracy"] == sum(one != 1.0 for one in best)
    assert {e.kept.accuracy for e in judged.read(tmp_path / "some")} == {1.0}


# -- what is asked ------------------------------------------------------------------------------------------------


def test_a_shard_is_one_call_of_each_editor_and_judge_and_every_draw_has_a_seed_of_its_own(tmp_path: Path) -> None:
    editor, judge, gold = Painter("one"), Judge("first"), Gold()
    made(tmp_path, rows_of(8), parts_of(editors=(editor,), judges=(("joint", judge),), verifier=gold))
    assert [len(call) for call in editor.calls] == [4, 4] and [len(call) for call in gold.calls] == [4, 4]
    assert [len(call) for call in judge.calls] == [8, 8]
    assert len({r.seed for r in editor.asked}) == 8 and len({r.key for r in editor.asked}) == 8
    assert [r.prompt for r in editor.asked] == [f"prompt {i}" for i in range(8)]
    assert {r.seed for r in judge.asked if r.temperature == 0} == {0}
    assert len({r.seed for r in judge.asked if r.temperature == 0.8}) == 8
    assert all(c.seed == r.seed for c, r in zip(
        (c for e in judged.read(tmp_path) for c in e.candidates), judge.asked, strict=True
    ))  # fmt: skip


def test_nobody_is_told_the_truth_that_a_task_carries(tmp_path: Path) -> None:
    editor, joint, apart, gold = Painter("one"), Judge("first"), Judge("second"), Gold()
    judges = (("joint", joint), ("apart", apart))
    made(tmp_path, rows_of(6), parts_of(editors=(editor,), judges=judges, verifier=gold))
    assert SECRET not in repr([*editor.asked, *joint.asked, *apart.asked])
    assert all(sample.task.meta == {} for sample in gold.asked)
    assert all(SECRET not in path.read_text() for path in tmp_path.rglob("*.json*"))
    # A judge sees the source and the edit, the instruction, the principles, and (for the critique) the prompt.
    assert all(len(r.images) == 2 for r in (*joint.asked, *apart.asked))
    assert all("prompt" not in r.text for r in joint.asked)


def test_principles_are_written_for_tasks_that_bring_none(tmp_path: Path) -> None:
    items = [{"question": q, "dimension": d} for d, qs in (
        ("follow", ("Is the hat red?", "Is the coat blue?", "Is the shoe new?")),
        ("keep", ("Is the sky still gray?", "Is the dog still there?", "Is the tree still tall?")),
        ("quality", ("Are all edges clean?", "Is the light even?")),
    ) for q in qs]  # fmt: skip
    writer = Fake(lambda r: "I cannot do that." if "instruction 2" in r.text else json.dumps({"items": items}))
    sheet = made(tmp_path, rows_of(4, {1: "bare", 2: "bare"}), parts_of(writer=writer))
    assert lost(sheet) == {"no principles": 1} and sheet["edits"]["kept"] == 6
    written = next(e for e in judged.read(tmp_path) if e.task == "task-1")
    assert {i.question for i in written.principles} == {item["question"] for item in items}
    empty = rows_of(4, {1: "bare", 2: "bare"})
    empty[1].meta["checklist"] = []  # as good as none
    again = made(tmp_path / "empty", empty, parts_of(writer=writer))
    assert lost(again) == lost(sheet) and list(judged.read(tmp_path / "empty")) == list(judged.read(tmp_path))
    empty[2].meta["checklist"] = []
    alone = made(tmp_path / "alone", empty)["lost"]["no principles"]
    assert (alone["count"], len(alone["reasons"])) == (2, 1) and "brings none" in next(iter(alone["reasons"]))
    asked = [r.text for call in writer.calls for r in call]
    assert not any("instruction 0" in text or "instruction 3" in text for text in asked)


# -- parts that are dead ------------------------------------------------------------------------------------------


def test_a_part_that_fails_with_everything_ends_the_run_and_says_why(tmp_path: Path) -> None:
    dead = Painter("dead", fails="prompt")
    with pytest.raises(DeadPart, match=r"the editor dead failed with all 4 .*the brush broke.*--resume"):
        made(tmp_path, rows_of(8), parts_of(editors=(Painter("one"), dead)))
    deaf = Fake(lambda r: Completion(error="connection refused"))
    with pytest.raises(DeadPart, match=r"the judge joint:fake failed with all 16 .*connection refused"):
        made(tmp_path, rows_of(8), parts_of(judges=(("joint", Judge("first")), ("joint", deaf))))
    mumbling = Fake(lambda r: "yes yes")  # beside a judge that works, too
    for judges in ((("joint", mumbling),), (("joint", Judge("first")), ("joint", mumbling))):
        with pytest.raises(DeadPart, match=r"the judge joint:fake failed with all 16 .*yes yes.*apart:SPEC"):
            made(tmp_path, rows_of(8), parts_of(judges=judges))
    with pytest.raises(DeadPart, match=r"the judge apart:fake failed with all 16 .*--resume"):
        made(tmp_path, rows_of(8), parts_of(judges=(("joint", Judge("first")), ("apart", mumbling))))
    with pytest.raises(DeadPart, match=r"the verifier gold failed with all 8 .*the line is dead"):
        made(tmp_path, rows_of(4, dict.fromkeys(range(4), "ungold")))
    with pytest.raises(DeadPart, match=r"none of 4 tasks brings principles.*--reasoner"):
        made(tmp_path, rows_of(4, dict.fromkeys(range(4), "bare")))
    with pytest.raises(DeadPart, match=r"principles failed with all 4 .*too hot"):
        made(tmp_path, rows_of(4, dict.fromkeys(range(4), "bare")),
             parts_of(writer=Fake(lambda r: Completion(error="too hot"))))  # fmt: skip
    with pytest.raises(DeadPart, match=r"principles failed with all 4 .*too few questions"):
        made(tmp_path, rows_of(4, dict.fromkeys(range(4), "bare")), parts_of(writer=Fake(lambda r: "a poem")))
    assert not list(tmp_path.rglob("*.jsonl"))


def test_what_a_part_raises_is_said_with_its_name(tmp_path: Path) -> None:
    class Bomb(Painter):
        async def edit(self, requests: Sequence[EditRequest]) -> list[EditResult]:
            raise OSError("no such device")

    with pytest.raises(DeadPart, match=r"the editor bomb failed: OSError: no such device"):
        made(tmp_path, rows_of(4), parts_of(editors=(Bomb("bomb"),)))


def test_one_bad_task_in_a_last_short_shard_is_only_counted(tmp_path: Path) -> None:
    losses = {"fail": {"edit failed": 2}, "refuse": {"no candidate": 2}, "ungold": {"no gold verdict": 2},
              "bare": {"no principles": 1}}  # fmt: skip
    for word, what in losses.items():
        rows, folder = rows_of(5, {4: word}), tmp_path / word
        sheet = made(folder, rows)
        assert lost(sheet) == what and sheet["shards"]["whole"] == 2
        assert (folder / "shards" / "00001.jsonl").read_bytes() == b""
        # Nor does it hold up a run that was cut off before it and goes on.
        (folder / "shards" / "00001.jsonl").unlink()
        assert lost(made(folder, rows, resume=True)) == what


class Dying(Painter):
    """An editor that is there for the first `lives` edits only."""

    def __init__(self, lives: int) -> None:
        super().__init__("dying")
        self.lives = lives

    def _one(self, request: EditRequest) -> EditResult:
        self.lives -= 1
        return super()._one(request) if self.lives >= 0 else EditResult(None, error="out of memory")


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_what_a_model_lost_after_its_death_is_made_when_it_is_back(tmp_path: Path, size: int) -> None:
    with pytest.raises(DeadPart, match=r"the editor dying failed with all .*out of memory.*--resume"):
        made(tmp_path, rows_of(40), parts_of(editors=(Dying(6),)), shard_size=size)
    there = -(-6 // size)  # the shard in which it died is whole, with what it lost
    assert len(list((tmp_path / "shards").iterdir())) == there
    sheet = made(tmp_path, rows_of(40), parts_of(editors=(Dying(40),)), shard_size=size, resume=True)
    assert sheet["shards"]["whole"] == 40 // size and sheet["edits"]["kept"] == 40 - (there * size - 6)


@pytest.mark.parametrize(("size", "at"), [(8, 0), (4, 0), (8, 16)])
def test_tasks_whose_pictures_are_gone_for_a_while_are_not_lost(tmp_path: Path, size: int, at: int) -> None:
    rows = rows_of(24)
    gone = [row if i < at else BadRow(row.id, "", "there is no picture /mnt/x.png") for i, row in enumerate(rows)]
    with pytest.raises(DeadPart, match=rf"reading the tasks failed with all {size} .*/mnt/x.png.*--resume"):
        made(tmp_path / "out", gone, shard_size=size)
    sheet = made(tmp_path / "out", rows, shard_size=size, resume=at > 0)
    assert sheet["shards"]["whole"] == 24 // size and sheet["edits"]["kept"] == 48 and not lost(sheet)


def test_a_model_that_is_dead_for_a_few_tasks_of_each_shard_is_dead(tmp_path: Path) -> None:
    """What the others of a shard came to says nothing of it."""
    rows: list[TaskRow | BadRow] = [*rows_of(4), *(
        BadRow(f"bad-{row.id}", "", "no picture") if i % 4 == 3 else row for i, row in enumerate(rows_of(40)[4:])
    )]  # fmt: skip
    with pytest.raises(DeadPart, match="out of memory"):
        made(tmp_path, rows, parts_of(editors=(Dying(4),)))
    assert len(list((tmp_path / "shards").iterdir())) == 2


# -- the two forms ------------------------------------------------------------------------------------------------


def test_a_judge_that_is_named_joint_or_apart_or_neither() -> None:
    assert JudgeSpec.parse("apart:micro") == ("apart", "micro") and JudgeSpec.parse("joint:a/b").form == "joint"
    assert JudgeSpec.parse("http://host:8000/v1?key=abc").name == "joint:http://host:8000/v1?key=..."
    with pytest.raises(PremeditateError, match="write apart:SPEC"):
        JudgeSpec.parse("apart:")


def test_parts_are_loaded_by_their_specs(monkeypatch: pytest.MonkeyPatch) -> None:
    from premeditate import presets

    reasoner = Judge("first")
    monkeypatch.setattr(presets, "load_reasoner", lambda spec, **_: reasoner)
    parts = loading.load(["support.synthesis:one"], [JudgeSpec("apart", "qwen")], [0.0], "reasoner:qwen", "qwen")
    assert parts.models == [parts.editors["support.synthesis:one"], reasoner]
    assert isinstance(parts.verifier, ChecklistVerifier) and parts.verifier.explain
    assert isinstance(loading.load_verifier("support.synthesis:Gold", None), Verifier)
    assert loading.load_reasoner("support.synthesis:slowly").name == "support.synthesis:slowly"
    for spec, load in (("support.synthesis:SECRET", loading.load_editor), ("support.nothing:x", loading.load_editor),
                       ("support.synthesis:SECRET", loading.load_reasoner)):  # fmt: skip
        with pytest.raises(ModelError, match=r"editor|reasoner"):
            load(spec)
    with pytest.raises(ModelError, match="does not answer principles"):
        loading.load_verifier("preservation", None)


def test_a_verifier_with_words_gives_its_reasons(tmp_path: Path) -> None:
    def say(request: ChatRequest) -> Any:
        if request.labels:
            return Completion(probabilities={"yes": 0.9, "no": 0.1})
        return "the brim is red"

    made(tmp_path, rows_of(1), parts_of(verifier=ChecklistVerifier(Fake(say), explain=True)))
    for edit in judged.read(tmp_path):
        assert all(edit.gold) and all("the brim is red" in reason for reason in edit.reasons)


def test_a_line_that_is_no_judged_edit_is_named(tmp_path: Path) -> None:
    made(tmp_path, rows_of(1))
    shard = tmp_path / "shards" / "00000.jsonl"
    edit = JudgedEdit.model_validate_json(shard.read_bytes().splitlines()[0])
    assert edit in list(judged.read_shard(shard))
    shard.write_text("{}\n")
    with pytest.raises(judged.JudgedError, match=r"shards/00000.jsonl:1 is no judged edit"):
        list(judged.read(tmp_path))
