"""`premeditate data rrm` as a command: shards that are whole or absent, resuming, machines that share the work."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from premeditate.cli.making import Progress
from premeditate.datasets import judged, tasks
from premeditate.synthesis.run import Part
from premeditate.synthesis.shard import Counts
from support import synthesis
from support.chat_server import ChatServer
from support.command import Outcome, premeditate
from support.synthesis import make

SPEC = "support.synthesis:tasks"
WORDS = ("--editor", "support.synthesis:one", "--editor", "support.synthesis:other", "--judge",
         "support.synthesis:first", "--judge", "apart:support.synthesis:second", "--temperature", "0",
         "--temperature", "0.7", "--verifier", "support.synthesis:Gold", "--shard-size", "4")  # fmt: skip


def rrm(folder: Path, *words: object, spec: object = SPEC, count: int | None = 18) -> Outcome:
    counted = () if count is None else ("--count", count)
    return premeditate("data", "rrm", spec, *counted, "-o", folder, *WORDS, *words)


def shards(folder: Path) -> dict[str, bytes]:
    """Everything that the data is, by name: shards and pictures."""
    found = [*(folder / "shards").iterdir(), *(folder / "images").rglob("*.png")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def sheet(folder: Path) -> dict[str, Any]:
    """The datasheet without what depends on the clock."""
    found = json.loads((folder / "datasheet.json").read_bytes())
    del found["seconds"]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run gives that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    done = rrm(folder)
    assert done.code == 0, done.err
    return folder


def test_a_run_says_what_came_of_it(whole: Path, tmp_path: Path) -> None:
    done = rrm(tmp_path / "out", "--json", "--at-once", "3")
    assert done.code == 0 and done.err == ""
    assert shards(tmp_path / "out") == shards(whole)
    assert done.json["shards"] == {"whole": 5, "total": 5, "missing": [], "uncounted": []}
    assert done.json["edits"]["kept"] == len(list(judged.read(whole))) == 36
    told = rrm(whole, "--resume")
    assert told.code == 0
    for word in ("5 of 5, 18 tasks", "36 of 36 kept", "joint:support.synthesis:first @ 0.7", "datasheet.md"):
        assert word in told.out, told.out


def test_killed_in_mid_run_and_resumed_the_data_is_the_same_byte_for_byte(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    words = ["data", "rrm", SPEC, "--count", "18", "-o", str(folder), *WORDS]
    words[words.index("support.synthesis:first")] = "support.synthesis:slowly"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]])
    running = subprocess.Popen([sys.executable, "-m", "premeditate.cli", *words], cwd=tmp_path,
                               env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL)  # fmt: skip
    until = time.monotonic() + 60
    while not (folder / "shards" / "00001.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    there = sorted(p.name for p in (folder / "shards").iterdir() if p.suffix == ".jsonl")
    assert 2 <= len(there) < 5
    for name in there:  # what is there is whole
        assert len(list(judged.read_shard(folder / "shards" / name))) in (8, 4)
    plain = tmp_path / "plain"
    for target, more in ((folder, ["--resume"]), (plain, [])):
        words[words.index("-o") + 1] = str(target)
        done = premeditate(*words, *more)
        assert done.code == 0, done.err
    stray = list(folder.rglob(".premeditate-*"))
    assert len(stray) <= 1  # a file that was being written; nothing reads it
    for path in stray:
        path.unlink()
    assert shards(folder) == shards(plain) and sheet(folder) == sheet(plain)


def test_two_machines_make_what_one_makes(whole: Path, tmp_path: Path) -> None:
    one, other, both = tmp_path / "one", tmp_path / "other", tmp_path / "both"
    half = rrm(one, "--part", "1/2")
    assert half.code == 0 and "2 shards are missing" in half.out
    assert rrm(other, "--part", "2/2").code == 0
    assert sorted(p.name for p in (one / "shards").iterdir()) == ["00000.jsonl", "00002.jsonl", "00004.jsonl"]
    assert rrm(both, "--part", "2/2").code == 0 and rrm(both, "--part", "1/2").code == 0
    assert shards(both) == shards(whole) and sheet(both) == sheet(whole)
    shutil.copytree(other, one, dirs_exist_ok=True)
    assert shards(one) == shards(whole)
    assert rrm(one, "--resume").code == 0 and sheet(one) == sheet(whole)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/", "-1/2", "1/2/3"])
def test_a_part_that_there_is_not(text: str, tmp_path: Path) -> None:
    done = rrm(tmp_path, "--part", text)
    assert done.code == 7 and "write I/N" in done.err and Part.parse("2/3").has(4)


def test_a_folder_is_never_a_mixture(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    before = shards(folder)
    assert "holds 5 of these 5 shards already; add --resume" in rrm(folder).err
    for more, what in ((("--seed", "7"), "seed is 0 there and 7 here"),
                       (("--temperature", "2"), "temperatures is [0.0, 0.7] there and [0.0, 0.7, 2.0] here"),
                       (("--edits-per-editor", "2"), "edits_per_editor is 1 there and 2 here"),
                       (("--min-accuracy", "0.5"), "min_accuracy is 0.0 there and 0.5 here")):  # fmt: skip
        done = rrm(folder, "--resume", *more)
        assert done.code == 7 and what in done.err and "another folder" in done.err, done.err
    assert "count is 18 there and 17 here" in rrm(folder, "--resume", count=17).err
    (folder / "settings.json").unlink()
    assert "holds shards and no settings.json" in rrm(folder, "--resume").err
    (folder / "settings.json").write_text("{")
    assert "settings.json cannot be read" in rrm(folder, "--resume").err
    assert shards(folder) == before


def test_a_run_that_never_got_anywhere_holds_nobody_to_its_settings(tmp_path: Path) -> None:
    dead = rrm(tmp_path / "out", "--editor", "support.synthesis:SECRET")
    assert dead.code == 5 and "is no editor" in dead.err and not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "settings.json").write_text("{}")
    assert rrm(tmp_path / "out", count=2).code == 0


def test_a_dry_run_says_how_many_calls_there_will_be(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = rrm(tmp_path / "out", "--dry-run", "--json")
    assert done.code == 0 and not (tmp_path / "out").exists()
    found = done.json
    assert found["shards"] == {"missing": 5, "total": 5} and (found["tasks"], found["edits"]) == (18, 36)
    models = {"editor support.synthesis:one": synthesis.one, "editor support.synthesis:other": synthesis.other,
              "judge joint:support.synthesis:first": synthesis.first,
              "judge apart:support.synthesis:second": synthesis.second}  # fmt: skip
    for model in models.values():
        monkeypatch.setattr(model, "calls", [])
    assert rrm(tmp_path / "out").code == 0
    assert found["calls"] == {"verifier support.synthesis:Gold": None, **{k: len(m.asked) for k, m in models.items()}}
    shown = rrm(whole, "--dry-run")
    assert "0 of 5 to make" in shown.out and "not known" in shown.out


def test_a_list_on_disk_is_read_a_shard_at_a_time_and_its_bad_rows_are_counted(tmp_path: Path) -> None:
    rows = make(6)
    tasks.write(tmp_path / "list", rows)
    with (tmp_path / "list" / "tasks.jsonl").open("a") as file:
        file.write('{"id": "lost", "image": "nowhere.png", "instruction": "paint it"}\nnonsense\n')
    done = rrm(tmp_path / "out", "--json", spec=tmp_path / "list", count=None)
    assert done.code == 0 and done.json["tasks"] == 8 and done.json["edits"]["kept"] == 12
    assert done.json["lost"]["unreadable task"]["count"] == 2 and "nowhere.png" in done.out
    first = rrm(tmp_path / "first", "--json", spec=tmp_path / "list", count=4)
    assert first.json["tasks"] == 4
    assert (tmp_path / "first" / "shards" / "00000.jsonl").read_bytes() == (
        tmp_path / "out" / "shards" / "00000.jsonl"
    ).read_bytes()
    with (tmp_path / "list" / "tasks.jsonl").open("a") as file:
        file.write("more\n")
    assert "digest is" in rrm(tmp_path / "first", "--resume", spec=tmp_path / "list", count=4).err
    assert rrm(tmp_path / "x", spec=tmp_path / "nothing", count=None).code == 2
    assert "is told" in rrm(tmp_path / "x", count=None).err or "is not told" in rrm(tmp_path / "x", count=None).err


def test_interrupted_it_says_how_to_go_on(tmp_path: Path) -> None:
    words = ["data", "rrm", SPEC, "--count", "400", "-o", "out", "--part", "2/4", *WORDS]
    words[words.index("support.synthesis:first")] = "support.synthesis:slowly"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]])
    running = subprocess.Popen(
        [sys.executable, "-m", "premeditate.cli", *words], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE, text=True,
        # A shell that starts the tests in the background has them ignore interrupts, and their children too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    until = time.monotonic() + 60
    while not (tmp_path / "out" / "datasheet.md").exists() and time.monotonic() < until:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    there = len(list((tmp_path / "out" / "shards").glob("*.jsonl")))
    assert running.returncode == 130
    assert f"interrupted; {there} of 100 shards are whole; go on with the same command and --resume" in err


def test_the_shard_in_work_is_counted_from_those_that_are_there() -> None:
    shown = Progress(Console(file=io.StringIO()), 3, 2, 8, 8, quiet=True)  # the other three are another machine's
    assert shown.text().startswith("shard 4/8;")
    shown.made(1, Counts(tasks=4))
    assert shown.text().startswith("shard 5/8;")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--min-accuracy", "2"), "a share, 0 to 1"),
        (("--temperature", "-1"), "give 0 to 10"),
        (("--temperature", "0.7"), "the temperature 0.7 is given twice"),
        (("--temperature", "0"), "the temperature 0.0 is given twice"),
        (("--judge", "joint:support.synthesis:first"), "given twice"),
        (("--judge", "apart:"), "names no reasoner"),
        (("--editor", "support.synthesis:one"), "given twice"),
        (("--verifier", "preservation"), "does not answer principles"),
        (("--verifier", "nobody"), "there is no reward"),
        (("--editor", "micrrro"), "there is no editor"),
    ],
)
def test_wrong_usage_is_refused_with_the_mend(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = rrm(tmp_path / "out", *words)
    assert done.code in (2, 5) and said in done.err and not (tmp_path / "out").exists(), done.err


def test_a_judge_behind_addresses_is_pooled_and_leaves_no_key_behind(tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> str:
        text = body["messages"][0]["content"][-1]["text"]
        count = len(synthesis.PRINCIPLE.findall(text))
        lines = [f"{i}: {i % 2}" for i in range(1, count + 1)]
        return "\n".join(["<think>I looked</think>", *lines, "average: 0.5", "<score>6.5</score>"])

    with ChatServer() as one, ChatServer() as other:
        one.reply = other.reply = reply
        one.key = other.key = "secret-key"
        judge = f"{one.url},{other.url}?key=secret-key#tiny"
        words = ("--count", 6, "-o", tmp_path / "out", "--editor", "support.synthesis:one", "--verifier",
                 "support.synthesis:Gold", "--shard-size", 3, "--at-once", 2)  # fmt: skip
        done = premeditate("data", "rrm", SPEC, "--judge", judge, *words, "--json")
        assert done.code == 0, done.err
        assert len(one.bodies) + len(other.bodies) >= 18 and min(len(one.bodies), len(other.bodies)) > 0
    edits = list(judged.read(tmp_path / "out"))
    assert len(edits) == 6 and all(len(e.candidates) == 3 and e.kept.score == 6.5 for e in edits)
    assert done.json["models"][0][f"judge {edits[0].kept.judge}"] == "tiny"
    assert all(b"secret-key" not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    # Nobody is there any more: the run ends with the reason, and the shards stay.
    gone = premeditate("data", "rrm", SPEC, "--judge", judge, *words[:3], tmp_path / "gone", *words[4:])
    assert gone.code == 5 and "secret-key" not in gone.err, gone.err
