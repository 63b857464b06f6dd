"""Every pipeline that edits, with random weights, on the path that its full weights take: loaded from a folder.

Photographs are those of a public sample of RISEBench, which is not part of the project (`PREMEDITATE_DATA`, default
../shared/data beside it). Where they are absent, drawn pictures of the same sizes stand in for them.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from premeditate import presets
from premeditate.cli.app import app
from premeditate.editors.base import Editor, EditRequest, EditResult
from premeditate.editors.diffusers import DiffusersEditor
from premeditate.editors.fit import working_size
from premeditate.errors import ExitCode, ModelError
from premeditate.store import RunStore
from support.alignment import dots, echo, found
from support.tiny_pipelines import BUILDERS, save_lora, save_pipeline
from support.tiny_vlm import build_vlm

KINDS = tuple(BUILDERS)
DATA = Path(os.environ.get("PREMEDITATE_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data"))
PHOTOGRAPHS = {
    "QwenImageEditPipeline": "causal_reasoning_images/13.png",
    "QwenImageEditPlusPipeline": "temporal_reasoning_images/14.png",
    "FluxKontextPipeline": "logical_reasoning_images/7.png",
    "LongCatImageEditPipeline": "spatial_reasoning_images/10.png",
    "Flux2KleinPipeline": "logical_reasoning_images/3.jpg",
    "StableDiffusionInstructPix2PixPipeline": "logical_reasoning_images/15.png",
}
DRAWN = {
    "causal_reasoning_images/13.png": (275, 183),
    "temporal_reasoning_images/14.png": (322, 156),
    "logical_reasoning_images/7.png": (348, 309),
    "spatial_reasoning_images/10.png": (1140, 408),
    "logical_reasoning_images/3.jpg": (564, 221),
    "logical_reasoning_images/15.png": (119, 124),
    "logical_reasoning_images/6.png": (322, 279),
}

Folder = Callable[[str], Path]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The folder of a pipeline, built once."""
    base, made = tmp_path_factory.mktemp("pipelines"), dict[str, Path]()

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_pipeline(kind, base / kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The folder with one LoRA for a pipeline, built once."""
    base, made = tmp_path_factory.mktemp("loras"), dict[str, Path]()

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_lora(base / kind, BUILDERS[kind]()).parent
        return made[kind]

    return get


@pytest.fixture(scope="session")
def reasoner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5-VL with random weights: whatever it is asked, it answers gibberish."""
    return build_vlm("qwen2_5_vl", tmp_path_factory.mktemp("reasoner"))


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the photographs, or of pictures of their sizes."""
    if (path := DATA / "rise48").is_dir():
        return path
    drawn = tmp_path_factory.mktemp("drawn")
    for name, (width, height) in DRAWN.items():
        (drawn / name).parent.mkdir(exist_ok=True)
        shades = np.linspace(0, 255, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
        noise = np.random.default_rng(0).normal(0, 12, (height, width, 3))
        Image.fromarray(np.clip(shades + noise, 0, 255).astype(np.uint8)).save(drawn / name)
    return drawn


def load(path: Path, **options: Any) -> DiffusersEditor:
    return DiffusersEditor.load(str(path), device="cpu", **options)


def run(editor: Editor, *requests: EditRequest) -> list[EditResult]:
    results = list(asyncio.run(editor.edit(requests)))
    assert [result.error for result in results] == [None] * len(requests)
    return results


def noise(width: int = 90, height: int = 60, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def difference(a: EditResult, b: EditResult) -> int:
    assert a.image is not None and b.image is not None and a.image.size == b.image.size
    return int(np.abs(np.asarray(a.image).astype(int) - np.asarray(b.image)).max())


RED = EditRequest((noise(),), "paint it red", 0)


# -- end to end ---------------------------------------------------------------------------------------------------


def premeditate_edit(photograph: Path, editor: Path, out: Path, *words: object) -> tuple[int, dict[str, Any]]:
    command = ["edit", photograph, "what if it rains", "--editor", editor, "-o", out, "--json", *words]
    done = CliRunner().invoke(app, [str(word) for word in command], prog_name="premeditate")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, json.loads(done.stdout)


@pytest.fixture
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are loaded anew, and forgotten afterwards."""
    monkeypatch.setattr(presets, "_loaded", {})


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("kind", KINDS)
def test_photographs_are_edited_from_the_command_line(
    kind: str, folder: Folder, reasoner: Path, photographs: Path, tmp_path: Path
) -> None:
    photograph, out = photographs / PHOTOGRAPHS[kind], tmp_path / "out.png"
    code, said = premeditate_edit(
        photograph, folder(kind), out, "--reasoner", reasoner, "--strategy", "direct", "--verifier", "none"
    )
    assert code == ExitCode.NOT_VERIFIED and said["calls"] == {"edit": 1} and not said["verified"]
    source, edited = Image.open(photograph).convert("RGB"), Image.open(out)
    assert edited.size == source.size and edited.mode == "RGB"
    assert np.abs(np.asarray(edited).astype(int) - np.asarray(source)).max() > 0
    assert (tmp_path / "out.html").stat().st_size > 10_000


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("strategy", ["plan", "think-while-edit"])
def test_a_reasoner_that_talks_nonsense_leaves_a_whole_record(
    strategy: str, folder: Folder, reasoner: Path, photographs: Path, tmp_path: Path
) -> None:
    photograph, out = photographs / "logical_reasoning_images/6.png", tmp_path / "out.png"  # 322 x 279
    words = ("--reasoner", reasoner, "--strategy", strategy, "--store", tmp_path / "run")
    code, said = premeditate_edit(photograph, folder("QwenImageEditPlusPipeline"), out, *words)
    assert code == ExitCode.NOT_VERIFIED and not said["verified"] and said["calls"]["edit"] >= 1
    assert Image.open(out).size == (322, 279)
    with RunStore(tmp_path / "run") as store:
        trace = store.trace(said["trace"])
    assert len(trace.chains[0].rounds) == said["rounds"] >= 1 and trace.status == "unverified"


# -- size and alignment -------------------------------------------------------------------------------------------

SIZES = [(317, 211), (640, 97), (97, 413), (128, 128), (211, 317)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_comes_back_aligned_with_its_source(kind: str, folder: Folder) -> None:
    """What goes into the autoencoder comes out of it here, so that only the way of the pixels is measured."""
    editor = load(folder(kind), size=128, steps=1)
    seen = echo(editor.pipeline)
    for size in SIZES:
        seen.clear()
        centres, radius, source = dots(*size)
        (result,) = run(editor, EditRequest((source,), "red", 0))
        assert result.image is not None and result.image.size == size
        # A pipeline that works at a megapixel whatever is asked would fail here.
        height, width = seen[0].shape[-2:]
        assert len(seen) == 1 and 0.6 * 128**2 < width * height < 1.7 * 128**2, (size, width, height)
        shift = np.abs(found(result.image, centres, radius) - found(source, centres, radius)).max()
        assert shift <= 0.25, (size, shift)
        moved = Image.fromarray(np.roll(np.asarray(result.image), 2, axis=1))
        assert np.abs(found(moved, centres, radius) - found(source, centres, radius)).max() > 1.5  # would be seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "size"), [("Flux2KleinPipeline", (1000, 800)), ("LongCatImageEditPipeline", (960, 640))]
)
def test_alignment_at_a_megapixel(kind: str, size: tuple[int, int], folder: Folder) -> None:
    """5:4 is rounded to a little over a megapixel, which FLUX.2 would shrink and crop. LongCat would stretch 3:2."""
    editor = load(folder(kind), size=1024, steps=1)
    seen = echo(editor.pipeline)
    centres, radius, source = dots(*size)
    (result,) = run(editor, EditRequest((source,), "red", 0))
    assert result.image is not None and len(seen) == 1
    assert np.abs(found(result.image, centres, radius) - found(source, centres, radius)).max() <= 0.25
    inside = Image.fromarray(((seen[0][0].movedim(0, -1).numpy() + 1) * 127.5).round().astype(np.uint8))
    near = [(x * inside.width / size[0], y * inside.height / size[1]) for x, y in centres]
    across, down = np.ptp(found(inside, near, radius * 1.2), axis=0)
    assert across / down == pytest.approx((0.76 * size[0]) / (0.7 * size[1]), rel=0.003)  # padded, not stretched


def test_working_sizes_hold_their_limits() -> None:
    for source in [(1000, 800), (1000, 801), (4000, 3000), (317, 211), (640, 97), (1, 4000)]:
        width, height = working_size(source, 1024, 16, least=64, most=1 << 20)
        assert width * height <= 1 << 20 and min(width, height) >= 64 and max(width, height) <= 8 * min(width, height)
    assert working_size((640, 97), 64, 16, least=64) == (160, 64)


# -- seeds, batches, cancellation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_decide_and_batches_do_not(kind: str, folder: Folder) -> None:
    editor = load(folder(kind), max_batch=3)
    prompts = ("red", "make it blue", "paint all of the things green")
    requests = [EditRequest((noise(seed=i),), prompt, i) for i, prompt in enumerate(prompts)]
    alone = [run(editor, request)[0] for request in requests]
    for a, b in zip(run(editor, *requests), alone, strict=True):
        assert difference(a, b) <= 1  # matrix products of another batch size round differently
    again = run(load(folder(kind)), requests[0])[0]
    assert difference(again, alone[0]) == 0
    assert difference(run(editor, EditRequest(requests[0].images, prompts[0], 77))[0], alone[0]) > 10
    assert difference(run(editor, EditRequest(requests[0].images, prompts[2], 0))[0], alone[0]) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_cancelled_edit_stops_within_a_step(kind: str, folder: Folder) -> None:
    editor = load(folder(kind), steps=900)
    network = getattr(editor.pipeline, "transformer", None) or editor.pipeline.unet
    calls: list[None] = []
    network.register_forward_hook(lambda *_: calls.append(None))

    async def go() -> int:
        task = asyncio.create_task(editor.edit([RED]))
        while len(calls) < 4:
            await asyncio.sleep(0.002)
        task.cancel()
        seen = len(calls)
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        await editor.edit([])  # waits for the thread that worked
        return len(calls) - seen

    # With guidance a step has two calls, and one step may have begun before the word came through.
    assert asyncio.run(go()) <= 4
    editor.steps = 1
    assert run(editor, RED)[0].image is not None


def test_prompts_that_would_be_cut_off_are_errors(folder: Folder) -> None:
    for kind in ("Flux2KleinPipeline", "LongCatImageEditPipeline", "FluxKontextPipeline"):
        editor = load(folder(kind))
        long = EditRequest(RED.images, "write 'a sign' and word " + "word " * 400, 0)
        bad, good = asyncio.run(editor.edit([long, RED]))
        assert bad.image is None and "say it in fewer words" in str(bad.error) and good.error is None, kind


# -- several images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["QwenImageEditPlusPipeline", "Flux2KleinPipeline"])
def test_further_images_count_and_keep_their_aspect(kind: str, folder: Folder) -> None:
    editor = load(folder(kind), size=128)
    seen = echo(editor.pipeline)
    run(editor, EditRequest((noise(200, 100), noise(60, 180)), "mix", 0))
    (first, second) = (pixels.shape[-2:] for pixels in seen)
    assert first[1] > first[0] and second[0] > 2 * second[1]

    editor = load(folder(kind))
    tall, other = noise(60, 180, seed=1), noise(60, 180, seed=2)
    one, two, three = (run(editor, EditRequest((*RED.images, *more), "mix", 0))[0] for more in ((), (tall,), (other,)))
    assert difference(one, two) > 0 and difference(two, three) > 0
    assert two.image is not None and two.image.size == RED.images[0].size


def test_pipelines_of_one_image_say_so(folder: Folder) -> None:
    for kind in ("QwenImageEditPipeline", "LongCatImageEditPipeline", "FluxKontextPipeline"):
        (result,) = asyncio.run(load(folder(kind)).edit([EditRequest((noise(), noise()), "mix", 0)]))
        assert result.image is None and "reads one image" in str(result.error)


# -- LoRA, memory, dtype ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_changes_the_edit_as_far_as_its_scale_says(kind: str, folder: Folder, loras: Folder) -> None:
    base, lora = run(load(folder(kind)), RED)[0], loras(kind)
    full = run(load(folder(kind), lora=str(lora)), RED)[0]
    assert difference(full, base) > 0
    assert difference(run(load(folder(kind), lora=f"{lora}:tiny.safetensors", lora_scale=0), RED)[0], base) == 0
    assert difference(run(load(folder(kind), lora=str(lora / "tiny.safetensors@1.0"), lora_scale=0), RED)[0], full) == 0


def test_several_loras_add_up(folder: Folder, loras: Folder) -> None:
    kind = "FluxKontextPipeline"
    first = loras(kind)
    second = save_lora(first.parent / "second", BUILDERS[kind](), seed=1)
    base = run(load(folder(kind)), RED)[0]
    both = run(load(folder(kind), lora=f"{first}, {second}"), RED)[0]
    assert difference(run(load(folder(kind), lora=[f"{first}@0", f"{second}@0"]), RED)[0], base) == 0
    for alone in (first, second):
        assert difference(run(load(folder(kind), lora=str(alone)), RED)[0], both) > 0


def test_wrong_loras_say_what_is_wrong(folder: Folder, loras: Folder, tmp_path: Path) -> None:
    kontext, lora = folder("FluxKontextPipeline"), loras("FluxKontextPipeline")
    shutil.copy(lora / "tiny.safetensors", tmp_path / "a.safetensors")
    shutil.copy(lora / "tiny.safetensors", tmp_path / "b.safetensors")
    (tmp_path / "c.bin").write_bytes(b"")
    for text, message in {
        str(tmp_path / "gone"): "there is no LoRA",
        str(tmp_path): "holds 2 safetensors files",
        f"{tmp_path}:d.safetensors": "there is no d.safetensors",
        str(tmp_path / "c.bin"): "no safetensors file",
        f"{lora}@much": "is no number",
        f"{lora}@nan": "is no number",
        str(loras("StableDiffusionInstructPix2PixPipeline")): "holds nothing for FluxKontextPipeline",
        "some-org/some-lora:x.safetensors": "model hub cannot be reached",
    }.items():
        with pytest.raises(ModelError, match=message):
            load(kontext, lora=text)
    with pytest.raises(ModelError, match="give a number"):
        load(kontext, lora=str(lora), lora_scale="much")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_offloaded_parts_give_the_same_edit(kind: str, folder: Folder) -> None:
    pytest.importorskip("accelerate", reason="offload=model needs accelerate")
    base = run(load(folder(kind)), RED)[0]
    for offload in ("model", True, "group"):
        editor = load(folder(kind), offload=offload)
        assert difference(run(editor, RED)[0], base) == 0
        assert difference(run(editor, RED)[0], base) == 0  # and again, when they were put away
    with pytest.raises(ModelError, match="does not work for"):
        load(folder(kind), offload="sequential")
    with pytest.raises(ModelError, match="model, sequential, group"):
        load(folder(kind), offload="disk")


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_dtype_and_scheduler_reach_the_pipeline(kind: str, folder: Folder, loras: Folder) -> None:
    tiled = load(folder(kind), vae_tiling=True, size=160)
    assert run(tiled, RED)[0].image is not None and tiled.pipeline.vae.use_tiling
    half = load(folder(kind), dtype="bfloat16", lora=str(loras(kind)))
    assert str(half.pipeline.vae.dtype) == "torch.bfloat16" and run(half, RED)[0].image is not None
    shifted = load(folder(kind), scheduler={"num_train_timesteps": 500})
    assert shifted.pipeline.scheduler.config.num_train_timesteps == 500
    with pytest.raises(ModelError, match="true or false"):
        load(folder(kind), vae_tiling="yes")


def test_what_does_not_edit_is_refused_before_its_weights_are_read(folder: Folder, tmp_path: Path) -> None:
    index = json.loads((folder("FluxKontextPipeline") / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    with pytest.raises(ModelError, match="FluxPipeline takes no image"):
        load(tmp_path)


def test_presets_say_what_a_model_costs() -> None:
    for name, preset in {**presets.EDITORS, **presets.REASONERS}.items():
        assert preset.size_gb and preset.memory_gb and preset.memory_gb > preset.size_gb and preset.licence, name
        assert preset.source == ("" if name.startswith("micro") else f"https://huggingface.co/{preset.spec}")


@pytest.mark.parametrize("name", [name for name, preset in presets.EDITORS.items() if "lora" in preset.options])
def test_few_step_presets_are_complete(name: str, folder: Folder, loras: Folder) -> None:
    """What a preset sets, apart from the LoRA itself, is accepted by the pipeline that it is for."""
    preset = presets.EDITORS[name]
    assert preset.options["true_cfg_scale"] == 1.0 and preset.options["steps"] in (4, 8)
    assert f"{preset.options['steps']}steps" in preset.options["lora"] and preset.options["lora"].endswith(
        "safetensors"
    )
    kind = "QwenImageEditPlusPipeline" if "25" in preset.spec else "QwenImageEditPipeline"
    editor = load(folder(kind), **{**preset.options, "lora": str(loras(kind)), "size": 64})
    assert run(editor, RED)[0].image is not None and editor.pipeline.scheduler.config.shift_terminal is None
