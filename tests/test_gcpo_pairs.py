"""The pairs that GCPO reads, with their principles, and its recipe: what is refused or left out, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from premeditate import images, presets
from premeditate.config import ConfigError, load_config
from premeditate.datasets.preferences import Pair
from premeditate.rewards.checklists.builder import ChecklistBuilder
from premeditate.training.data import DataError
from premeditate.training.errors import TrainingError
from premeditate.training.policy import Place
from premeditate.training.verifier.pairs import digest, load
from premeditate.training.verifier.recipe import Data, VerifierRecipe
from premeditate.training.verifier.run import train_gcpo
from support.checklists import GOOD, Model, said
from support.preferred import ITEMS, Scripted, grey, recipe, scored, trainer, white_wins


def written(folder: Path, name: str, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


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
    author = Model(said(GOOD))
    monkeypatch.setattr(presets, "load_reasoner", lambda spec, **_: author)
    path = editreward(pictures) if kind == "editreward" else editscore(pictures)
    data = {"train": str(path), "train_count": None, "eval": str(path), "eval_count": 2}
    if kind == "editscore":
        data |= {"checklists": "author", "folder": str(pictures / "checklists")}
    found = train_gcpo(recipe(pictures / "run", judge, steps=1, data=data, optimizer={"lr": 1e-3}))
    assert found["steps"] == 1 and found["after"]["eval/pairs.accuracy/n"] == 2
    assert len(author.written) == (0 if kind == "editreward" else 1), "one source, one instruction: one checklist"
    assert len(list(pictures.glob("checklists/*"))) == len(author.written)


def test_pictures_in_files_are_read_when_they_are_needed(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = images.load
    monkeypatch.setattr(images, "load", lambda path, *a, **k: opened.append(Path(path).name) or real(path, *a, **k))
    found = load(str(editreward(pictures)), None, Data(), None, print)
    assert len(found) == 4 and not opened and len(digest(found)) == 64
    source, better, worse = found[1].pictures()
    assert (source.getpixel((0, 0))[0], better.getpixel((0, 0))[0], worse.getpixel((0, 0))[0]) == (100, 249, 1)
    assert sorted(opened) == ["dark1.png", "light1.png", "source.png"]


def test_a_pair_whose_picture_is_gone_is_unavailable_and_the_run_goes_on(pictures: Path) -> None:
    pairs = load(str(editreward(pictures)), None, Data(), None, print)
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


def awkward(n: int, seed: int = 0) -> list[Pair]:
    one, two, three, four, five, *_ = white_wins(6)
    return [
        one, replace(two, preference="tie"), replace(three, first=three.second.copy()), replace(four, meta={}),
        replace(five, instruction="  "), replace(one, instruction="make  it\nwhite ", id="p0"),
        replace(one, meta={"checklist": []}),
    ]  # fmt: skip


def test_what_is_left_out_is_counted_with_its_reason() -> None:
    lines: list[str] = []
    found = load("test_gcpo_pairs:awkward", 9, Data(), None, lines.append)
    assert [one.pair.instruction for one in found] == ["make it white"] * 2
    (line,) = lines
    assert line.startswith("5 pairs of test_gcpo_pairs:awkward are left out: ")
    for part in ("1 a tie", "2 no principles", "the two edits are the same picture", "the instruction is empty"):
        assert part in line


def test_pairs_without_principles_say_how_to_get_some(pictures: Path) -> None:
    with pytest.raises(DataError, match=r"no pair to learn from \(no principles\); give data.checklists=SPEC"):
        load(str(editscore(pictures)), None, Data(), None, print)
    with pytest.raises(DataError, match=r"\(a tie\); give pairs of which one edit is preferred"):
        load(str(editreward(pictures, tie_case=True)), None, Data(), None, print)
    with pytest.raises(DataError, match=r"meta.checklist is none .*; give a list of \{question, dimension\}"):
        load(str(editreward(pictures, checklist=["Is it white?"])), None, Data(), None, print)
    with pytest.raises(DataError, match=r"principles are unavailable \(error: down\).*; give another reasoner"):
        load(str(editscore(pictures)), None, Data(), ChecklistBuilder(Model(None)), print)


def bare(n: int, seed: int = 0) -> list[Pair]:
    """Without principles, and with one id for all."""
    return [replace(pair, id="same", meta={}) for pair in white_wins(n)]


def test_principles_are_written_once_and_kept(tmp_path: Path) -> None:
    def answers() -> Iterator[str]:
        for i in range(3):
            yield said({**GOOD, "follow": [f"Is it as white as snow {i}{k}?" for k in range(3)]})

    author = Model(*answers())
    found = load("test_gcpo_pairs:bare", 3, Data(), ChecklistBuilder(author, folder=tmp_path), print)
    assert len(author.written) == 3
    firsts = [one.principles[0].question for one in found]
    assert firsts == [f"Is it as white as snow {i}0?" for i in range(3)], "each pair has its own"
    again = Model(None)
    assert load("test_gcpo_pairs:bare", 3, Data(), ChecklistBuilder(again, folder=tmp_path), print) == found
    assert not again.written
    assert digest(found) != digest([replace(found[0], principles=found[1].principles), *found[1:]])
    assert digest(found) != digest(found[:2])


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
