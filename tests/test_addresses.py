"""`premeditate edit` and `run` with an editor and a reasoner behind addresses: real servers, the whole way round."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import premeditate
from premeditate.cli.app import app
from premeditate.engine.pool import Policy
from premeditate.errors import ExitCode, ModelError
from premeditate.store import RunStore
from support.chat_server import ChatServer
from support.images_server import EditThinkerServer, ImagesServer, Qwen

CHECKS = {"items": [{"question": "Is the sky red?", "dimension": "follow"},
                    {"question": "Is it sharp?", "dimension": "quality"}]}  # fmt: skip
CRITIQUE = {"problem": "still blue", "semantic": 3, "quality": 9, "satisfied": False, "base": "original",
            "steps": ["paint the whole sky red"]}  # fmt: skip


def say(body: dict[str, Any]) -> str:
    text = body["messages"][0]["content"][-1]["text"]
    if "Last prompt" in text:
        return json.dumps(CRITIQUE)
    if "yes/no questions" in text:
        return json.dumps(CHECKS)
    if "plan image edits" in text:
        return json.dumps({"explanation": "sunset", "steps": ["paint the sky red"]})
    return "yes"


@pytest.fixture(scope="module")
def editor() -> Iterator[ImagesServer]:
    with ImagesServer() as server:
        yield server


@pytest.fixture(scope="module")
def chat() -> Iterator[ChatServer]:
    with ChatServer("logprobs") as server:
        server.reply = say
        yield server


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.effect_mandelbrot((333, 211), (-2, -1, 1, 1), 20).convert("RGB").save(path)
    return path


def invoke(*arguments: object) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_edit_over_addresses_ends_verified_with_its_record(editor: ImagesServer, chat: ChatServer, photo: Path) -> None:
    editor.reset()
    editor.paint = lambda image: image.convert("L").convert("RGB")
    chat.tops = [{"Yes": 0.9, "No": 0.05}]
    out, run = photo.with_name("out.png"), photo.with_name("run")
    code, told = invoke("edit", photo, "make it evening", "-o", out, "--store", run, "--editor",
                        f"{editor.url}?steps=4&size=256", "--reasoner", chat.url)  # fmt: skip
    assert code == ExitCode.VERIFIED and told["verified"] and told["calls"]["edit"] == 1, told
    assert Image.open(out).size == (333, 211) and editor.forms[0]["num_inference_steps"] == "4"
    assert [round(item["p_yes"], 2) for item in told["checklist"]] == [0.95, 0.95]
    assert "paint the sky red" in told["prompt"] and told["calls"]["tokens"] > 0
    host = chat.host
    assert told["versions"][f"reasoner {host} probability"] == "top_logprobs"
    assert told["versions"][f"reasoner {host} json"] == "prompt"
    assert host not in json.dumps(told["settings"])
    # The same command finds the record, wherever the servers are now: nothing is edited again.
    made = editor.made
    assert invoke("edit", photo, "make it evening", "-o", out, "--store", run, "--editor",
                  f"{editor.url}?steps=4&size=256", "--reasoner", chat.url)[0] == 0  # fmt: skip
    assert editor.made == made and len(RunStore.open(run).traces()) == 1


def test_other_options_of_a_model_are_another_edit(editor: ImagesServer, chat: ChatServer, photo: Path) -> None:
    editor.reset()
    chat.tops = [{"Yes": 0.9, "No": 0.05}]
    run = photo.with_name("steps")
    for steps in (4, 8, 8):
        spec, out = f"{editor.url}?steps={steps}", photo.with_name("s.png")
        code, told = invoke("edit", photo, "make it evening", "-o", out, "--store", run, "--editor", spec,
                            "--reasoner", chat.url, "--no-report")  # fmt: skip
        assert code == ExitCode.VERIFIED and told["settings"]["options"]["editor"]["steps"] == steps
    assert editor.made == 2 and len(set(editor.keys)) == 2 and len(RunStore.open(run).traces()) == 2


def test_a_judge_that_has_no_part_in_the_plans(editor: ImagesServer, chat: ChatServer, photo: Path) -> None:
    editor.reset()
    chat.tops = [{"Yes": 0.9, "No": 0.05}]
    with ChatServer("logprobs") as judge:
        judge.models, judge.tops = ["judge"], [{"Yes": 0.05, "No": 0.9}]
        code, told = invoke("edit", photo, "make it evening", "-o", photo.with_name("j.png"), "--max-rounds", 1,
                            "--editor", editor.url, "--reasoner", chat.url, "--verifier", judge.url)  # fmt: skip
    assert code == ExitCode.NOT_VERIFIED and {item["p_yes"] < 0.1 for item in told["checklist"]} == {True}
    assert told["settings"]["verifier"] == "checklist (judge)" and told["settings"]["reasoner"] == "tiny"
    assert told["versions"][f"verifier {judge.host} probability"] == "top_logprobs"


def test_a_critic_that_is_never_content_gets_every_round(editor: ImagesServer, chat: ChatServer, photo: Path) -> None:
    editor.reset()
    chat.tops = [{"Yes": 0.1, "No": 0.8}]
    code, told = invoke("edit", photo, "make it evening", "-o", photo.with_name("o.png"), "--max-rounds", 3, "--editor",
                        editor.url, "--reasoner", chat.url, "--no-report")  # fmt: skip
    assert code == ExitCode.NOT_VERIFIED and told["rounds"] == 3 and editor.made == 3
    assert len(set(editor.keys)) == 3


@pytest.mark.parametrize("fault", ["429", "500", "reset", "html", "truncated"])
def test_one_fault_of_the_editor_is_not_seen(
    editor: ImagesServer, chat: ChatServer, photo: Path, fault: str
) -> None:  # fmt: skip
    editor.reset()
    editor.faults.append(fault)
    chat.tops = [{"Yes": 0.9, "No": 0.05}]
    result = premeditate.edit(photo, "make it evening", editor=editor.url, reasoner=chat.url,
                              policy=Policy(timeout=20, backoff=0.01))  # fmt: skip
    assert result.verified and len(editor.keys) >= 1 and len(set(editor.keys)) == 1 and editor.made == 1


def test_an_editor_that_refuses_is_one_line(editor: ImagesServer, chat: ChatServer, photo: Path) -> None:
    editor.reset()
    editor.key = "secret"
    with pytest.raises(ModelError, match="check the API key"):
        premeditate.edit(photo, "make it evening", editor=editor.url, reasoner=chat.url)


def test_nobody_at_the_address_is_said_at_once(chat: ChatServer, photo: Path) -> None:
    code, told = invoke("edit", photo, "x y", "-o", photo.with_name("o.png"), "--editor", "http://127.0.0.1:9/v1",
                        "--reasoner", chat.url)  # fmt: skip
    assert code == ExitCode.MODEL and "cannot be reached" in told["error"] and "start the server" in told["error"]


def test_editthinkers_own_service_works_unchanged(chat: ChatServer, photo: Path) -> None:
    chat.tops = [{"Yes": 0.9, "No": 0.05}]
    with EditThinkerServer(Qwen) as server:
        result = premeditate.edit(photo, "make it evening", editor=f"editthinker+{server.origin}", reasoner=chat.url)
    assert result.verified and result.image.size == (333, 211)
