"""The editor adapters, on a real FluxKontextPipeline with random weights and on pipelines that record their calls."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from premeditate.editors.base import Editor, EditRequest, EditResult
from premeditate.editors.diffusers import DiffusersEditor
from premeditate.editors.fit import Fit
from premeditate.errors import ModelError
from support.pictures import difference, picture, smooth
from support.tiny_editor import build_kontext
from support.tiny_pipelines import build_qwen_edit_plus


def run(editor: Editor, *requests: EditRequest) -> list[EditResult]:
    return list(asyncio.run(editor.edit(requests)))


@pytest.fixture(scope="module")
def kontext() -> Any:
    return build_kontext()


@pytest.fixture(scope="module")
def folder(kontext: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kontext")
    kontext.save_pretrained(path)
    (path / "premeditate.json").write_text(json.dumps({"size": 32, "steps": 3, "guidance_scale": 1.0, "max_batch": 4}))
    return path


@pytest.fixture
def editor(kontext: Any) -> DiffusersEditor:
    return DiffusersEditor(kontext, size=32, steps=3, max_batch=4)


class FakePipeline:
    """Hands back what it was given, and remembers how it was called."""

    def __init__(self, multiple: int = 16) -> None:
        self.calls: list[dict[str, Any]] = []
        self.image_processor = SimpleNamespace(config=SimpleNamespace(vae_scale_factor=multiple))

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        pass

    def maybe_free_model_hooks(self) -> None:
        self.freed = True

    def answer(self, call: dict[str, Any]) -> Any:
        call = {k: v for k, v in call.items() if k not in ("self", "__class__")}
        self.calls.append(call)
        images = call["image"]
        if isinstance(images, list) and not isinstance(call["prompt"], list):
            images = images[:1]
        return SimpleNamespace(images=images if isinstance(images, list) else [images])


class PlainPipeline(FakePipeline):
    def __call__(
        self, prompt: Any = None, image: Any = None, num_inference_steps: int = 50, generator: Any = None
    ) -> Any:
        return self.answer(locals())


class QwenImageEditPlusPipeline(FakePipeline):
    def __call__(
        self,
        image: Any = None,
        prompt: Any = None,
        negative_prompt: Any = None,
        true_cfg_scale: float = 4.0,
        height: Any = None,
        width: Any = None,
        num_inference_steps: int = 50,
        generator: Any = None,
    ) -> Any:
        return self.answer(locals())


class FluxKontextPipeline(FakePipeline):
    """By its name the adapter takes it for the real one, which batches."""

    def __call__(
        self,
        image: Any = None,
        prompt: Any = None,
        height: Any = None,
        width: Any = None,
        generator: Any = None,
        callback_on_step_end: Any = None,
        max_area: int = 0,
        _auto_resize: bool = True,
    ) -> Any:
        if any(p == "broken" for p in prompt):
            raise RuntimeError("this prompt breaks it")
        if prompt[0] == "slow":
            for step in range(200):
                time.sleep(0.02)
                self.step = step
                callback_on_step_end(self, step, 0, {})
        return self.answer(locals())


# --- the real pipeline


def test_edits_come_back_at_the_size_of_their_sources(editor: DiffusersEditor) -> None:
    sizes = [(32, 32), (50, 20), (200, 180), (7, 64)]
    results = run(editor, *(EditRequest((picture(*size),), "paint it red", 1) for size in sizes))
    assert [r.error for r in results] == [None] * 4
    assert [r.image.size for r in results if r.image] == sizes
    assert all(r.image.mode == "RGB" and r.seconds > 0 for r in results if r.image)


def test_result_depends_on_the_seed_and_not_on_the_batch(editor: DiffusersEditor) -> None:
    words = ("red", "blue", "green", "it", "x")
    requests = [EditRequest((picture(seed=i),), f"paint {word}", i) for i, word in enumerate(words)]
    together = run(editor, *requests)
    backwards = run(editor, *reversed(requests))[::-1]
    alone = [run(editor, r)[0] for r in requests]
    for a, b, c in zip(together, backwards, alone, strict=True):
        # Matrix products of another batch size may round differently: one level of 255 at most.
        assert difference(a.image, b.image) <= 1 and difference(a.image, c.image) <= 1
    other = run(editor, EditRequest(requests[0].images, requests[0].prompt, 99))[0]
    assert difference(other.image, together[0].image) > 1
    again = run(editor, requests[0])[0]
    assert difference(again.image, alone[0].image) == 0


def test_folder_with_sidecar_gives_the_same_editor(folder: Path, editor: DiffusersEditor) -> None:
    loaded = DiffusersEditor.load(str(folder))
    assert (loaded.size, loaded.steps, loaded.max_batch, loaded.name) == (32, 3, 4, str(folder))
    request = EditRequest((picture(),), "paint it red", 5)
    assert difference(run(loaded, request)[0].image, run(editor, request)[0].image) <= 1
    assert DiffusersEditor.load(str(folder), steps=1, name="mine").steps == 1


def test_a_long_prompt_is_an_error_and_not_cut(editor: DiffusersEditor) -> None:
    long, short = run(editor, EditRequest((picture(),), "word " * 50, 0), EditRequest((picture(),), "red", 0))
    assert long.image is None and long.error is not None and "reads 24" in long.error
    assert short.error is None


def test_nothing_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    editor = DiffusersEditor.load(str(folder))
    run(editor, EditRequest((picture(),), "word " * 9, 0), EditRequest((picture(),), "x " * 70, 0))
    assert capfd.readouterr() == ("", "")


def test_half_weights_are_run_in_float32_on_a_cpu(folder: Path, kontext: Any, tmp_path: Path) -> None:
    import copy

    import torch

    copy.deepcopy(kontext).to(dtype=torch.float16).save_pretrained(tmp_path / "half")
    loaded = DiffusersEditor.load(str(tmp_path / "half"), device="cpu")
    assert loaded.pipeline.transformer.dtype == loaded.pipeline.vae.dtype == torch.float32
    assert DiffusersEditor.load(str(folder), device="cpu", dtype="bfloat16").pipeline.vae.dtype == torch.bfloat16


def test_qwen_edit_plus_reads_several_images_and_is_guided(capfd: pytest.CaptureFixture[str]) -> None:
    pipeline = build_qwen_edit_plus()
    requests = [EditRequest((picture(64, 64), picture(32, 64)), "mix", 0), EditRequest((picture(100, 60),), "go", 1)]
    guided = run(DiffusersEditor(pipeline, size=64, steps=2, max_batch=4), *requests)
    free = run(DiffusersEditor(pipeline, size=64, steps=2, true_cfg_scale=1.0), *requests)
    assert [r.error for r in (*guided, *free)] == [None] * 4
    assert [r.image.size for r in guided if r.image] == [(64, 64), (100, 60)]
    assert difference(guided[0].image, free[0].image) > 0  # the negative prompt was there
    assert capfd.readouterr() == ("", "")


# --- calls, batches and failures


def test_fit_keeps_what_an_identity_pipeline_returns_in_place() -> None:
    pipeline = PlainPipeline()
    editor = DiffusersEditor(pipeline, size=64)
    for size in [(64, 64), (128, 64), (100, 70), (33, 64), (500, 110), (31, 17)]:
        source = smooth(*size)
        (result,) = run(editor, EditRequest((source,), "", 0))
        inside = pipeline.calls[-1]["image"]
        assert inside.width % 16 == 0 and inside.height % 16 == 0
        assert difference(result.image, source) <= 16, size  # a shift of one pixel in 17 would be 15 levels
        assert np.abs(np.asarray(result.image).astype(int) - np.asarray(source)).mean() < 2.5, size
    (result,) = run(editor, EditRequest((picture(64, 64),), "", 0))
    assert difference(result.image, picture(64, 64)) == 0


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([64, 512, 1024]), st.sampled_from([8, 16, 32]))
def test_working_size(width: int, height: int, side: int, multiple: int) -> None:
    fit = Fit.plan((width, height), side, multiple)
    assert all(s > 0 and s % multiple == 0 for s in fit.work)
    left, top, right, bottom = fit.box
    assert 0 <= left < right <= fit.work[0] and 0 <= top < bottom <= fit.work[1]
    if 1 / 4 < width / height < 4:
        assert 0.6 < fit.work[0] * fit.work[1] / side**2 < 1.6
        # The picture touches two opposite borders and its aspect is kept to a pixel.
        assert fit.inner[0] == fit.work[0] or fit.inner[1] == fit.work[1]
        assert abs(fit.inner[0] - fit.inner[1] * width / height) <= 1 + width / height


def test_enlarged_pixel_art_reaches_the_pipeline_as_it_was() -> None:
    pipeline, small = PlainPipeline(), picture(64, 64)
    run(DiffusersEditor(pipeline, size=64), EditRequest((small.resize((512, 512), Image.Resampling.NEAREST),), "", 0))
    assert difference(pipeline.calls[0]["image"], small) == 0


def test_keywords_follow_the_signature() -> None:
    plain, qwen, kontext = PlainPipeline(), QwenImageEditPlusPipeline(), FluxKontextPipeline()
    run(DiffusersEditor(plain, size=64, steps=7), EditRequest((picture(),), "go", 0))
    assert set(plain.calls[0]) == {"prompt", "image", "num_inference_steps", "generator"}
    assert plain.calls[0]["num_inference_steps"] == 7

    run(DiffusersEditor(qwen, size=64), EditRequest((picture(), picture(64, 32)), "go", 0))
    assert qwen.calls[0]["negative_prompt"] == " " and len(qwen.calls[0]["image"]) == 2
    assert (qwen.calls[0]["width"], qwen.calls[0]["height"]) == (64, 64)
    run(DiffusersEditor(qwen, size=64, true_cfg_scale=1.0), EditRequest((picture(),), "go", 0))
    assert qwen.calls[1]["negative_prompt"] is None and qwen.calls[1]["true_cfg_scale"] == 1.0

    run(DiffusersEditor(kontext, size=64), EditRequest((picture(96, 48),), "go", 0))
    assert kontext.calls[0]["max_area"] == kontext.calls[0]["width"] * kontext.calls[0]["height"]
    assert kontext.calls[0]["_auto_resize"] is False


def test_same_sizes_share_a_batch() -> None:
    pipeline = FluxKontextPipeline()
    sizes = [(32, 32), (64, 32), (32, 32), (32, 32), (64, 32)]
    requests = [EditRequest((picture(*size, seed=i),), str(i), i) for i, size in enumerate(sizes)]
    results = run(DiffusersEditor(pipeline, size=32, max_batch=2), *requests)
    assert [call["prompt"] for call in pipeline.calls] == [["0", "2"], ["3"], ["1", "4"]]
    assert [r.image.size for r in results if r.image] == sizes
    assert difference(results[2].image, requests[2].images[0]) == 0  # no mixing up


def test_only_the_guilty_request_fails() -> None:
    pipeline = FluxKontextPipeline()
    prompts = ["a", "broken", "c"]
    results = run(DiffusersEditor(pipeline, size=32, max_batch=8), *(EditRequest((picture(),), p, 0) for p in prompts))
    assert [r.error for r in results] == [None, "RuntimeError: this prompt breaks it", None]
    assert [r.image is None for r in results] == [False, True, False]


def test_what_a_pipeline_cannot_read_is_an_error() -> None:
    def only_red(image: Image.Image) -> None:
        if image.getpixel((0, 0)) != (255, 0, 0):
            raise ValueError("not red; paint it red first")

    editor = DiffusersEditor(PlainPipeline(), size=32, domain=only_red)
    red = Image.new("RGB", (32, 32), "red")
    results = run(editor, EditRequest((red,), "", 0), EditRequest((picture(),), "", 0), EditRequest((red, red), "", 0),
                  EditRequest((), "", 0))  # fmt: skip
    assert results[0].error is None and results[1].error == "not red; paint it red first"
    assert "reads one image" in str(results[2].error) and "no image" in str(results[3].error)
    with pytest.raises(ValueError, match="paint it red first"):
        editor.check(picture())


def test_a_cancelled_edit_stops_between_steps() -> None:
    pipeline = FluxKontextPipeline()
    editor = DiffusersEditor(pipeline, size=32)

    async def go() -> list[EditResult]:
        slow = asyncio.create_task(editor.edit([EditRequest((picture(),), "slow", 0)]))
        waiting = asyncio.create_task(editor.edit([EditRequest((picture(),), "never", 0)]))
        await asyncio.sleep(0.15)
        slow.cancel()
        waiting.cancel()
        await asyncio.gather(slow, waiting, return_exceptions=True)
        assert slow.cancelled() and waiting.cancelled()
        return await editor.edit([EditRequest((picture(),), "next", 0)])

    start = time.perf_counter()
    (result,) = asyncio.run(go())
    assert result.error is None and time.perf_counter() - start < 2 and pipeline.step < 100 and pipeline.freed
    assert [call["prompt"] for call in pipeline.calls] == [["next"]]
    assert run(editor, EditRequest((picture(),), "another loop", 0))[0].error is None


# --- loading


@pytest.mark.parametrize(("options", "message"), [
    ({"stepz": 3}, "did you mean steps"),
    ({"steps": 0}, "at least 1"),
    ({"image_guidance_scale": 2.0}, "FluxKontextPipeline has no image_guidance_scale"),
    ({"domain": "premeditate.editors:nothing"}, "there is no check"),
    ({"device": "gpu"}, "give cpu, cuda"),
    ({"dtype": "int4"}, "float32, bfloat16"),
])  # fmt: skip
def test_wrong_options(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        DiffusersEditor.load(str(folder), **options)


@pytest.mark.parametrize(("sidecar", "message"), [
    ("{", "cannot be read"), ("[1]", "no JSON object"), ('{"sise": 64}', "did you mean size"),
])  # fmt: skip
def test_wrong_sidecar(tmp_path: Path, sidecar: str, message: str) -> None:
    (tmp_path / "premeditate.json").write_text(sidecar)
    with pytest.raises(ModelError, match=message):
        DiffusersEditor.load(str(tmp_path))


def test_a_folder_outside_the_package_cannot_choose_code(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "premeditate.json").write_text('{"size": 32, "domain": "os:getcwd"}')
    assert DiffusersEditor.load(str(tmp_path / "copy")).domain is None
    assert "left out" in caplog.text

    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["subprocess", "Popen"]
    (tmp_path / "copy" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="subprocess"):
        DiffusersEditor.load(str(tmp_path / "copy"))


def test_a_folder_of_the_package_may_name_its_check(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import premeditate

    monkeypatch.setattr(premeditate, "__file__", str(folder.parent / "__init__.py"))
    sidecar = json.loads((folder / "premeditate.json").read_text())
    check = "premeditate.microworld.verifier:require_scene"
    (folder / "premeditate.json").write_text(json.dumps({**sidecar, "domain": check}))
    try:
        editor = DiffusersEditor.load(str(folder))
    finally:
        (folder / "premeditate.json").write_text(json.dumps(sidecar))
    (result,) = run(editor, EditRequest((picture(64, 64),), "paint", 0))
    assert result.image is None and "not a micro-world scene" in str(result.error) and "--editor" in str(result.error)


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="cannot be loaded"):
        DiffusersEditor.load(str(copy))
