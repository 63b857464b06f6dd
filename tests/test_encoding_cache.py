"""The cache of encodings: what it gives back, what it makes again, and what it never uses."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from premeditate.datasets.tasks import TaskRow
from premeditate.errors import WriteError
from premeditate.training.data import DataError
from premeditate.training.flow import cache
from premeditate.training.flow.adapters.kontext import KontextAdapter
from premeditate.training.flow.adapters.qwen_image_edit import QwenImageEditPlusAdapter
from premeditate.training.flow.cache import EncodingCache, build
from support.adapter_conformance import picture
from support.tiny_editor import build_kontext
from support.tiny_pipelines import build_qwen_edit_plus


class Counting(KontextAdapter):
    """Counts the tasks that are encoded, and is killed before one of them."""

    encoded = 0
    kill_at: int | None = None

    def encode(self, images: Sequence[Image.Image], prompt: str) -> dict[str, torch.Tensor]:
        if self.encoded == self.kill_at:
            raise KeyboardInterrupt
        self.encoded += 1
        return super().encode(images, prompt)


PIPELINE = build_kontext(tokens=40)


def adapter(**options: Any) -> Counting:
    return Counting(PIPELINE, **{"size": 32, **options})


def rows(count: int, prompt: str = "red") -> list[TaskRow]:
    return [TaskRow(f"t{i}", (picture(32, 32 + i % 2, i),), prompt + "x" * (i % 5)) for i in range(count)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SHARD", 4)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"), key=lambda p: p.stat().st_mtime_ns)


def test_gives_back_what_was_encoded(tmp_path: Path) -> None:
    said: list[str] = []
    one, tasks = adapter(text_tokens="real"), rows(10)
    held = EncodingCache.open(tmp_path / "new" / "cache", one, tasks, say=said.append)
    assert len(held) == one.encoded == 10 and len(shards(tmp_path / "new" / "cache")) == 3
    assert said == ["encoded 4 of 10 tasks", "encoded 8 of 10 tasks", "encoded 10 of 10 tasks"]
    for i in (9, 0, 5, -1):
        wanted = KontextAdapter.encode(one, tasks[i].images, tasks[i].instruction)
        assert set(held[i]) == set(wanted) and len(held[i]) == len(wanted)
        assert all(torch.equal(held[i][name], part) and held[i][name].dtype == part.dtype
                   for name, part in wanted.items())  # fmt: skip
    assert [len(e["text"]) for e in held[3:6]] == [len(held[i]["text"]) for i in (3, 4, 5)]
    assert one.shape_key(held[0]) == one.shape_key(held[2])
    assert len(one.collate([held[0], held[2]], repeats=2)) == 4
    with pytest.raises(IndexError):
        held[10]
    with pytest.raises(KeyError):
        held[0]["nothing"]


def test_half_precision_is_kept(tmp_path: Path) -> None:
    one = Counting(build_kontext(tokens=40).to(torch.bfloat16), size=32)
    held = EncodingCache.open(tmp_path, one, rows(2))
    assert held[1]["text"].dtype == torch.bfloat16
    assert torch.equal(held[1]["text"], one.encode(rows(2)[1].images, rows(2)[1].instruction)["text"])


def test_is_built_once(tmp_path: Path) -> None:
    EncodingCache.open(tmp_path, adapter(), rows(10))
    before = [(p.name, p.stat().st_mtime_ns) for p in shards(tmp_path)]
    again, said = adapter(), list[str]()
    assert len(EncodingCache.open(tmp_path, again, rows(10), say=said.append)) == 10
    assert again.encoded == 0 and said == []
    assert before == [(p.name, p.stat().st_mtime_ns) for p in shards(tmp_path)]
    # Fewer tasks share the whole shards; works without encoders too.
    again.pipeline.text_encoder, kept = None, again.pipeline.text_encoder
    try:
        assert len(EncodingCache.open(tmp_path, again, rows(8))) == 8
    finally:
        again.pipeline.text_encoder = kept


def test_goes_on_after_a_kill(tmp_path: Path) -> None:
    killed = adapter()
    killed.kill_at = 6
    with pytest.raises(KeyboardInterrupt):
        EncodingCache.open(tmp_path, killed, rows(10))
    assert len(shards(tmp_path)) == 1 and len(list(tmp_path.iterdir())) == 1
    said: list[str] = []
    after = adapter()
    EncodingCache.open(tmp_path, after, rows(10), say=said.append)
    assert after.encoded == 6 and said == ["encoded 4 of 6 tasks", "encoded 6 of 6 tasks"]


def test_processes_share_the_work(tmp_path: Path) -> None:
    parts = [adapter(), adapter()]
    for k, one in enumerate(parts):
        build(tmp_path, one, rows(10), part=(k, 2))
    assert [one.encoded for one in parts] == [6, 4]
    whole = adapter()
    EncodingCache.open(tmp_path, whole, rows(10))
    assert whole.encoded == 0


CHANGES = {
    "size": lambda: (adapter(size=48), rows(4)),
    "text tokens": lambda: (adapter(text_tokens=30), rows(4)),
    "prompts": lambda: (adapter(), rows(4, "blue")),
    "one picture": lambda: (adapter(), [*rows(3), TaskRow("t3", (picture(32, 33, 77),), "redxxx")]),
    "order": lambda: (adapter(), rows(4)[::-1]),
    "encoder": lambda: (Counting(build_kontext(seed=1, tokens=40), size=32), rows(4)),
    "precision": lambda: (Counting(build_kontext(tokens=40).to(torch.bfloat16), size=32), rows(4)),
    "guidance": lambda: (adapter(true_cfg_scale=3.0), rows(4)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_shapes_an_encoding_names_it(tmp_path: Path, change: str) -> None:
    EncodingCache.open(tmp_path, adapter(), rows(4))
    other, tasks = CHANGES[change]()
    EncodingCache.open(tmp_path, other, tasks)
    assert other.encoded == 4 and len(shards(tmp_path)) == 2
    same = adapter()
    EncodingCache.open(tmp_path, same, rows(4))
    assert same.encoded == 0, "the first is still there"


def test_ids_and_scales_do_not_shape_it(tmp_path: Path) -> None:
    EncodingCache.open(tmp_path, adapter(), rows(4))
    one = adapter(guidance_scale=7.0)
    EncodingCache.open(tmp_path, one, [TaskRow("other", row.images, row.instruction) for row in rows(4)])
    assert one.encoded == 0


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def junk(path: Path) -> None:
    path.write_bytes(os.urandom(500))


@pytest.mark.parametrize("damage", [cut, flip, empty, junk])
def test_damage_is_found_and_mended(tmp_path: Path, damage: Any) -> None:
    wanted = EncodingCache.open(tmp_path, adapter(), rows(8))[1]["text"].clone()
    broken = shards(tmp_path)[0]
    damage(broken)
    one, said = adapter(), list[str]()
    held = EncodingCache.open(tmp_path, one, rows(8), say=said.append)
    assert one.encoded == 4
    assert str(broken) in said[0] and "damaged" in said[0] and "made again" in said[0]
    assert torch.equal(held[1]["text"], wanted)


def test_a_foreign_shard_is_not_used(tmp_path: Path) -> None:
    EncodingCache.open(tmp_path / "a", adapter(), rows(4))
    EncodingCache.open(tmp_path / "b", adapter(), rows(4, "blue"))
    shards(tmp_path / "b")[0].rename(shards(tmp_path / "a")[0])
    one, said = adapter(), list[str]()
    EncodingCache.open(tmp_path / "a", one, rows(4), say=said.append)
    assert one.encoded == 4 and "of something else: made again" in said[0]


def test_bad_tasks_are_found_before_any_is_encoded(tmp_path: Path) -> None:
    tasks = [*rows(6), TaskRow("long", (picture(32, 32),), "a b " * 30), TaskRow("none", (), "red")]
    one = adapter()
    with pytest.raises(
        DataError, match=r"2 tasks cannot be encoded: long: the prompt has \d+ tokens.*none: .*no image"
    ):
        EncodingCache.open(tmp_path, one, tasks)
    assert one.encoded == 0


def test_a_task_that_turns_out_bad_is_named(tmp_path: Path) -> None:
    one = QwenImageEditPlusAdapter(build_qwen_edit_plus(), size=32, true_cfg_scale=1.0, text_tokens=20)
    with pytest.raises(
        DataError, match=r"the task t0 cannot be encoded: .* tokens, 20 are read; say it in fewer words"
    ):
        EncodingCache.open(tmp_path, one, rows(1))


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WriteError, match="disk is full"):
            EncodingCache.open(tmp_path, adapter(), rows(4))
    assert list(tmp_path.iterdir()) == []
    assert len(EncodingCache.open(tmp_path, adapter(), rows(4))) == 4
