"""`premeditate checklist` and `premeditate score`: what they print, write and end with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from micro_fakes import Oracle
from premeditate.microworld.checker import decode
from premeditate.microworld.render import render
from premeditate.microworld.scene import CELL_NAMES
from premeditate.microworld.tasks import MicroTask
from premeditate.reasoners.base import ChatRequest, Completion
from support.chat_server import ChatServer
from support.command import Install, premeditate
from support.rewards import noise

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "src" / "premeditate" / "microworld" / "weights"
ITEMS = [
    {"question": "Is there a puddle on the table?", "dimension": "follow"},
    {"question": "Is the ice cube gone?", "dimension": "follow"},
    {"question": "Is the table made of wood?", "dimension": "keep"},
    {"question": "Are the edges of the puddle clean?", "dimension": "quality"},
]


class Model:
    """Speaks the general prompts; `say(request)` is what it says, None for an error."""

    name, prompts = "model", "general"

    def __init__(self, say: Callable[[ChatRequest], Any]) -> None:
        self.say, self.asked, self.closed = say, [], False  # type: ignore[var-annotated]

    async def chat(self, requests: Sequence[ChatRequest]) -> list[Completion]:
        self.asked += requests
        said = [self.say(request) for request in requests]
        return [
            Completion(error="the server is down") if text is None
            else Completion(text) if isinstance(text, str)
            else Completion(probabilities={"yes": text, "no": 1 - text})
            for text in said
        ]  # fmt: skip

    async def aclose(self) -> None:
        self.closed = True


def writer(request: ChatRequest) -> Any:
    """Writes ITEMS, and says yes with certainty to everything."""
    if "write the test" in request.text:
        return json.dumps({"items": ITEMS})
    return "I see it." if "Say in one short sentence" in request.text else 0.75


@pytest.fixture
def pictures(tmp_path: Path, task: MicroTask) -> tuple[Path, Path]:
    """The source of an odd-one-out task and its right edit."""
    render(task.target).save(tmp_path / "edit.png")
    return tmp_path / "scene.png", tmp_path / "edit.png"


# -- checklist ------------------------------------------------------------------------------------------------------


def test_a_checklist_is_written_shown_and_used_as_it_was_changed(
    models: Install, task: MicroTask, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    models()
    done = premeditate("checklist", pictures[0], task.instruction, "-o", "list.json")
    assert done.code == 0 and all(item.question in done.out for item in task.checklist)
    told = premeditate("checklist", pictures[0], task.instruction, "--json").json
    assert told == {**json.loads((tmp_path / "list.json").read_text()), "seconds": told["seconds"]}
    assert told["items"] == [item.model_dump() for item in task.checklist] and told["author"] == "oracle"

    told["items"] = told["items"][:1]
    (tmp_path / "list.json").write_text(json.dumps(told))
    scored = premeditate("score", *pictures, task.instruction, "--checklist", "list.json", "--json").json
    assert scored["checklist"]["edited"] and len(scored["answers"]) == 1 and scored["notes"] == []
    other = premeditate("score", *pictures, "do something else", "--checklist", "list.json")
    assert "changed by hand" in other.out and f"for another instruction: {task.instruction}" in other.out


def test_counts_a_pool_and_references_are_for_those_who_take_them(
    models: Install, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    models(reasoner=(model := Model(writer)))
    (tmp_path / "pool.yaml").write_text("- {picture: a red door, instruction: paint it, follow: ['Is it painted?']}\n")
    words = ("checklist", pictures[0], "melt it", "--counts", "1-2,1,1", "--pool", "pool.yaml", "--reference")
    done = premeditate(*words, pictures[1], "--json")
    assert done.code == 0 and done.json["items"] == ITEMS and model.closed
    (request,) = model.asked
    assert len(request.images) == 2 and '1 to 2 of kind "follow", 1 of kind "keep"' in request.text
    assert "a red door" in request.text
    models(reasoner=Oracle([]))
    refused = premeditate(*words, pictures[1])
    assert refused.code == 2 and "takes no --reference, --counts, --pool" in refused.err


@pytest.mark.parametrize(("words", "code", "said"), [
    (("none.png", "melt it"), 3, "no such file"), (("scene.png", " "), 4, "instruction is empty"),
    (("scene.png", "melt it", "--counts", "3"), 2, "not three numbers"),
    *((("scene.png", "melt it", "--counts", counts), 2, "not all 0; write 3-4,3-4,2-3")
      for counts in ("4-3,1,1", "0,0,0", "17,1,1", "1,1,2-1")),
    (("scene.png", "melt it", "--pool", "none.yaml"), 2, "cannot be read"),
    (("scene.png", "melt it", "--reference", "none.png"), 3, "no such file"),
    (("scene.png", "melt it", "-o", "scene.png/x.json"), 6, "cannot write"),
])  # fmt: skip
def test_what_cannot_be_used_is_said_before_a_model_is_loaded(
    alone: None, pictures: tuple[Path, Path], words: tuple[str, ...], code: int, said: str
) -> None:
    done = premeditate("checklist", *words)
    assert done.code == code and said in done.err and len(done.err.splitlines()) == 1


@pytest.mark.parametrize(("text", "status"), [
    (None, "unavailable"), ("I'm sorry, I can't help.", "refused"), ("hm", "unparsable")])  # fmt: skip
def test_a_checklist_that_cannot_be_written_is_an_error(
    models: Install, pictures: tuple[Path, Path], text: str | None, status: str
) -> None:
    models(reasoner=Model(lambda request: text))
    for words in (("checklist", pictures[0]), ("score", *pictures)):
        done = premeditate(*words, "melt it", "--json")
        assert done.code == 5 and f"the checklist is {status}" in done.json["error"]


# -- score ----------------------------------------------------------------------------------------------------------


def test_a_right_edit_ends_with_0_and_a_wrong_one_with_1(
    models: Install, task: MicroTask, pictures: tuple[Path, Path]
) -> None:
    models()
    right = premeditate("score", *pictures, task.instruction)
    assert right.code == 0 and right.out.splitlines()[-1] == "all yes"
    assert all(item.question in right.out for item in task.checklist)
    assert "label probabilities: yes 0.9, no 0.1" in right.out and "weighted 90" in right.out
    same = premeditate("score", pictures[0], pictures[0], task.instruction)
    assert same.code == 1 and "the same picture as the source" in same.out and "not all yes" in same.out
    exact = premeditate("score", *pictures, task.instruction, "--verifier", "exact")
    assert exact.code == 0


def test_json_holds_everything(models: Install, task: MicroTask, pictures: tuple[Path, Path]) -> None:
    models()
    told = premeditate("score", *pictures, task.instruction, "--canary", "--json").json
    assert told["verified"] and told["status"] == "scored" and told["exit_code"] == 0 and not told["equal"]
    assert told["scores"] == {"follow": 1.0, "keep": 1.0, "quality": 1.0}
    assert told["weighted"] == pytest.approx({"follow": 0.9, "keep": 0.9, "quality": 0.9})
    assert [a["question"] for a in told["answers"]] == [i.question for i in task.checklist]
    assert all(a["status"] == "scored" and a["evidence"] and a["p_yes"] == pytest.approx(0.9) for a in told["answers"])
    assert told["canary"]["suspicious"] == told["canary"]["contradicted"] == 0.0
    same = premeditate("score", pictures[0], pictures[0], task.instruction, "--json")
    assert same.json["equal"] and same.code == same.json["exit_code"] == 1 and not same.json["verified"]


def test_the_judge_says_what_it_saw(models: Install, pictures: tuple[Path, Path]) -> None:
    models(reasoner=(model := Model(writer)))
    done = premeditate("score", *pictures, "melt it")
    assert done.code == 0 and "I see it. (label probabilities: yes 0.75" in done.out
    model.asked.clear()
    brief = premeditate("score", *pictures, "melt it", "--no-explain")
    assert "I see it" not in brief.out and not any("short sentence" in r.text for r in model.asked)


def test_a_yes_man_is_exposed(models: Install, pictures: tuple[Path, Path]) -> None:
    models(reasoner=Model(writer))
    done = premeditate("score", *pictures, "melt it", "--canary", "--json")
    assert done.code == 5 and done.json["scores"] == {} and done.json["canary"]["suspicious"] == 1.0
    assert "control question" in done.json["reason"] and "error" in done.json
    assert done.err.startswith("premeditate: the edit is not scored (unavailable") and len(done.err.splitlines()) == 1
    shown = premeditate("score", *pictures, "melt it", "--canary")
    assert "100\u00a0% of follow questions say yes" in shown.out and "not scored" in shown.out


def test_one_question_without_an_answer_leaves_the_edit_unscored(models: Install, pictures: tuple[Path, Path]) -> None:
    def say(request: ChatRequest) -> Any:
        return None if "made of wood" in request.text and request.labels else writer(request)

    models(reasoner=Model(say))
    done = premeditate("score", *pictures, "melt it", "--json")
    assert done.code == 5 and set(done.json["scores"]) == {"follow", "quality"}
    assert done.json["answers"][2]["status"] == "unavailable" and "the server is down" in done.json["error"]


def test_words_are_put_to_the_vote(models: Install, pictures: tuple[Path, Path]) -> None:
    def say(request: ChatRequest) -> Any:
        if "write the test" in request.text:
            return writer(request)
        return "yes" if request.seed != 1 else "no"

    models(reasoner=Model(say))
    done = premeditate("score", *pictures, "melt it", "-k", "3", "--no-explain", "--json")
    assert done.code == 0 and [a["p_yes"] for a in done.json["answers"]] == [pytest.approx(2 / 3)] * 4
    tie = premeditate("score", *pictures, "melt it", "-k", "2", "--no-explain", "--json")
    assert tie.code == 5 and "tie" in tie.json["error"]


@pytest.mark.parametrize(("words", "code", "said"), [
    (("none.png", "edit.png", "x"), 3, "no such file"), (("scene.png", "none.png", "x"), 3, "no such file"),
    (("scene.png", "edit.png", ""), 4, "instruction is empty"),
    (("scene.png", "edit.png", "x", "--verifier", "none"), 2, "nothing to score"),
    (("scene.png", "edit.png", "x", "--checklist", "none.json"), 2, "no checklist none.json"),
])  # fmt: skip
def test_what_cannot_be_scored_is_said_before_a_model_is_loaded(
    alone: None, pictures: tuple[Path, Path], words: tuple[str, ...], code: int, said: str
) -> None:
    done = premeditate("score", *words)
    assert done.code == code and said in done.err and len(done.err.splitlines()) == 1


def test_who_neither_writes_nor_answers_is_not_loaded(
    alone: None, pictures: tuple[Path, Path], task: MicroTask
) -> None:
    items = [item.model_dump() for item in task.checklist]
    Path("list.json").write_text(json.dumps(items))
    done = premeditate("score", *pictures, task.instruction, "--checklist", "list.json", "--verifier", "exact")
    assert done.code == 0 and "by a person" in done.out
    words = ("score", *pictures, "x", "--checklist", "list.json", "--verifier", "exact")
    for more, said in (
        (("--canary",), "--canary"), (("-k", "7", "--no-explain"), "-k, --no-explain"), (("-k", "1"), "-k"),
        (("--explain",), "--explain"),
    ):  # fmt: skip
        refused = premeditate(*words, *more)
        assert refused.code == 2 and f"the verifier exact takes no {said}; leave that out" in refused.err


def test_pictures_of_different_sizes_are_pointed_out(models: Install, pictures: tuple[Path, Path]) -> None:
    models(reasoner=Model(writer))
    noise(80, 60).save("large.png")
    done = premeditate("score", pictures[0], "large.png", "melt it", "--json")
    assert done.json["notes"] == ["the edit is 80 x 60 pixels, the source 64 x 64"]


def test_a_judge_behind_an_address(
    pictures: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes and answers over HTTP; a picture that is no scene is nothing special to it."""
    monkeypatch.chdir(tmp_path)
    noise(80, 60).save("photo.png")
    noise(80, 60, seed=4).save("edited.png")
    with ChatServer("logprobs") as server:
        server.reply = lambda body: json.dumps({"items": ITEMS}) if "write the test" in str(body) else "It is there."
        words = ("photo.png", "edited.png", "melt it", "--reasoner", server.url, "--verifier", "reasoner", "--json")
        done = premeditate("score", *words)
        assert done.code == 0 and {a["p_yes"] for a in done.json["answers"]} == {0.75}
        assert done.json["answers"][0]["evidence"].startswith("It is there. (label probabilities")
        assert done.json["checklist"]["author"] == "tiny" and done.json["tokens"] > 0
        exposed = premeditate("score", *words, "--canary")
        assert exposed.code == 5 and "control question" in exposed.json["error"]
        # The judge alone is asked where the checklist is there already.
        Path("list.json").write_text(json.dumps(ITEMS))
        judged = ("--checklist", "list.json", "--verifier", server.url, "--no-explain", "--json")
        server.forget()
        assert premeditate("score", "photo.png", "edited.png", "melt it", *judged).code == 0
        assert not any("write the test" in str(body) for body in server.bodies)
    gone = premeditate("score", *words)
    assert gone.code == 5 and gone.json["error"]


# -- with the tiny reasoner of the package ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not (WEIGHTS / "reasoner").is_dir(), reason="the tiny models are not in this tree")
def test_the_micro_reasoner_writes_and_judges_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from premeditate import images

    monkeypatch.chdir(tmp_path)
    source, instruction = ROOT / "examples" / "odd-one-out.png", "paint the odd one out green"
    written = premeditate("checklist", source, instruction, "-o", "list.json", "--json")
    assert written.code == 0 and {i["dimension"] for i in written.json["items"]} == {"follow", "keep", "quality"}
    scene = decode(images.load(source)).scene
    cell = CELL_NAMES.index("d4")
    thing = dict(scene.things())[cell]
    for colour in ("green", "red"):
        render(scene.put(cell, thing._replace(colour=colour))).save(f"{colour}.png")
    right = premeditate("score", source, "green.png", instruction, "--checklist", "list.json", "--canary", "--json")
    wrong = premeditate("score", source, "red.png", instruction, "--json")
    same = premeditate("score", source, source, instruction, "--json")
    assert (right.code, wrong.code, same.code) == (0, 1, 1) and same.json["equal"]
    assert right.json["canary"]["suspicious"] == 0.0 and wrong.json["scores"]["follow"] == 0.0
    assert wrong.json["scores"]["keep"] == 1.0
    other = premeditate("checklist", tmp_path / "green.png", instruction, "--counts", "1,1,1")
    assert other.code == 2 and "its own kind of checklist" in other.err
    noise(80, 60).save("photo.png")
    photo = premeditate("checklist", "photo.png", instruction)
    assert photo.code == 3 and "not a micro-world scene" in photo.err
    assert premeditate("score", "photo.png", "photo.png", "x", "--checklist", "list.json").code == 3
    judged = ("score", "photo.png", "photo.png", "x", "--checklist", "list.json", "--verifier", "micro-base")
    assert premeditate(*judged).code == 3
