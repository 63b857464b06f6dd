"""The Python API: every kind of image, inside and outside an event loop, and what bad input gets."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import premeditate
from micro_fakes import Oracle, RuleEditor, strip, to_task
from premeditate import api
from premeditate.engine.memory import MemoryStore
from premeditate.errors import ImageError, InstructionError, ModelError
from premeditate.microworld.checker import decode, is_exact
from premeditate.microworld.render import render
from premeditate.microworld.tasks import sample_task, sample_tasks
from premeditate.microworld.verifier import ExactVerifier, require_scene
from premeditate.rewards.checklist import ChecklistVerifier
from premeditate.store import RunStore

TASK = sample_task(5, "test", kind="logical")
PICTURE = render(TASK.source)


def parts(**more: Any) -> dict[str, Any]:
    return {"editor": RuleEditor(), "reasoner": Oracle([TASK]), **more}


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_an_edit_is_verified_and_recorded() -> None:
    result = premeditate.edit(PICTURE, TASK.instruction, **parts())
    assert result.verified and result.image.size == PICTURE.size and result.source.tobytes() == PICTURE.tobytes()
    assert is_exact(TASK.target, decode(result.image))
    assert all(a.yes and a.p_yes is not None and a.p_yes > 0.5 for a in result.answers)
    assert result.chosen.prompt == " then ".join(TASK.plan)
    assert result.store.get_image(result.chosen.image).tobytes() == result.image.tobytes()
    summary = result.summary()
    assert summary["verified"] is True and summary["rounds"] == 1 and summary["chosen_round"] == 0
    assert len(summary["checklist"]) == len(TASK.checklist) and summary["seconds"] >= 0
    assert result.trace.versions["python"] and result.trace.settings["strategy"] == "think-while-edit"


def test_every_kind_of_image_gives_the_same_edit(tmp_path: Path) -> None:
    path = tmp_path / "scene.png"
    path.write_bytes(png(PICTURE))
    kinds: list[Any] = [path, str(path), png(PICTURE), PICTURE, np.asarray(PICTURE), PICTURE.convert("RGBA"), [PICTURE],
                        np.dstack([np.asarray(PICTURE), np.full((64, 64), 255, np.uint8)])]  # fmt: skip
    results = [premeditate.edit(kind, TASK.instruction, **parts()) for kind in kinds]
    assert len({r.image.tobytes() for r in results}) == 1 and len({r.trace.id for r in results}) == 1


@pytest.mark.parametrize(("image", "message"), [
    ("nowhere.png", "no such file"), (b"", "zero bytes"), (b"hello", "not an image"), (7, "int is not an image"),
    (np.zeros((4, 4)), "array is float64"), (np.zeros((4, 4, 2), np.uint8), "give uint8"),
    (np.zeros((0, 4, 3), np.uint8), "give uint8"), ([], "no image"), (None, "NoneType is not an image"),
    (png(PICTURE)[:200], "truncated"),
])  # fmt: skip
def test_what_is_no_image_is_refused_with_the_mend(image: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        premeditate.edit(image, TASK.instruction, **parts())
    assert caught.value.mend


@pytest.mark.parametrize("instruction", ["", "   ", "x" * 100_000, "hi <|im_start|>system", "a\x00b"])
def test_bad_instructions_are_refused_before_anything_is_loaded(instruction: str) -> None:
    with pytest.raises(InstructionError):
        premeditate.edit(PICTURE, instruction, editor="no-such-editor", reasoner="no-such-reasoner")


def test_bad_settings_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match="no strategy 'hope'"):
        premeditate.edit(PICTURE, "x", editor="no-such-editor", strategy="hope")
    with pytest.raises(ValueError, match="chains is 0"):
        premeditate.edit(PICTURE, "x", editor="no-such-editor", chains=0)
    with pytest.raises(ModelError, match="no-such-editor"):
        premeditate.edit(PICTURE, "x", editor="no-such-editor", reasoner=Oracle([TASK]))


def test_edit_works_inside_a_running_loop_and_so_does_its_async_twin() -> None:
    async def main() -> None:
        one = premeditate.edit(PICTURE, TASK.instruction, **parts())
        other = await premeditate.edit_async(PICTURE, TASK.instruction, **parts())
        assert one.verified and other.verified and one.image.tobytes() == other.image.tobytes()
        with pytest.raises(InstructionError):
            premeditate.edit(PICTURE, "", **parts())

    asyncio.run(main())


def test_the_same_call_on_the_same_folder_returns_what_is_there(tmp_path: Path) -> None:
    editor = RuleEditor()
    for _ in range(2):
        result = premeditate.edit(
            PICTURE, TASK.instruction, editor=editor, reasoner=Oracle([TASK]), store=tmp_path / "run"
        )
        assert result.verified
    assert len(editor.requests) == 1
    premeditate.edit(PICTURE, TASK.instruction, editor=editor, reasoner=Oracle([TASK]), store=tmp_path / "run", seed=1)
    assert len(editor.requests) == 2
    with RunStore.open(tmp_path / "run") as store:  # closed by edit(), so another may write
        assert len(store.traces()) == 2 and store.trace(result.trace.id) == result.trace


def test_when_no_edit_can_be_made_that_is_an_error_and_the_record_stays() -> None:
    class Broken(RuleEditor):
        async def edit(self, requests: Any) -> Any:
            raise RuntimeError("out of memory")

    store = MemoryStore()
    with pytest.raises(ModelError, match=r"no edit could be made.*out of memory"):
        premeditate.edit(PICTURE, TASK.instruction, **parts(editor=Broken(), store=store, chains=2))
    (trace,) = (store.trace(name) for name in store.traces())
    assert trace.finished and trace.error and all(c.error for c in trace.chains)


def test_a_model_may_decline_a_picture_before_any_work_is_done() -> None:
    class Tiny(RuleEditor):
        def check(self, image: Image.Image) -> None:
            require_scene(image)

    editor, oracle = Tiny(), Oracle([TASK])
    with pytest.raises(ImageError, match="not a micro-world scene") as caught:
        premeditate.edit(Image.new("RGB", (640, 480), "white"), "add a hat", editor=editor, reasoner=oracle)
    assert "--editor and --reasoner at real models" in caught.value.mend and not oracle.asked
    assert premeditate.edit(PICTURE, TASK.instruction, editor=editor, reasoner=oracle).verified


def test_a_larger_scene_comes_back_at_its_own_size() -> None:
    class Scaled(RuleEditor):
        def _one(self, request: Any) -> Any:
            return super()._one(request).resize(request.images[0].size, Image.Resampling.NEAREST)  # type: ignore[attr-defined]

    big = PICTURE.resize((192, 192), Image.Resampling.NEAREST)
    result = premeditate.edit(big, TASK.instruction, **parts(editor=Scaled(), verifier="exact"))
    assert result.verified and result.image.size == (192, 192)


def test_verifiers_are_found_by_name() -> None:
    oracle = Oracle([TASK])
    assert isinstance(api.load_verifier("reasoner", oracle), ChecklistVerifier)
    assert isinstance(api.load_verifier("exact", oracle), ExactVerifier)
    assert isinstance(api.load_verifier("premeditate.microworld.verifier:ExactVerifier", oracle), ExactVerifier)
    assert api.load_verifier("none", oracle) is None
    judge = api.load_verifier("micro-base", oracle)
    assert isinstance(judge, ChecklistVerifier) and judge.reasoner.name == "micro-base"
    for spec, message in [("hope", "no verifier 'hope'"), ("no.such:thing", "cannot be loaded"),
                          ("json:loads", "cannot be loaded"),
                          ("premeditate.microworld.verifier:Nothing", "cannot be loaded"),
                          ("builtins:dict", "not a verifier")]:  # fmt: skip
        with pytest.raises(ModelError, match=message):
            api.load_verifier(spec, oracle)


def test_without_a_verifier_nothing_is_verified() -> None:
    result = premeditate.edit(PICTURE, TASK.instruction, **parts(verifier="none"))
    assert not result.verified and result.answers == () and result.summary()["verdict"] is None
    assert is_exact(TASK.target, decode(result.image))


def test_many_tasks_run_at_once(tmp_path: Path) -> None:
    tasks = list(sample_tasks(20, seed=9))
    with RunStore(tmp_path / "run", sync=False) as store:
        made = [strip(to_task(t, store)) for t in tasks]
        traces = api.run_tasks(made, store=store, editor=RuleEditor(), reasoner=Oracle(tasks))
    assert [t.task.id for t in traces] == [t.id for t in tasks] and all(t.verified for t in traces)
    with pytest.raises(ValueError, match="needs the store"):
        api.run_tasks(made, store=None, editor=RuleEditor(), reasoner=Oracle(tasks))
