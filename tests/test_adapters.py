"""The training adapters, held to the stock pipelines of diffusers with random weights."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from premeditate import presets
from premeditate.editors.base import EditRequest
from premeditate.editors.diffusers import DiffusersEditor
from premeditate.errors import ModelError
from premeditate.presets import Preset
from premeditate.training.flow.adapters import ADAPTERS, FlowAdapter, load_adapter
from premeditate.training.flow.adapters.base import pack, unpack
from premeditate.training.lora import add_lora, merged, reference
from premeditate.training.recipe import Lora, Model
from support.adapter_conformance import CHECKS, Case, Task, close, difference, euler, picture, stock
from support.tiny_editor import build_kontext
from support.tiny_pipelines import build_qwen_edit, build_qwen_edit_plus, save_lora, save_pipeline

SHIFT = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9}


def lively(pipeline: Any) -> Any:
    """Random weights in the size of trained ones: the usual first weights hardly react to the text."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in pipeline.transformer.named_parameters():
            if value.ndim == 2:
                value.normal_(0, (3 if "embed" in name or "txt_in" in name else 1) * value.shape[1] ** -0.5)
    return pipeline


def kontext(**changes: Any) -> Any:
    pipeline = build_kontext(tokens=40)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, **{**SHIFT, "max_shift": 1.15})
    pipeline.vae.register_to_config(shift_factor=0.15, scaling_factor=0.8)
    if changes:
        pipeline.transformer = type(pipeline.transformer).from_config({**pipeline.transformer.config, **changes})
    return lively(pipeline)


def qwen(build: Any, **changes: Any) -> Any:
    pipeline = build()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift_terminal=0.02, **SHIFT)
    pipeline.vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.5, 1.5, 2.0, 0.8])
    if changes:
        pipeline.transformer = type(pipeline.transformer).from_config({**pipeline.transformer.config, **changes})
    return lively(pipeline)


ONE: list[Task] = [
    ([picture(60, 60)], "make it red"),
    ([picture(62, 61, 1)], "make the small house much bigger"),
    ([picture(40, 90, 2)], "make it red"),
]
TWO: list[Task] = [
    ([picture(60, 60), picture(90, 40, 5)], "take the hat"),
    ([picture(64, 64, 1), picture(80, 37, 6)], "take the hat of the second one"),
    ([picture(60, 60), picture(60, 60, 7)], "take the hat"),
]
LONG = "red " * 40
NO_CFG = {"negative_prompt": None, "true_cfg_scale": 1.0}
FLUX = {"max_area": 32 * 32, "_auto_resize": False, "max_sequence_length": 40}
CFG = {"negative_prompt": "blurry", "true_cfg_scale": 3.0}
SHORT = ("make it a red house please", {"text_tokens": 12})
CASES = {
    "kontext": Case(kontext, ONE, (LONG, {}), {}, FLUX, 32),
    "kontext, guidance": Case(
        lambda: kontext(guidance_embeds=True), ONE, SHORT, {"guidance_scale": 2.5}, {**FLUX, "guidance_scale": 2.5}, 32
    ),
    "kontext, negative prompt": Case(kontext, ONE, SHORT, CFG, {**FLUX, **CFG}, 32),
    "qwen": Case(lambda: qwen(build_qwen_edit), ONE, SHORT, CFG, CFG),
    "qwen plus": Case(lambda: qwen(build_qwen_edit_plus), ONE, SHORT, {"true_cfg_scale": 1.0}, NO_CFG),
    "qwen plus, two images": Case(
        lambda: qwen(build_qwen_edit_plus, zero_cond_t=True), TWO, SHORT, {}, {"negative_prompt": " "}
    ),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES)
def test_conforms(case: str, check: str) -> None:
    CHECKS[check](CASES[case])


STOCK = ("same_pictures_as_stock", "half_precision_gives_single")


@pytest.mark.parametrize("check", [name for name in CHECKS if name not in STOCK])
def test_conforms_without_padding(check: str) -> None:
    CHECKS[check](UNPADDED)


UNPADDED = Case(kontext, ONE, (LONG, {}), {**CFG, "text_tokens": "real"}, {**FLUX, **CFG}, 32)


# -- text -------------------------------------------------------------------------------------------------------------


def test_flux_texts_are_as_long_as_asked() -> None:
    pipeline = kontext()
    images, prompt = ONE[0]
    count = len(pipeline.tokenizer_2(prompt)["input_ids"])
    kind = ADAPTERS["FluxKontextPipeline"]
    for tokens, length in ((None, 40), (20, 20), ("real", count)):
        encoding = kind(pipeline, size=32, text_tokens=tokens).encode(images, prompt)
        assert len(encoding["text"]) == length
    with pytest.raises(ModelError, match="at most 40"):
        kind(pipeline, size=32, text_tokens=41)
    with pytest.raises(ValueError, match=f"give text_tokens={count}"):
        kind(pipeline, size=32, text_tokens=5).encode(images, prompt)


def test_a_negative_prompt_is_not_cut() -> None:
    adapter = ADAPTERS["FluxKontextPipeline"](kontext(), size=32, true_cfg_scale=2.0, negative_prompt=LONG)
    with pytest.raises(ValueError, match="tokens, 40 are read; use fewer words"):
        adapter.release()


def test_flux_without_padding_is_the_pipeline_at_the_prompts_length() -> None:
    adapter = UNPADDED.adapter()
    for i, task in enumerate(ONE):
        count = len(adapter.pipeline.tokenizer_2(task[1])["input_ids"])
        case = Case(kontext, ONE, UNPADDED.too_long, {}, {**FLUX, "max_sequence_length": count}, 32)
        plain = UNPADDED.adapter(adapter.pipeline, true_cfg_scale=1.0)
        encoding = plain.encode(*task)
        x = plain.noise(encoding, i)
        ours = plain.decode(euler(plain, [encoding], x[None]), [encoding])[0]
        theirs = plain.fit(task[0][0].size).undo(stock(plain, case, task, x)[0])
        assert difference(ours, theirs) <= 1


def test_qwen_padding_changes_no_velocity() -> None:
    pipeline = qwen(build_qwen_edit_plus)
    kind = ADAPTERS["QwenImageEditPlusPipeline"]
    plain, padded = kind(pipeline, size=96), kind(pipeline, size=96, text_tokens=350)
    encoding = plain.encode(*TWO[0])
    assert padded.collate([encoding]).parts["text"].shape[1] == 350 > len(encoding["text"])
    x, sigma = plain.noise(encoding, 0)[None], torch.tensor([0.7])
    with torch.no_grad():
        found = [one.velocity(x, sigma, one.collate([encoding])) for one in (plain, padded)]
    close(found[0], found[1])


def test_flux_reads_one_picture() -> None:
    adapter = ADAPTERS["FluxKontextPipeline"](kontext(), size=32)
    with pytest.raises(ValueError, match="reads one image, the task has 2; leave out the rest"):
        adapter.encode([picture(32, 32), picture(32, 32)], "red")


# -- tokens and noise -------------------------------------------------------------------------------------------------


def test_tokens_are_packed_as_the_pipelines_do() -> None:
    x = torch.randn(3, 4, 6, 10)
    packed = pack(x)
    assert torch.equal(packed, build_kontext()._pack_latents(x, 3, 4, 6, 10))
    assert torch.equal(unpack(packed, (3, 5)), x)


@pytest.mark.parametrize("build", [kontext, lambda: qwen(build_qwen_edit_plus)], ids=["kontext", "qwen"])
def test_one_seed_gives_the_editors_picture(build: Any) -> None:
    """What training samples is what `premeditate edit` makes, the source's own size and aspect included."""
    pipeline = build()
    adapter = ADAPTERS[type(pipeline).__name__](pipeline, size=64)
    editor = DiffusersEditor(pipeline, size=64, steps=3)
    source = picture(90, 41)
    done = asyncio.run(editor.edit([EditRequest(images=[source], prompt="make it red", seed=5)]))[0]
    assert done.image is not None, done.error
    encoding = adapter.encode([source], "make it red")
    ours = adapter.decode(euler(adapter, [encoding], adapter.noise(encoding, 5)[None], 3), [encoding])[0]
    assert ours.size == source.size
    assert difference(ours, done.image) <= 1


# -- loading ----------------------------------------------------------------------------------------------------------


def test_the_micro_world_is_loaded_by_name() -> None:
    adapter = load_adapter("micro-base", Model(gradient_checkpointing=True, text_tokens=24))
    assert type(adapter) is ADAPTERS["FluxKontextPipeline"]
    assert adapter.size == 64 and adapter.text_tokens == 24 and adapter.guidance_scale == 1.0
    assert adapter.transformer.gradient_checkpointing
    assert adapter.passes == 1
    assert not any(p.requires_grad for p in adapter.pipeline.vae.parameters())


def test_what_the_recipe_says_comes_before_the_folder(tmp_path: Path) -> None:
    folder = save_pipeline("QwenImageEditPlusPipeline", tmp_path / "q", true_cfg_scale=2.5, negative_prompt="blurry")
    adapter = load_adapter(str(folder), Model(base=str(folder), size=96))
    assert (adapter.true_cfg_scale, adapter.negative_prompt, adapter.passes) == (2.5, "blurry", 2)
    adapter = load_adapter(str(folder), Model(base=str(folder), size=96, true_cfg_scale=1.0, dtype="bfloat16"))
    assert (adapter.true_cfg_scale, adapter.passes, adapter.dtype) == (1.0, 1, torch.bfloat16)


def test_a_presets_lora_becomes_part_of_the_frozen_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_pipeline("FluxKontextPipeline", tmp_path / "k")
    pipeline = ADAPTERS["FluxKontextPipeline"](build_kontext(tokens=256), size=32).pipeline
    lora = save_lora(tmp_path / "lora", pipeline)
    options = {"lora": str(lora), "scheduler": {"shift": 5.0}, "steps": 4}
    monkeypatch.setitem(presets.EDITORS, "quick", Preset(str(folder.resolve()), "distilled", options))
    adapter = load_adapter("quick", Model(size=32))
    assert adapter.pipeline.scheduler.config.shift == 5.0
    assert not any("lora" in name for name, _ in adapter.transformer.named_parameters())
    base = ADAPTERS["FluxKontextPipeline"](pipeline, size=32)
    encoding = base.encode([picture(32, 32)], "red")
    x, sigma = base.noise(encoding, 0)[None], torch.tensor([0.5])
    batch = base.collate([encoding])
    with torch.no_grad():
        found, wanted = adapter.velocity(x, sigma, batch), base.velocity(x, sigma, batch)
        with reference(pipeline.transformer):
            plain = base.velocity(x, sigma, batch)
    # The saved weights are four times those in memory, on top of the same base.
    assert (found - plain).norm() > 2 * (wanted - plain).norm() > 0
    assert add_lora(adapter.transformer, Lora(rank=2))


def test_other_pipelines_say_what_there_is(tmp_path: Path) -> None:
    folder = save_pipeline("LongCatImageEditPipeline", tmp_path / "longcat")
    with pytest.raises(ModelError, match=r"LongCatImageEditPipeline has no adapter.*FluxKontext.*docs/adapters\.md"):
        load_adapter(str(folder), Model())
    with pytest.raises(ModelError, match="did you mean"):
        load_adapter("micro-bass", Model())


# -- LoRA -------------------------------------------------------------------------------------------------------------


def velocities(build: Any) -> tuple[Any, Any]:
    pipeline = build()
    adapter = ADAPTERS[type(pipeline).__name__](pipeline, size=32, true_cfg_scale=1.0)
    encoding = adapter.encode([picture(32, 32)], "make it red")
    x, sigma, batch = adapter.noise(encoding, 0)[None], torch.tensor([0.5]), adapter.collate([encoding])

    def velocity() -> torch.Tensor:
        with torch.no_grad():
            return adapter.velocity(x, sigma, batch)

    return adapter.transformer, velocity


def snapshot(network: Any) -> dict[str, tuple[torch.Tensor, bool]]:
    return {name: (p.detach().clone(), p.requires_grad) for name, p in network.named_parameters()}


def same(a: dict[str, tuple[torch.Tensor, bool]], b: dict[str, tuple[torch.Tensor, bool]]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k][0], b[k][0]) and a[k][1] == b[k][1] for k in a)


@pytest.mark.parametrize("build", [kontext, lambda: qwen(build_qwen_edit)], ids=["kontext", "qwen"])
def test_lora_is_merged_and_left_out(build: Any) -> None:
    network, velocity = velocities(build)
    before = velocity()
    trained = add_lora(network, Lora(rank=4, alpha=6.0))
    assert all(p.dtype == torch.float32 for p in trained)
    assert torch.equal(velocity(), before), "B starts at 0"
    for p in trained:
        torch.nn.init.normal_(p, std=0.1)
    after, held = velocity(), snapshot(network)
    assert (after - before).abs().max() > 1e-3
    with merged(network):
        close(velocity(), after)
        assert not same(snapshot(network), held)
    assert same(snapshot(network), held)
    with reference(network):
        assert torch.equal(velocity(), before)
    assert same(snapshot(network), held)
    assert torch.equal(velocity(), after)
    for context in (merged, reference):
        with pytest.raises(RuntimeError, match="stop"), context(network):
            raise RuntimeError("stop")
        assert same(snapshot(network), held)
        assert torch.equal(velocity(), after)


def test_lora_weights_that_are_no_numbers_are_not_merged() -> None:
    network, _ = velocities(kontext)
    trained = add_lora(network, Lora(rank=2))
    torch.nn.init.constant_(trained[-1], float("nan"))
    held = snapshot(network)
    with pytest.raises(ValueError, match="not finite"), merged(network):
        pass
    assert all(torch.equal(held[k][0], p) for k, p in network.named_parameters() if p is not trained[-1])


def test_lora_weights_are_single_precision_over_half() -> None:
    network, velocity = velocities(lambda: kontext().to(torch.bfloat16))
    before = velocity()
    trained = add_lora(network, Lora(rank=2, targets=("to_q",)))
    assert {p.dtype for p in trained} == {torch.float32}
    for p in trained:
        torch.nn.init.normal_(p, std=0.1)
    after = velocity()
    assert not torch.equal(after, before)
    with merged(network):
        assert (velocity() - after).norm() < 0.05 * after.norm()


def test_lora_starts_from_its_seed_alone() -> None:
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(found))
        state = torch.get_rng_state()
        trained = add_lora(kontext().transformer, Lora(rank=2), seed=seed)
        found.append(torch.cat([p.detach().flatten() for p in trained]))
        torch.manual_seed(len(found) - 1)
        assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_unknown_lora_targets_name_what_there_is() -> None:
    network = kontext().transformer
    with pytest.raises(ModelError, match=r"no linear layer 'to_qq' for LoRA; did you mean to_q.*add_k_proj.*to_out\.0"):
        add_lora(network, Lora(targets=("to_k", "to_qq")))
    assert all(p.requires_grad for p in network.parameters()), "nothing is changed"


def test_without_lora() -> None:
    network, velocity = velocities(kontext)
    before = velocity()
    with merged(network):
        assert torch.equal(velocity(), before)
    with pytest.raises(ValueError, match="frozen copy"), reference(network):
        pass


# -- the guide --------------------------------------------------------------------------------------------------------


def test_the_guides_example_runs() -> None:
    """docs/adapters.md says that its lines make the pictures of `DiffusersEditor` with the seeds 0 to 3."""
    text = (Path(__file__).parents[1] / "docs" / "adapters.md").read_text()
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", text, flags=re.S)[0], names)
    editor = DiffusersEditor(names["adapter"].pipeline, size=64, steps=4, max_batch=4)
    task = names["task"]
    requests = [EditRequest(images=list(task.images), prompt=task.instruction, seed=seed) for seed in range(4)]
    done = asyncio.run(editor.edit(requests))
    assert max(difference(mine, his.image) for mine, his in zip(names["pictures"], done, strict=True)) <= 1


def test_the_guide_names_every_adapter_and_rule() -> None:
    text = (Path(__file__).parents[1] / "docs" / "adapters.md").read_text()
    assert all(f"`{name}`" in text for name in ADAPTERS)
    assert len(CHECKS) == 14 and "Fourteen rules" in text
    for name in FlowAdapter.__abstractmethods__:
        assert f"`{name}(" in text
