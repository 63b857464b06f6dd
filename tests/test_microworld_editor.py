from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from premeditate.microworld.language import OPERATIONS, execute, parse_plan
from premeditate.microworld.models import editor_data as data
from premeditate.microworld.models.editor_build import (
    MAX_TOKENS,
    build_editor,
    clip_tokenizer,
    load_pipeline,
    locality,
    save_editor,
    t5_tokenizer,
    words,
)
from premeditate.microworld.models.editor_card import draw_curve, evaluations
from premeditate.microworld.models.editor_eval import evaluate_editor, exact, run_editor, suite
from premeditate.microworld.models.editor_latents import attributes, encode_codes
from premeditate.microworld.models.editor_train import EditorRecipe, Trainer, train_editor
from premeditate.microworld.models.vae_train import evaluate_vae, train_vae
from premeditate.microworld.render import render_codes
from premeditate.microworld.scene import CELL_NAMES, THINGS
from premeditate.stats import wilson

WEIGHTS = Path(data.__file__).parents[1] / "weights"
SHIPPED = [WEIGHTS / "editor", WEIGHTS / "editor-base"]
RECIPE = EditorRecipe(batch=8, pool=24, refresh=2, compile=False, bf16=False, vae_seconds=1.0, warmup=2, table_rounds=1)


@pytest.fixture(scope="module")
def vae() -> Any:
    torch.set_num_threads(1)
    return train_vae(steps=4, batch=8, log=lambda _: None).requires_grad_(False)


@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from(data.STYLES))
@settings(max_examples=150, deadline=None)
def test_a_prompt_leads_from_the_source_to_the_target(seed: int, steps: int, style: str) -> None:
    example = data.draw(random.Random(seed), steps=steps, style=style)
    plan = parse_plan(example.prompt)
    assert len(plan) == steps
    assert execute(example.source, plan) == example.target != example.source
    assert not example.source.held_out and not example.target.held_out
    assert tuple(step.op for step in plan) == example.operations


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("style", data.STYLES)
def test_every_kind_of_step_can_be_drawn_in_every_style(operation: str, style: str) -> None:
    example = data.draw(random.Random(3), operation=operation, style=style)
    assert example.operations == (operation,)
    if style == "description" and operation not in ("add", "move"):
        assert not any(char.isdigit() for char in example.prompt)


def test_held_out_pairs_appear_only_where_asked_for() -> None:
    assert all(e.source.held_out or e.target.held_out for e in suite("held-out", 40))
    assert not any(e.source.held_out or e.target.held_out for e in suite("two", 40))


def test_test_seeds_and_suites_are_guarded() -> None:
    with pytest.raises(ValueError, match="a test seed"):
        data.test_rng(5)
    with pytest.raises(ValueError, match="there are single"):
        suite("none", 1)
    assert suite("single", 8) == suite("single", 16)[:8]
    assert [e.operations[0] for e in suite("single", 8)] == list(OPERATIONS)


def test_a_word_is_a_token_and_three_steps_fit() -> None:
    vocabulary = words()
    t5, clip = t5_tokenizer(vocabulary), clip_tokenizer(vocabulary[:60])
    for word in ("paint", "b3", "triangle", "then", "purple"):
        assert len(t5(word).input_ids) == 2, word
    assert len(clip("red square then").input_ids) == 5
    assert clip.decode(clip("turn the red triangle").input_ids, skip_special_tokens=True) == "turn the red triangle"
    assert t5.unk_token_id not in t5("zebra, qux 77!").input_ids
    longest = max(len(t5(data.draw(random.Random(i), steps=3, style="canonical").prompt).input_ids) for i in range(400))
    assert longest <= MAX_TOKENS == t5.model_max_length


def test_labels_tell_every_content_apart() -> None:
    assert len({tuple(row) for row in attributes()}) == len(THINGS)


def test_latents_are_normalised_tokens_one_per_cell(vae: Any) -> None:
    codes = np.array([e.source.codes for e in suite("single", 16)])
    z = encode_codes(vae, codes)
    assert z.shape == (16, 16, 32)
    assert 0.5 < float(z.std()) < 2
    assert set(evaluate_vae(vae, count=8)) == {"cells", "occupied", "scenes", "rms"}


def test_a_saved_editor_is_a_stock_pipeline_that_batches(vae: Any, tmp_path: Path) -> None:
    size = save_editor(build_editor(vae), tmp_path / "e", note="x")
    assert size < 5_000_000
    assert json.loads((tmp_path / "e/premeditate.json").read_text())["size"] == 64
    pipe = load_pipeline(tmp_path / "e")
    assert type(pipe).__module__.startswith("diffusers.") and pipe.transformer.dtype == torch.float32
    examples = suite("single", 3)
    together = run_editor(pipe, examples, steps=2)
    assert together.shape == (3, 64, 64, 3)
    alone = np.concatenate([run_editor(pipe, [e], steps=2, seed=i) for i, e in enumerate(examples)])
    assert np.abs(together.astype(int) - alone).max() <= 1


def test_padding_in_training_is_the_pipelines(vae: Any) -> None:
    trainer = Trainer(build_editor(vae), RECIPE, 0)
    prompts = [e.prompt for e in suite("two", 4)]
    ids_2, ids = trainer.tokens(prompts)
    pipe = trainer.averaged().pipeline()
    embeds, pooled, _ = pipe.encode_prompt(prompts, max_sequence_length=MAX_TOKENS)
    averaged = trainer.averaged()
    assert torch.allclose(embeds, averaged.text_encoder_2(ids_2)[0], atol=1e-5)
    assert torch.allclose(pooled, averaged.text_encoder(ids).pooler_output, atol=1e-5)


def test_training_continues_exactly_from_a_checkpoint(vae: Any, tmp_path: Path) -> None:
    def trainer() -> Trainer:
        return Trainer(build_editor(vae, 1), RECIPE, 1)

    whole, first, second = trainer(), trainer(), trainer()
    losses = [whole.update(0.1)["flow"] for _ in range(4)]
    for _ in range(2):
        first.update(0.1)
    torch.save(first.state(), tmp_path / "c.pt")
    second.restore(torch.load(tmp_path / "c.pt", weights_only=True))
    assert [second.update(0.1)["flow"] for _ in range(2)] == pytest.approx(losses[2:], rel=1e-4)
    for a, b in zip(whole.ema.parameters(), second.ema.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_training_lowers_its_loss(vae: Any) -> None:
    trainer = Trainer(build_editor(vae), replace(RECIPE, batch=16), 0)
    losses = [trainer.update(0.1)["named"] for _ in range(20)]
    assert np.mean(losses[-6:]) < 0.95 * np.mean(losses[:3])


def test_one_command_makes_both_folders_and_resumes(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    options: dict[str, Any] = {"recipe": RECIPE, "log": rows.append, "final_n": 2, "evaluate_every": 0.1, "watch": 2}
    train_editor(tmp_path / "e", steps=4, **options)
    assert (tmp_path / "e-base/model_index.json").exists()
    card = (tmp_path / "e/README.md").read_text()
    assert "two steps, canonical" in card and "95 %" in card and (tmp_path / "e/curve.png").exists()
    before = len(rows)
    figures = train_editor(tmp_path / "e", steps=6, **options)
    assert {"part": "editor", "step": 4, "resumed": True} in rows[before:]
    assert figures["editor"]["training"]["steps"] == 6
    assert not any(row.get("part") == "vae" for row in rows[before:])
    assert len(evaluations(tmp_path / "e.work/log.jsonl")) >= 2
    with pytest.raises(ValueError, match="must exceed"):
        train_editor(tmp_path / "x", seconds=1.0)


def test_wilson_interval() -> None:
    low, high = wilson(90, 100)
    assert (round(low, 4), round(high, 4)) == (0.8256, 0.9448)  # Wilson 1927, e.g. any statistics package
    assert wilson(5, 5)[1] == 1.0
    with pytest.raises(ValueError, match="no interval"):  # nothing measured is not a share
        wilson(0, 0)


def test_exact_demands_the_right_scene_sharply() -> None:
    examples = suite("single", 8)
    right = render_codes(np.array([e.target.codes for e in examples]))
    assert exact(examples, right)[0].all()
    assert not exact(examples, render_codes(np.array([e.source.codes for e in examples])))[0].any()
    blurred = (right.astype(int) // 3 + 120).astype(np.uint8)
    assert not exact(examples, blurred)[0].any()


def test_curve_is_a_picture(tmp_path: Path) -> None:
    points = [(0, {"single": 0.0, "two": 0.0}), (1000, {"single": 0.9, "two": 0.8})]
    draw_curve(points, tmp_path / "c.png", 400)
    assert 500 < (tmp_path / "c.png").stat().st_size < 50_000


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda f: f.name)
def test_shipped_folder_is_small_safe_and_documented(folder: Path) -> None:
    files = [f for f in folder.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 5_000_000
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".md", ".png"}
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    assert json.loads((folder / "premeditate.json").read_text())["steps"] == 4


def test_shipped_editor_edits_exactly_and_the_base_less_often() -> None:
    torch.set_num_threads(1)
    shares = {}
    for folder in SHIPPED:
        pipe = load_pipeline(folder)
        for name in ("single", "two"):
            examples = suite(name, 48)
            shares[folder.name, name] = exact(examples, run_editor(pipe, examples))[0].mean()
    assert shares["editor", "single"] >= 0.9 and shares["editor", "two"] >= 0.75
    assert 0.3 < shares["editor-base", "single"] < 0.9 and shares["editor-base", "two"] < 0.5


def test_figures_can_be_measured_again() -> None:
    figures = evaluate_editor(SHIPPED[0], n=8)
    assert figures["suites"]["single"]["n"] == 16 and set(figures["suites"]["single"]["kinds"]) == set(OPERATIONS)
    with pytest.raises(ValueError, match="a test seed"):
        evaluate_editor(SHIPPED[0], n=1, seed=3)


def test_binding_names_cell_and_step_of_every_word() -> None:
    prompt = "move the red star at a3 to b2 then paint the blue circle green then remove d4"
    words = list(zip(prompt.split(), data.binding(prompt), strict=True))
    assert [pair for word, pair in words if word == "then"] == [(-100, -100)] * 2
    a3, b2, d4 = (CELL_NAMES.index(name) for name in ("a3", "b2", "d4"))
    assert [pair for _, pair in words[:6]] == [(a3, 0)] * 6
    assert [pair for _, pair in words[6:8]] == [(b2, 0)] * 2
    assert {pair for _, pair in words[9:14]} == {(-100, 1)}
    assert [pair for _, pair in words[15:]] == [(d4, 2)] * 2


def test_locality_leaves_one_head_free_and_lets_each_word_see_itself() -> None:
    bias = torch.zeros(32, 4)
    locality(bias)
    assert (bias[:, 3] == 0).all() and (bias[0] == 0).all()
    assert (bias[1:8, 0] == 0).all() and (bias[17:24, 0] < 0).all()
    assert (bias[17:24, 1] == 0).all() and (bias[1:8, 1] < 0).all()
