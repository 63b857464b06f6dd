"""The pairs that GCPO reads, with their principles, and its recipe: what is refused or left out, and why."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from premeditate import images, presets
from premeditate.config import ConfigError, load_config
from premeditate.datasets.preferences import BadPair, Pair
from premeditate.training.data import DataError
from premeditate.training.distributed import World
from premeditate.training.errors import TrainingError
from premeditate.training.policy import Place
from premeditate.training.verifier.pairs import Comparison, Say, Write, digest
from premeditate.training.verifier.pairs import load as load_both
from premeditate.training.verifier.principles import principles
from premeditate.training.verifier.recipe import Data, VerifierRecipe
from premeditate.training.verifier.run import train_gcpo
from support.checklists import GOOD, Model, said
from support.preferred import ITEMS, Scripted, grey, recipe, scored, trainer, white_wins


def written(folder: Path, name: str, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def load(spec: Any, count: int | None, write: Write | None = None, say: Say = print) -> list[Comparison]:
    """The training pairs alone."""
    return load_both(Data(train=str(spec), train_count=count, eval=None), write, say)[0]


def author(model: Any, out: Path, monkeypatch: pytest.MonkeyPatch, resumed: bool = False, folder: Any = None) -> Write:
    """Writes principles as a run in `out` does, with `model`."""
    monkeypatch.setattr(presets, "load_reasoner", lambda spec, **_: model)
    data = Data(checklists="author", folder=None if folder is None else str(folder))
    return lambda rows: principles(rows, data, out, World(), print, resumed=resumed)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with pictures: source.png, light0.png to light5.png, dark0.png to dark5.png."""
    grey(100).save(tmp_path / "source.png")
    for i in range(6):
        grey(250 - i).save(tmp_path / f"light{i}.png")
        grey(i).save(tmp_path / f"dark{i}.png")
    return tmp_path


def editreward(pictures: Path, **changes: Any) -> Path:
    items = [item.model_dump() for item in ITEMS]
    rows = [{"prompt": "make it white", "path_src": "source.png", "path1": f"light{i}.png", "path2": f"dark{i}.png",
             "tie_case": "false", "checklist": items, **changes} for i in range(4)]  # fmt: skip
    return written(pictures, "editreward.jsonl", rows)


def editscore(pictures: Path) -> Path:
    rows = [{"key": [f"a{i}", f"b{i}"], "instruction": "make it white", "input_image": "source.png",
             "output_images": [f"light{i}.png", f"dark{i}.png"], "task_type": "color", "dimension": "overall"}
            for i in range(4)]  # fmt: skip
    return written(pictures, "editscore.jsonl", rows)


@pytest.mark.parametrize("kind", ["editreward", "editscore"])
def test_published_pairs_train_as_they_are(
    judge: Path, pictures: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Model(said(GOOD))
    monkeypatch.setattr(presets, "load_reasoner", lambda spec, **_: writer)
    path = editreward(pictures) if kind == "editreward" else editscore(pictures)
    data = {"train": str(path), "train_count": None, "eval": str(path), "eval_count": 2}
    if kind == "editscore":
        data |= {"checklists": "author", "folder": str(pictures / "checklists")}
    found = train_gcpo(recipe(pictures / "run", judge, steps=1, data=data, optimizer={"lr": 1e-3}))
    assert found["steps"] == 1 and found["after"]["eval/pairs.accuracy/n"] == 2
    assert len(writer.written) == (0 if kind == "editreward" else 1), "one source, one instruction: one checklist"
    assert len(list(pictures.glob("checklists/*"))) == len(writer.written)


def test_pictures_in_files_are_read_when_they_are_needed(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = images.load
    monkeypatch.setattr(images, "load", lambda path, *a, **k: opened.append(Path(path).name) or real(path, *a, **k))
    found = load(editreward(pictures), None)
    assert len(found) == 4 and not opened and len(digest(found)) == 64
    source, better, worse = found[1].pictures()
    assert (source.getpixel((0, 0))[0], better.getpixel((0, 0))[0], worse.getpixel((0, 0))[0]) == (100, 249, 1)
    assert sorted(opened) == ["dark1.png", "light1.png", "source.png"]


def test_a_pair_whose_picture_is_gone_is_unavailable_and_the_run_goes_on(pictures: Path) -> None:
    pairs = load(editreward(pictures), None)
    (pictures / "light2.png").unlink()
    grey(3).save(pictures / "light3.png")  # as dark3.png
    model = Scripted(lambda request: scored(request.seed % 7))
    run = trainer(recipe(min_coverage=0.4), model, pairs, pairs)
    figures = run.train_step()
    assert figures["coverage"] == 0.5 and len(model.asked) == 12 and figures["samples/kept"] > 0
    run.step = 1
    reasons = set[str]()
    for rollout in run.policy.sample([Place(1, i, i) for i in range(4)]):
        for sample in rollout.samples:
            (one,) = sample.task.meta["judged"]
            assert one["status"] == ("unavailable" if sample.task.id.endswith(("3", "4")) else "scored")
            reasons.add(one["reason"])
    assert sum("light2.png" in why for why in reasons) == 1 == sum("the same picture" in why for why in reasons)
    held_out = run.evaluate()
    assert held_out["eval/coverage"] == 0.5
    with pytest.raises(TrainingError, match="only 50% of the samples"):
        trainer(recipe(min_coverage=0.6), model, pairs).train_step()


def awkward(n: int, seed: int = 0) -> list[Pair | BadPair]:
    one, two, three, four, five, *_ = white_wins(6)
    return [
        one, replace(two, preference="tie"), replace(three, first=three.second.copy()), replace(four, meta={}),
        replace(five, instruction="  "), replace(one, instruction="make  it\nwhite ", id="p0"),
        replace(one, meta={"checklist": []}), replace(one, meta={"checklist": "[{}]"}),
        replace(one, instruction=["make", "it"]),
        *(BadPair(f"row {i}", f"row {i}: there is nothing") for i in range(3)),
    ]  # fmt: skip


def test_what_is_left_out_is_counted_with_its_reason() -> None:
    lines: list[str] = []
    found = load("test_gcpo_pairs:awkward", 14, None, lines.append)
    assert [one.pair.instruction for one in found] == ["make it white"] * 2
    (line,) = lines
    assert line.startswith(
        "10 pairs of test_gcpo_pairs:awkward are left out: 3 no pair (there is nothing), first row 0; "
        "2 no principles, first p3; 1 a tie, first p1; 1 no pair (the two edits are the same picture), first p2; "
        "1 no pair (the instruction is empty; say what to change, "
    ) and line.endswith("; 2 others")  # fmt: skip


@pytest.mark.parametrize("checklist", ['[{"question": "Is it white?", "dimension": "follow"}]', ["Is it white?"], [[]]])
def test_principles_that_are_none_cost_their_pair_alone(pictures: Path, checklist: Any) -> None:
    path, lines = editreward(pictures), list[str]()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    written(pictures, path.name, [*rows[:1], {**rows[1], "checklist": checklist}, *rows[2:]])
    assert [one.id[-1] for one in load(path, None, None, lines.append)] == ["1", "3", "4"]
    assert lines == [
        f"1 pairs of {path} are left out: 1 principles that are none (meta.checklist), first {path.name}:2"
    ]


def test_rows_that_are_no_pairs_are_counted_by_reason(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, lines = editreward(pictures), list[str]()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    bad = [*({**row, "prompt": ["a"]} for row in rows[:2]), *({"path_src": "a", "path1": "b", "path2": "c"},) * 2]
    lost = [{**row, "path1": f"gone{i}.png", "checklist": None} for i, row in enumerate(rows[:2])]
    written(pictures, path.name, [*bad, *rows[2:], *lost])
    with path.open("a") as file:
        file.write("[" * 100_000 + "\n")
    found = load(path, None, author(Model(None), pictures / "run", monkeypatch), lines.append)
    assert [one.id[-1] for one in found] == ["5", "6"]
    for part in ("2 no pair (its instruction is no text; give what the editor was told), first editreward.jsonl:1;",
                 "2 no pair (has no prompt), first editreward.jsonl:3;", "1 no pair (is no JSON object), first",
                 "2 no pair (no such file: its picture; "):  # fmt: skip
        assert part in lines[0]


def test_pairs_without_principles_say_how_to_get_some(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no pair to learn from \(no principles\); give data.checklists=SPEC"):
        load(editscore(pictures), None)
    with pytest.raises(DataError, match=r"\(a tie\); give pairs of which one edit is preferred"):
        load(editreward(pictures, tie_case=True), None)
    with pytest.raises(DataError, match=r"principles that are none \(meta.checklist\).*; give a list of \{"):
        load(editreward(pictures, checklist=["Is it white?"]), None)
    with pytest.raises(DataError, match=r"principles are unavailable \(error: down\).*; give another reasoner"):
        load(editscore(pictures), None, author(Model(None), pictures, monkeypatch))


# -- principles that are written --------------------------------------------------------------------------------------


def bare(n: int, seed: int = 0) -> list[Pair]:
    """Without principles, and with one id for all."""
    return [replace(pair, id="same", meta={}) for pair in white_wins(n)]


def said_of(i: int) -> str:
    return said({**GOOD, "follow": [f"Is it as white as snow {i}{k}?" for k in range(3)]})


def test_principles_are_written_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Model(*map(said_of, range(3)))
    found = load("test_gcpo_pairs:bare", 3, author(first, tmp_path / "run", monkeypatch, folder=tmp_path / "kept"))
    assert len(first.written) == 3
    firsts = [one.principles[0].question for one in found]
    assert firsts == [f"Is it as white as snow {i}0?" for i in range(3)], "each pair has its own"
    again = Model(None)
    for out, resumed, folder in (("run", True, None), ("other", False, tmp_path / "kept")):
        write = author(again, tmp_path / out, monkeypatch, resumed, folder)
        assert load("test_gcpo_pairs:bare", 3, write) == found
    assert not again.written
    assert digest(found) != digest([replace(found[0], principles=found[1].principles), *found[1:]])
    assert digest(found) != digest(found[:2])


def test_a_run_that_goes_on_has_its_pairs_and_asks_only_for_those_it_never_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second pair got no principles when the run began, and it gets none later."""
    spec = "test_gcpo_pairs:bare"
    found = load(spec, 3, author(Model(said_of(0), None, said_of(2)), tmp_path, monkeypatch))
    assert [one.principles[0].question[-3:] for one in found] == ["00?", "20?"]
    later = Model(said_of(7))
    lines: list[str] = []
    again = load(spec, 4, author(later, tmp_path, monkeypatch, True), lines.append)
    assert again[:2] == found and digest(again[:2]) == digest(found)
    assert [one.principles[0].question[-3:] for one in again[2:]] == ["70?"] and len(later.written) == 1
    assert lines == [f"1 pairs of {spec} are left out: 1 principles are unavailable (error: down), first same"]
    anew = load(spec, 3, author(Model(said_of(5)), tmp_path, monkeypatch))
    assert [one.principles[0].question[-3:] for one in anew] == ["50?"] * 3, "one that begins asks for all"
    (tmp_path / "principles.jsonl").write_text("{}\n")
    with pytest.raises(TrainingError, match=r"line 1 of .*principles.jsonl.* cannot be read .*; put the file back"):
        load(spec, 3, author(Model(None), tmp_path, monkeypatch, True))


def test_a_run_whose_principles_were_not_all_written_can_be_resumed(
    judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"train": "test_gcpo_pairs:bare", "train_count": 5, "eval": None, "checklists": "author"}
    told = recipe(tmp_path, judge, steps=1, data=data, batch={"groups": 2, "group_size": 4, "forward": 8})
    monkeypatch.setattr(presets, "load_reasoner", lambda spec, **_: Model(said_of(0), None, said_of(2)))
    train_gcpo(told)
    up_again = Model(said_of(1))
    monkeypatch.setattr(presets, "load_reasoner", lambda spec, **_: up_again)
    found = train_gcpo(told.model_copy(update={"steps": 2}), resume=True)
    assert found["steps"] == 2 and not up_again.asked


def test_a_reasoner_that_is_down_ends_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not a few tasks that it cannot take, nor what lies in the folder."""
    spec, kept = "test_gcpo_pairs:bare", tmp_path / "kept"
    with pytest.raises(TrainingError, match=r"answered none of 5 times \(error: down\); put that right"):
        load(spec, 5, author(Model(None), tmp_path / "run", monkeypatch))
    assert not (tmp_path / "run").exists()
    load(spec, 4, author(Model(*map(said_of, range(4))), tmp_path / "run", monkeypatch, folder=kept))
    with pytest.raises(TrainingError, match=r"none of 4 times .*; what was written is kept in data.folder"):
        load(spec, 8, author(Model(None), tmp_path / "run", monkeypatch, folder=kept))
    assert len(load(spec, 7, author(Model(None), tmp_path / "run", monkeypatch, folder=kept))) == 4


class Closing(Model):
    """Knows the loops that it was used in, and those that it was closed in."""

    def __init__(self, *texts: str) -> None:
        super().__init__(*texts)
        self.used, self.closed = list[Any](), list[Any]()

    async def chat(self, requests: Sequence[Any]) -> list[Any]:
        self.used.append(asyncio.get_running_loop())
        return await super().chat(requests)

    async def aclose(self) -> None:
        self.closed.append(asyncio.get_running_loop())


def test_all_principles_are_written_in_one_loop_in_which_the_reasoner_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("premeditate.training.verifier.principles._PORTION", 2)
    model, spec = Closing(said_of(0)), "test_gcpo_pairs:bare"
    write = author(model, tmp_path, monkeypatch)
    train, held_out = load_both(Data(train=spec, train_count=3, eval=spec, eval_count=5), write, print)
    assert (len(train), len(held_out)) == (3, 5) and len(model.written) == 5, "a pair in both is asked for once"
    assert len(model.used) == 3 and len({id(loop) for loop in model.used + model.closed}) == 1 == len(model.closed)


SHARED = """
import sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
from premeditate import presets
from premeditate.training.distributed import World
from premeditate.training.verifier import principles
from premeditate.training.verifier.pairs import digest, load
from premeditate.training.verifier.recipe import Data
from support.checklists import Model
from test_gcpo_pairs import said_of
world, out = World.join("cpu"), Path({out!r})
asked = []
def load_reasoner(spec, **_):
    asked.append(spec)
    return Model(said_of(0), None, said_of(2))
presets.load_reasoner, principles._PORTION = load_reasoner, 1
data = Data(train="test_gcpo_pairs:bare", train_count=3, eval=None, checklists="author")
train, _ = load(data, lambda rows: principles.principles(rows, data, out, world, print, resumed=False), print)
(out / f"rank{{world.rank}}").write_text(f"{{len(asked)}} {{len(train)}} {{digest(train)}}")
world.leave()
"""


def test_one_process_writes_principles_for_all(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(SHARED.format(tests=str(Path(__file__).parent), out=str(tmp_path)))
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    one, two = ((tmp_path / f"rank{rank}").read_text().split() for rank in (0, 1))
    assert one[0] == "1" and two[0] == "0" and one[1:] == two[1:] and one[1] == "2"


# -- the recipe -------------------------------------------------------------------------------------------------------


def test_a_change_of_one_field_leaves_the_others_as_they_are() -> None:
    plain = load_config(VerifierRecipe, None, [])
    assert (plain.batch.group_size, plain.batch.forward, plain.optimizer.weight_decay) == (16, 16, 0)
    told = load_config(VerifierRecipe, None, ["batch.groups=4", "optimizer.warmup=3", "grouping.clip=0.5"])
    assert told.batch == plain.batch.model_copy(update={"groups": 4})
    assert told.optimizer == plain.optimizer.model_copy(update={"warmup": 3})
    assert told.grouping.kind == "gcpo" and told.grouping.clip == 0.5


@pytest.mark.parametrize(
    ("change", "mend"),
    [
        ("batch.group_size=5", "give batch.group_size=6"),
        ("grouping.kind=grpo", "give grouping.kind=gcpo"),
        ("sharding.kind=fsdp", "give sharding.kind=none"),
        ("optimizer.betas=[0.9,1]", r"give optimizer.betas=\[0.9,0.999\]"),
        ("judging.mode=all", "judging.mode"),
    ],
)
def test_what_cannot_be_is_refused_with_the_mend(change: str, mend: str) -> None:
    with pytest.raises(ConfigError, match=mend):
        load_config(VerifierRecipe, None, [change])
