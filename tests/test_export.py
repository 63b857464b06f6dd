"""Exports, loaded the way a stranger would: by plain diffusers and by our own editor."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import FluxTransformer2DModel
from PIL import Image
from safetensors import safe_open

from premeditate.editors.base import EditRequest
from premeditate.editors.diffusers import DiffusersEditor
from premeditate.editors.pipelines import load_pipeline
from premeditate.errors import ModelError, WriteError
from premeditate.microworld.dataset import explicit
from premeditate.presets import load_editor
from premeditate.training.flow.adapters import ADAPTERS, load_adapter
from premeditate.training.flow.export import WEIGHTS, ModelCard, export_full, export_lora, write
from premeditate.training.lora import add_lora
from premeditate.training.recipe import Lora, Recipe, Rollout
from premeditate.training.recipe import Model as ModelRecipe
from premeditate.training.weights import gathered
from support.adapter_conformance import close, difference, euler, picture
from support.tiny_editor import build_kontext
from support.tiny_pipelines import build_qwen_edit_plus

BUILDS = {"kontext": lambda: build_kontext(tokens=40), "qwen": build_qwen_edit_plus}
EVALUATIONS = [
    {"kind": "eval", "step": step, "eval/follow": mean, "eval/follow/low": mean - 0.05, "eval/follow/high": mean + 0.05}
    for step, mean in ((0, 0.25), (40, 0.5))
]
EVALUATIONS[0]["eval/follow/n"] = 64.0
EVALUATIONS[1]["eval/keep"] = 0.9


def card(**changes: Any) -> ModelCard:
    said = {"base": "qwen-image-edit-2511", "recipe": "name: one\n", "data": "ab" * 32, "tasks": 4096}
    return ModelCard(**{**said, **changes})


def trained(build: Any, lora: Lora | None) -> Any:
    """A pipeline whose transformer was changed, as training does."""
    pipeline = build()
    torch.manual_seed(7)
    values = pipeline.transformer.parameters() if lora is None else add_lora(pipeline.transformer, lora)
    for p in values:
        with torch.no_grad():
            p.add_(torch.randn_like(p) * 0.3)
    return pipeline


def edit(pipeline: Any) -> tuple[torch.Tensor, Image.Image]:
    """Latents and the picture of one task."""
    adapter = ADAPTERS[type(pipeline).__name__](pipeline, size=32, true_cfg_scale=1.0)
    encoding = adapter.encode([picture(32, 32)], "make it red")
    x = euler(adapter, [encoding], adapter.noise(encoding, 0)[None])
    return x, adapter.decode(x, [encoding])[0]


@pytest.mark.parametrize("alpha", [None, 12.0])
@pytest.mark.parametrize("kind", BUILDS)
def test_diffusers_loads_lora(kind: str, alpha: float | None, tmp_path: Path) -> None:
    pipeline = trained(BUILDS[kind], Lora(rank=4, alpha=alpha))
    file = export_lora(
        pipeline.transformer, tmp_path / "x" / "lora", pipeline_class=type(pipeline).__name__, card=card()
    )
    wanted, plain, fresh = edit(pipeline), edit(BUILDS[kind]()), BUILDS[kind]()
    fresh.load_lora_weights(file.parent)
    config = fresh.transformer.peft_config["default_0"]
    assert (config.r, config.lora_alpha) == (4, alpha or 4)
    found = edit(fresh)
    close(found[0], wanted[0])
    assert difference(found[1], wanted[1]) <= 1
    assert (wanted[0] - plain[0]).abs().max() > 0.01


def test_our_editor_loads_lora(tmp_path: Path) -> None:
    pipeline = trained(BUILDS["kontext"], Lora(rank=4, alpha=8.0))
    BUILDS["kontext"]().save_pretrained(tmp_path / "base")
    file = export_lora(pipeline.transformer, tmp_path / "lora", pipeline_class="FluxKontextPipeline", card=card())
    loaded = load_pipeline(str(tmp_path / "base"), device="cpu", dtype=torch.float32, lora=str(file.parent))
    assert loaded.transformer.peft_config["lora0"].lora_alpha == 8.0
    close(edit(loaded)[0], edit(pipeline)[0])


def test_the_file_tells_its_rank_and_alpha(tmp_path: Path) -> None:
    pipeline = trained(BUILDS["kontext"], Lora(rank=4, alpha=12.0))
    file = export_lora(pipeline.transformer, tmp_path, pipeline_class="FluxKontextPipeline", card=card())
    with safe_open(file, framework="pt") as held:
        said = json.loads(held.metadata()["lora_adapter_metadata"])
        names = list(held.keys())
    assert (said["transformer.r"], said["transformer.lora_alpha"]) == (4, 12.0)
    assert all(re.fullmatch(r"transformer\.\S+\.lora_[AB]\.weight", name) for name in names)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "premeditate.json", WEIGHTS]


def test_other_values_are_written_in_place_of_the_own(tmp_path: Path) -> None:
    pipeline = trained(BUILDS["kontext"], Lora(rank=4))
    network = pipeline.transformer
    averaged = {name: value * 0.5 for name, value in gathered(network).items()}
    held = {name: value.clone() for name, value in gathered(network).items()}
    assert set(averaged) == {name for name, p in network.named_parameters() if p.requires_grad}
    export_lora(network, tmp_path, pipeline_class="FluxKontextPipeline", card=card(), values=averaged)
    assert all(torch.equal(held[name], value) for name, value in gathered(network).items())
    fresh = BUILDS["kontext"]()
    fresh.load_lora_weights(tmp_path)
    network.load_state_dict(averaged, strict=False)
    close(edit(fresh)[0], edit(pipeline)[0])
    with pytest.raises(ValueError, match=r"is none of its parameters"):
        export_lora(network, tmp_path, pipeline_class="", card=card(), values={"x": torch.zeros(1)})
    name = next(iter(averaged))
    with pytest.raises(ValueError, match=r"has the shape \(1,\)"):
        export_lora(network, tmp_path, pipeline_class="", card=card(), values={name: torch.zeros(1)})


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("kind", BUILDS)
def test_diffusers_loads_the_whole_transformer(kind: str, averaged: bool, tmp_path: Path) -> None:
    pipeline = trained(BUILDS[kind], None)
    values = {name: value * 0.9 for name, value in gathered(pipeline.transformer).items()} if averaged else None
    for _ in range(2):  # the second replaces the first
        folder = export_full(
            pipeline.transformer, tmp_path, pipeline_class=type(pipeline).__name__, card=card(), values=values
        )
    assert folder == tmp_path / "transformer"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "premeditate.json", "transformer"]
    if values:
        pipeline.transformer.load_state_dict(values, strict=False)
    fresh = BUILDS[kind]()
    fresh.transformer = type(fresh.transformer).from_pretrained(tmp_path, subfolder="transformer")
    mine = pipeline.transformer.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in fresh.transformer.state_dict().items())
    close(edit(fresh)[0], edit(pipeline)[0])


def test_the_recipe_chooses_what_is_written(tmp_path: Path) -> None:
    said = {"recipe": "name: one\n", "data": "ab" * 32, "tasks": 8, "evaluations": EVALUATIONS}
    for lora, name in ((Lora(rank=4), WEIGHTS), (None, "transformer")):
        pipeline = trained(BUILDS["kontext"], lora)
        adapter = ADAPTERS["FluxKontextPipeline"](pipeline, size=32)
        write(adapter, tmp_path / name, Recipe(model=ModelRecipe(lora=lora)), said)
        assert (tmp_path / name / name).exists()
        assert "`micro-base`" in (tmp_path / name / "README.md").read_text()


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="export_full"):
        export_lora(BUILDS["kontext"]().transformer, tmp_path, pipeline_class="", card=card())


# -- when writing fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [Lora(rank=4), None], ids=["lora", "full"])
def test_a_failed_export_leaves_the_older_one(
    lora: Lora | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = trained(BUILDS["kontext"], lora)
    export = export_full if lora is None else export_lora
    export(pipeline.transformer, tmp_path, pipeline_class="FluxKontextPipeline", card=card())
    held = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for p in pipeline.transformer.parameters():
        p.data += 1

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(FluxTransformer2DModel, "save_pretrained", full)
    with pytest.raises(WriteError, match="disk is full"):
        export(pipeline.transformer, tmp_path, pipeline_class="FluxKontextPipeline", card=card())
    assert held == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


# -- the card ---------------------------------------------------------------------------------------------------------


def test_the_card_says_where_the_weights_come_from(tmp_path: Path) -> None:
    curve = tmp_path / "curve.png"
    picture(8, 8).save(curve)
    pipeline = trained(BUILDS["qwen"], Lora(rank=4))
    said = card(recipe="name: one\nsteps: 40\n", evaluations=EVALUATIONS, picture=curve)
    export_lora(pipeline.transformer, tmp_path / "out", pipeline_class="QwenImageEditPlusPipeline", card=said)
    text = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head == {"library_name": "diffusers", "pipeline_tag": "image-to-image", "license": "apache-2.0",
                    "base_model": "Qwen/Qwen-Image-Edit-2511"}  # fmt: skip
    assert 'QwenImageEditPlusPipeline.from_pretrained("Qwen/Qwen-Image-Edit-2511")' in text
    assert 'load_editor("qwen-image-edit-2511", lora=folder)' in text
    assert "| 0 | 0.250 (0.200 - 0.300) | - |\n| 40 | 0.500 (0.450 - 0.550) | 0.900 |" in text
    assert "n = 64" in text and "4,096 tasks" in text and "ab" * 32 in text
    assert "name: one\nsteps: 40\n```" in text
    assert "(curve.png)" in text and (tmp_path / "out" / "curve.png").read_bytes() == curve.read_bytes()
    assert not re.search(r"\b(PIPELINE|TRANSFORMER|BASE|SPEC|OPTIONS)\b", text)


@pytest.mark.parametrize("lora", [Lora(rank=2), None], ids=["lora", "full"])
def test_the_cards_own_lines_work(lora: Lora | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card's code, run as it stands: the shipped base is found wherever it is installed, and the model that comes out
    edits as the trained one does, at its size and in its steps."""
    recipe = Recipe(model=ModelRecipe(lora=lora, text_tokens=32), rollout=Rollout(steps=3))
    adapter = load_adapter("micro-base", recipe.model)
    parameters = add_lora(adapter.transformer, lora) if lora else adapter.transformer.parameters()
    with torch.no_grad():
        for p in parameters:
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) * 0.03)
    out = tmp_path / "out"
    write(adapter, out, recipe, {"recipe": "name: one\n", "data": "ab" * 32, "tasks": 8})
    text = (out / "README.md").read_text()
    assert str(Path.home()) not in text and str(tmp_path) not in text and "site-packages" not in text
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"folder": str(out)}
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.S):
        exec("\n".join(line for line in code.splitlines() if not line.startswith("edit = pipe(")), names)
    scene = explicit(1, 0)[0]
    encoding = adapter.encode(scene.images, scene.instruction)
    wanted = adapter.decode(euler(adapter, [encoding], adapter.noise(encoding, 5)[None], 3), [encoding])[0]
    request = EditRequest(images=list(scene.images), prompt=scene.instruction, seed=5)
    editors = [load_editor("./editor"), *([names["editor"]] if lora else [])]
    for editor in editors:
        assert isinstance(editor, DiffusersEditor)
        assert (editor.size, editor.steps) == (64, 3)
        done = asyncio.run(editor.edit([request]))[0].image
        assert done is not None and difference(done, wanted) <= 1
