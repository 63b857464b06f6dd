"""`premeditate.training.editor.train` as a whole: the unfinished micro editor from a recipe to exported weights."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from premeditate.config import ConfigError, load_config
from premeditate.datasets.tasks import TaskRow
from premeditate.editors.base import EditRequest
from premeditate.errors import ModelError, WriteError
from premeditate.microworld.dataset import explicit_held_out
from premeditate.presets import load_editor
from premeditate.rewards.base import RewardError, Sample
from premeditate.training import checkpoint
from premeditate.training.data import DataError
from premeditate.training.editor import train
from premeditate.training.errors import TrainingError
from premeditate.training.journal import read
from premeditate.training.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    "data.train_count=8", "data.eval_count=4", "batch.groups=2", "batch.group_size=4", "rollout.steps=3", "steps=2",
    "evaluation.every=2", "checkpoint.every=1", "logging.grids=2",
)  # fmt: skip


def recipe(out: Path, *more: str, name: str = "flow-grpo") -> Recipe:
    return load_config(Recipe, ROOT / "recipes" / "microworld" / f"{name}.yaml", [*SMALL, f"out={out}", *more])


def wrong_count(samples: Sequence[Sample]) -> list[float | None]:
    return [0.5]


def raises(samples: Sequence[Sample]) -> list[float | None]:
    raise RuntimeError("no judge today")


def test_a_run_writes_its_record_and_weights_that_edit(tmp_path: Path) -> None:
    lines: list[str] = []
    seen: list[tuple[str, int]] = []
    result = train(
        recipe(tmp_path, "model.lora={rank: 4}", "optimizer.lr=1e-3", "optimizer.ema=0.5"),
        say=lines.append, on_figures=lambda kind, step, figures: seen.append((kind, step)),
    )  # fmt: skip
    assert seen == [("eval", 0), ("step", 1), ("step", 2), ("eval", 2)]
    assert result["steps"] == 2 and result["before"]["step"] == 0 and result["after"]["step"] == 2
    assert {"eval/success.success", "eval/graded.follow", "eval/preservation.ssim"} <= result["after"].keys()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"recipe.yaml", "log.jsonl", "checkpoints", "encodings", "export", "grids"} <= names
    assert load_config(Recipe, tmp_path / "recipe.yaml", []).model.lora is not None
    with Image.open(tmp_path / "grids" / "step-000002.png") as grid:
        assert grid.width > 300
    card = (tmp_path / "export" / "README.md").read_text()
    assert "flow-grpo" in card and "micro-base" in card and "load_lora_weights" in card
    # The exported weights change what the editor makes, through the adapter that everyone uses.
    (row,) = explicit_held_out(1, 5)
    request = EditRequest(images=row.images, prompt=row.instruction, seed=1)

    def edit(**options: Any) -> bytes:
        import asyncio

        (found,) = asyncio.run(load_editor("micro-base", **options).edit([request]))
        assert found.image is not None, found.error
        return found.image.tobytes()

    assert edit() == edit(lora=str(tmp_path / "export"), lora_scale=0.0)
    assert edit() != edit(lora=str(tmp_path / "export"))


@pytest.mark.parametrize("name", ["nft", "mix-grpo"])
def test_a_run_that_was_stopped_goes_on_to_the_same_end(tmp_path: Path, name: str) -> None:
    train(recipe(tmp_path / "straight", name=name))
    train(recipe(tmp_path / "stopped", "steps=1", name=name))
    train(recipe(tmp_path / "stopped", name=name), resume=True)
    ends = []
    for run in ("straight", "stopped"):
        path = checkpoint.latest(tmp_path / run)
        assert path is not None
        saved = checkpoint.load(path, recipe(tmp_path / run, name=name))
        rows = [{k: v for k, v in row.items() if k != "at" and "seconds" not in k}
                for row in read(tmp_path / run) if row["kind"] != "notice"]  # fmt: skip
        ends.append((saved.model, [row for row in rows if row["step"] != 1 or row["kind"] == "step"]))
    (model, log), (other, other_log) = ends
    assert model.keys() == other.keys() and all(torch.equal(model[k], other[k]) for k in model)
    assert log == other_log


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        (["batch.groups=3", "batch.updates=2"], ConfigError, r"batch\.groups=2 or batch\.groups=4"),
        (["rollout.window={kind: fixed, size: 5}"], ValueError, "window"),
        (["model.base=nowhere"], ModelError, "nowhere"),
        (["data.train=nothing/here"], ValueError, "nothing/here"),
        (["data.train=premeditate.microworld.dataset:no_such"], DataError, "no_such"),
        (["rewards=[{use: preservations}]"], ModelError, "preservation"),
        (["rewards=[{use: 'test_train:wrong_count'}]"], RewardError, "wrong_count"),
        (["rewards=[{use: 'test_train:raises'}]"], TrainingError, "no judge today"),
        (["model.lora={rank: 4, targets: [to_x]}"], ModelError, "to_x"),
        (["logging.to=[wandb]"], ValueError, r"premeditate\[wandb\]"),
    ],
    ids=lambda value: value[0].split("=")[0] if isinstance(value, list) else None,
)
def test_what_cannot_be_trained_is_said_with_the_mend(
    tmp_path: Path, more: list[str], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        train(recipe(tmp_path, *more))
    assert checkpoint.latest(tmp_path) is None


def test_tasks_without_their_pictures_are_listed(tmp_path: Path) -> None:
    lines = [{"id": f"t{i}", "image": f"gone{i}.png", "instruction": "paint it red"} for i in range(7)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match=r"7 of 7 rows .*gone0\.png.*and 2 more"):
        train(recipe(tmp_path / "run", f"data.train={tmp_path}"))


def test_prompts_that_the_model_cannot_read_are_named(tmp_path: Path) -> None:
    from premeditate.datasets import tasks

    (row,) = explicit_held_out(1, 0)
    tasks.write(tmp_path / "long", [TaskRow("far-too-long", row.images, "paint the cat red " * 30)])
    with pytest.raises(ValueError, match=r"far-too-long.*tokens"):
        train(recipe(tmp_path / "run", f"data.train={tmp_path / 'long'}"))


def test_checkpoints_are_neither_overwritten_nor_mistaken(tmp_path: Path) -> None:
    train(recipe(tmp_path, "steps=1"))
    kept = checkpoint.latest(tmp_path)
    with pytest.raises(TrainingError, match=r"--resume"):
        train(recipe(tmp_path))
    with pytest.raises(TrainingError, match=r"another recipe: optimizer\.lr was 0\.0001, is 0\.002"):
        train(recipe(tmp_path, "optimizer.lr=2e-3"), resume=True)
    assert kept is not None and checkpoint.damage(kept) is None


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(recipe(tmp_path, "steps=1"))
    kept = checkpoint.latest(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(WriteError, match=r"disk is full.*--resume"):
        train(recipe(tmp_path), resume=True)
    assert checkpoint.latest(tmp_path) == kept and kept is not None and kept.name == "step-000001"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000001"]
