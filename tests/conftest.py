"""Shared by all tests: no network, one thread, fast tests first."""

from __future__ import annotations

import os

# Both must stand before the first import of torch or huggingface_hub: they are read once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Tests that start a new interpreter test this tree too, whether or not it is installed.
_SOURCE = str(Path(__file__).resolve().parent.parent / "src")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_SOURCE, os.environ.get("PYTHONPATH")]))

import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from premeditate.store import RunStore
from premeditate.trace import ImageRef, Started, Task

if TYPE_CHECKING:
    from premeditate.microworld.tasks import MicroTask
    from support.command import Install

# A loaded machine is no failure: how long a test may take is pytest-timeout's business.
settings.register_profile(
    "premeditate", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50, print_blob=True
)
settings.load_profile("premeditate")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests go last, otherwise the order stays."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium, or a skip that says how to get one."""
    names = (os.environ.get("PREMEDITATE_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    for name in names:
        if name and (found := shutil.which(name)):
            return found
    pytest.skip("no Chromium: apt-get install chromium, or set PREMEDITATE_CHROMIUM to one")


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny judge that has learnt to answer, with any score."""
    from support.preferred import taught

    return taught(tmp_path_factory.mktemp("judge"))


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test works in a folder of its own, and a model that it did not install is not loaded."""
    from premeditate import presets

    def none(spec: str, **_: object) -> object:
        raise AssertionError(f"the model {spec} was loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(presets, "load_editor", none)
    monkeypatch.setattr(presets, "load_reasoner", none)


@pytest.fixture
def task(tmp_path: Path) -> MicroTask:
    """An odd-one-out task; its picture is scene.png."""
    from premeditate.microworld.families import TRAINED
    from premeditate.microworld.render import render
    from premeditate.microworld.tasks import sample_task

    found = sample_task(3, "test", family=next(f for f in TRAINED if f.name == "odd_one_out"))
    render(found.source).save(tmp_path / "scene.png")
    return found


@pytest.fixture
def models(task: MicroTask, alone: None, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs models made of rules under every SPEC: perfect ones, or those given."""
    from micro_fakes import Oracle, RuleEditor
    from support.command import install

    return lambda editor=None, reasoner=None: install(monkeypatch, editor or RuleEditor(), reasoner or Oracle([task]))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    """An empty run."""
    with RunStore(tmp_path / "run") as run:
        yield run


@pytest.fixture
def red(store: RunStore) -> ImageRef:
    """A red 8 x 6 image in `store`."""
    return store.put_image(Image.new("RGB", (8, 6), "red"))


@pytest.fixture
def started(red: ImageRef) -> Started:
    """The first event of trace "t", with two chains."""
    return Started(trace_id="t", task=Task(id="task", images=(red,), instruction="paint it blue"), chains=2)
