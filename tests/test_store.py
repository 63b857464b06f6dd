"""A run survives whatever happens to it, or says in one line what happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from premeditate.errors import ExitCode, StoreError, WriteError
from premeditate.store import RunStore
from premeditate.trace import (
    SCHEMA_VERSION,
    Event,
    Finished,
    ImageRef,
    Plan,
    PlanWritten,
    RoundJudged,
    Started,
    Task,
    Verdict,
)
from test_trace import EDITED, REF, START, fold, histories

PLAN = PlanWritten(chain=0, plan=Plan(steps=("one\nline", "two\u2028lines \x00 \U0001f600")))


def start(trace_id: str) -> Started:
    return START.model_copy(update={"trace_id": trace_id})


def one_line(caught: pytest.ExceptionInfo[StoreError]) -> str:
    error = caught.value
    assert "\n" not in str(error) and error.mend and isinstance(error, ValueError)
    assert error.exit_code == ExitCode.RUN
    return str(error)


# -- round trips --------------------------------------------------------------------------------------------------


@given(st.lists(histories(), min_size=1, max_size=3, unique_by=lambda events: events[0].trace_id), st.randoms())
def test_traces_written_side_by_side_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, runs: Any, random: Any
) -> None:
    path = tmp_path_factory.mktemp("run")
    left = {events[0].trace_id: list(events) for events in runs}
    with RunStore(path, sync=False) as store:
        while left:
            name = random.choice(sorted(left))
            store.append(name, left[name].pop(0))
            if not left[name]:
                del left[name]
    again = RunStore.open(path)
    assert sorted(again.traces()) == sorted(events[0].trace_id for events in runs)
    for events in runs:
        assert [line.event for line in again.events(events[0].trace_id)] == events
        assert again.trace(events[0].trace_id) == fold(events)


def test_traces_come_in_the_order_in_which_they_started(store: RunStore) -> None:
    for name in ("b", "c", "a"):
        store.append(name, start(name))
    store.append("b", PLAN)
    assert store.traces() == ["b", "c", "a"] and [trace.id for trace in store] == ["b", "c", "a"]
    times = [line.at for line in store.events("b")]
    assert times == sorted(times) and abs(times[0] - time.time()) < 60


def test_images_are_named_by_content_and_stored_once(store: RunStore) -> None:
    first = store.put_image(Image.new("RGB", (8, 6), "red"))
    assert store.put_image(Image.new("RGBA", (8, 6), (255, 0, 0, 255))) == first
    second = store.put_image(Image.new("RGB", (8, 6), "blue"))
    assert len(list((store.path / "images").rglob("*.png"))) == 2
    assert store.get_image(second).getpixel((7, 5)) == (0, 0, 255) and (first.width, first.height) == (8, 6)
    assert store.get_bytes(first).startswith(b"\x89PNG")


def test_the_manifest_says_what_made_the_run(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run", settings={"seed": 7})
    assert store.manifest is None and not store.path.exists()  # nothing is made before something is written
    store.append("t", start("t"))
    again = RunStore(tmp_path / "run", settings={"seed": 8}).manifest
    assert again is not None and again.settings == {"seed": 7} and again.schema_version == SCHEMA_VERSION
    assert {"python", "premeditate", "pillow"} <= set(again.versions) and again.created.startswith("20")


def test_reading_a_thousand_traces_takes_less_than_a_second(tmp_path: Path) -> None:
    with RunStore(tmp_path / "run", sync=False) as store:
        for i in range(1000):
            name = f"t{i}"
            for event in (
                start(name),
                PLAN,
                EDITED,
                RoundJudged(chain=0, round=0, verdict=Verdict(status="scored")),
                Finished(),
            ):
                store.append(name, event)
    began = time.process_time()
    assert sum(trace.finished for trace in RunStore.open(tmp_path / "run")) == 1000
    assert time.process_time() - began < 1.0


# -- killed, cut, damaged -----------------------------------------------------------------------------------------


def test_a_run_cut_at_any_byte_opens_and_goes_on(tmp_path: Path) -> None:
    events: list[Event] = [start("t"), PLAN, EDITED, Finished(seconds=1.0)]
    with RunStore(tmp_path / "whole") as store:
        for event in events:
            store.append("t", event)
    whole = (tmp_path / "whole" / "events.jsonl").read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == 10]  # a line whose newline alone is lost is still whole
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "run.json").write_bytes((tmp_path / "whole" / "run.json").read_bytes())
    file = tmp_path / "cut" / "events.jsonl"
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        kept = sum(length >= end for end in ends)
        reader = RunStore.open(tmp_path / "cut")
        assert reader.traces() == (["t"] if kept else [])
        if kept:
            assert reader.trace("t") == fold(events[:kept])
        assert file.stat().st_size == length  # reading changes nothing
        with RunStore(tmp_path / "cut", sync=False) as writer:
            for event in events[kept:] or [PLAN]:
                writer.append("t", event)
        assert [line.event for line in reader.events("t")] == (events if kept < 4 else [*events, PLAN])
        assert file.read_bytes().count(b"\n") == max(4, kept + 1)


WORKER = """
import sys
from premeditate.store import RunStore
from premeditate.trace import *
from PIL import Image
with RunStore(sys.argv[1]) as store:
    ref = store.put_image(Image.new("RGB", (4, 4), "red"))
    i = 0
    while True:
        name = f"t{i}"
        store.append(name, Started(trace_id=name, task=Task(id=name, images=(ref,), instruction="go")))
        print(name, flush=True)
        store.append(name, PlanWritten(chain=0, plan=Plan(raw="x" * 5000)))
        i += 1
"""


def worker(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WORKER, str(path)], stdout=subprocess.PIPE, text=True)


def test_a_killed_process_loses_nothing_and_leaves_no_lock(tmp_path: Path) -> None:
    process = worker(tmp_path / "run")
    assert process.stdout is not None
    said = [process.stdout.readline().strip() for _ in range(20)]
    with pytest.raises(StoreError) as caught, RunStore(tmp_path / "run") as second:
        second.append("mine", start("mine"))
    assert "another process" in one_line(caught)
    assert RunStore.open(tmp_path / "run").traces()[:20] == said  # reading is free all the while
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split()
    process.wait()
    with RunStore.open(tmp_path / "run") as store:
        traces = store.traces()
        assert set(said + rest) <= set(traces) and len(traces) <= len(said + rest) + 1
        for trace in store:
            store.get_image(trace.task.images[0])
        store.append("mine", start("mine"))


def test_a_reader_follows_a_writer(store: RunStore) -> None:
    store.append("t", start("t"))
    reader = RunStore.open(store.path)
    assert not reader.trace("t").finished
    store.append("u", start("u"))
    store.append("t", Finished())
    assert reader.trace("t").finished and reader.traces() == ["t", "u"]


def test_stores_and_threads_of_one_process_share_a_run(store: RunStore) -> None:
    others = [RunStore(store.path, sync=False) for _ in range(4)]

    def work(number: int) -> None:
        for i in range(25):
            name = f"{number}-{i}"
            others[number].append(name, start(name))
            others[number].append(name, PLAN)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.traces()) == 100 and all(trace.chains[0].plan == PLAN.plan for trace in store)


def test_a_damaged_line_is_named(store: RunStore) -> None:
    store.append("t", start("t"))
    store.append("u", start("u"))
    store.close()
    file = store.path / "events.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0].replace(b'"instruction"', b'"instruct!on"') + lines[1])
    with pytest.raises(StoreError) as caught:
        RunStore.open(store.path).trace("t")
    assert "trace t" in one_line(caught) and "damaged" in one_line(caught)
    assert RunStore.open(store.path).trace("u").id == "u"  # the others stay readable
    file.write_bytes(lines[0] + b"\0" * 40 + b"\n" + lines[1])
    with pytest.raises(StoreError) as caught:
        RunStore.open(store.path).traces()
    assert "line 2" in one_line(caught)


def test_damaged_and_missing_images_are_found_on_reading(store: RunStore, red: ImageRef) -> None:
    path = store.image_path(red)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(StoreError) as caught:
        store.get_image(red)
    assert "damaged" in one_line(caught)
    path.write_bytes(b"")  # as a power cut leaves it
    assert store.put_image(Image.new("RGB", (8, 6), "red")) == red and store.get_image(red).size == (8, 6)
    with pytest.raises(StoreError) as caught:
        store.get_image(red.model_copy(update={"width": 9}))
    assert "8 x 6" in one_line(caught)
    path.unlink()
    with pytest.raises(StoreError) as caught:
        store.get_image(red)
    assert "No such file" in one_line(caught)


def test_a_newer_schema_is_refused_with_the_reason(store: RunStore) -> None:
    store.append("t", start("t"))
    store.close()
    file, manifest = store.path / "events.jsonl", store.path / "run.json"
    record = json.loads(file.read_text())
    for change in ({"version": SCHEMA_VERSION + 1}, {"version": SCHEMA_VERSION + 1, "new": True}):
        file.write_text(json.dumps(record | {"event": record["event"] | change}, separators=(",", ":")) + "\n")
        with pytest.raises(StoreError) as caught:
            RunStore.open(store.path).trace("t")
        assert f"schema {SCHEMA_VERSION + 1}" in one_line(caught) and "upgrade" in one_line(caught)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema_version": 99, "x": 1}))
    with pytest.raises(StoreError) as caught:
        RunStore(store.path)
    assert "schema 99" in one_line(caught)
    manifest.write_text("{")
    with pytest.raises(StoreError) as caught:
        RunStore(store.path)
    assert "damaged" in one_line(caught)


def test_without_its_manifest_a_run_still_opens(store: RunStore) -> None:
    store.append("t", start("t"))
    store.close()
    (store.path / "run.json").unlink()
    with RunStore.open(store.path) as again:
        assert again.manifest is None and again.traces() == ["t"]
        again.append("t", PLAN)
        assert again.manifest is not None


# -- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a\\b", ".hidden", "-o", "x" * 129, "a\n", "a\0", "ä"])
def test_ids_are_checked(store: RunStore, name: str) -> None:
    for use in (lambda: store.append(name, PLAN), lambda: store.trace(name)):
        with pytest.raises(StoreError) as caught:
            use()
        assert "is not a trace id" in one_line(caught)


def test_an_image_name_is_no_path(store: RunStore) -> None:
    for name in ("../../../../etc/passwd", "a" * 63, "A" * 64, "a" * 63 + "/"):
        with pytest.raises(StoreError) as caught:
            store.get_bytes(ImageRef.model_construct(sha256=name, width=1, height=1))
        assert "not an image name" in one_line(caught)


def test_events_out_of_order_are_refused(store: RunStore) -> None:
    store.append("t", start("t"))
    for name, event in (("t", start("t")), ("u", PLAN), ("u", start("t"))):
        with pytest.raises(StoreError) as caught:
            store.append(name, event)
        one_line(caught)
    assert len(store.events("t")) == 1 and store.traces() == ["t"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), (1, 2), {1: 2}, "\ud800", object()])
def test_what_json_would_change_is_refused_when_written(store: RunStore, value: object) -> None:
    task = Task(id="x", images=(REF,), instruction="go", meta={"value": value})
    with pytest.raises(StoreError, match="plain JSON"):
        store.append("t", Started(trace_id="t", task=task))
    with pytest.raises(StoreError, match="plain JSON"):
        RunStore(store.path.parent / "other", settings={"value": value}).append("t", start("t"))
    assert store.traces() == []


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    for use in (lambda: RunStore(tmp_path), lambda: RunStore(tmp_path / "holiday.jpg")):
        with pytest.raises(StoreError) as caught:
            use()
        assert "not a run" in one_line(caught)
    with pytest.raises(StoreError) as caught:
        RunStore.open(tmp_path / "nothing")
    assert "no run" in one_line(caught) and not (tmp_path / "nothing").exists()
    with pytest.raises(StoreError) as caught:
        RunStore(tmp_path / "new").trace("t")
    assert "no trace t" in one_line(caught)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    store = RunStore("/proc/premeditate")
    with pytest.raises(WriteError, match="cannot write"):
        store.append("t", start("t"))
    (tmp_path / "images").mkdir()
    (tmp_path / "run.json").mkdir()
    with pytest.raises((StoreError, WriteError)):
        RunStore(tmp_path).append("t", start("t"))


def test_a_full_disk_adds_nothing(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.append("t", start("t"))
    before = (store.path / "events.jsonl").read_bytes()
    write = os.write

    def half(handle: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return write(handle, data[: len(data) - 10])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(WriteError, match="disk is full"):
        store.append("t", PLAN)
    monkeypatch.undo()
    assert (store.path / "events.jsonl").read_bytes() == before
    store.append("t", PLAN)
    assert len(store.events("t")) == 2
