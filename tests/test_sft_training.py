"""The cold start end to end: real classes with random weights, and the micro world's reasoner."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from premeditate import presets
from premeditate.datasets import judged
from premeditate.errors import ImageError, ModelError, PremeditateError, StoreError
from premeditate.reasoners.transformers import TransformersReasoner
from premeditate.rewards.base import Sample
from premeditate.rewards.judges.rrm import Opinion, PrincipleJudge
from premeditate.trace import Checklist, Task
from premeditate.training import journal
from premeditate.training.errors import TrainingError
from premeditate.training.sft import checkpoints
from premeditate.training.sft.recipe import SftRecipe
from premeditate.training.sft.run import train_sft
from premeditate.training.tokens.base import load_base
from support.judged_edits import edits, write
from support.tiny_vlm import build_llava, build_vlm

Run = dict[str, Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight judged edits."""
    folder = tmp_path_factory.mktemp("judged")
    return write(folder, edits(folder, 8))


def recipe(judged_edits: Path, out: Path, *, model: Mapping[str, Any] = {}, **changes: Any) -> SftRecipe:
    values: dict[str, Any] = {
        "steps": 5, "out": str(out), "data": {"train": str(judged_edits)}, "batch": {"size": 4, "forward": 2},
        "model": {"base": "micro", "lora": None, "dtype": "float32", "device": "cpu", **model},
        "optimizer": {"lr": 1e-3}, "checkpoint": {"every": 2},
    }  # fmt: skip
    return SftRecipe.model_validate(values | changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def judgements(folder: Path, base: str, mode: Any) -> list[Opinion]:
    """What the reasoner `base` says of the edits in `folder`, asked as a judge."""
    judge = PrincipleJudge(presets.load_reasoner(base, device="cpu"), mode=mode)  # type: ignore[arg-type]
    samples = [
        Sample(Task(id=one.id, images=(), instruction=one.instruction), judged.picture(folder, one.source),
               judged.picture(folder, one.edit), Checklist(items=one.principles))
        for one in judged.read(folder)
    ]  # fmt: skip
    return asyncio.run(judge.judge(samples))


# -- it learns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["think", "verify", "both"])
def test_an_exported_judge_says_what_it_was_taught(data: Path, tmp_path: Path, mode: str) -> None:
    taught = recipe(data, tmp_path / "run", mode=mode, steps=45, batch={"size": 8, "forward": 8},
                    optimizer={"lr": 3e-3, "warmup": 5}, checkpoint={"every": 100})  # fmt: skip
    found = train_sft(taught)
    assert (found["steps"], found["samples"], found["left_out"]) == (45, 8, {})
    assert all(opinion.status != "scored" for opinion in judgements(data, "micro", mode))
    for opinion, one in zip(judgements(data, found["export"], mode), judged.read(data), strict=True):
        (said,) = opinion.passes
        assert (said.status, said.score) == ("scored", one.kept.score)
        assert said.verdicts == (() if mode == "think" else one.kept.verdicts)
        assert said.thought == ("" if mode == "verify" else one.kept.thought)


# -- the run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SftRecipe, Run, list[Any], list[str]]:
    """A run from start to end, with its result, its figures and its notices."""
    figures: list[Any] = []
    said: list[str] = []
    made = recipe(data, tmp_path_factory.mktemp("whole"), evaluation={"every": 2},
                  data={"train": str(data), "eval": str(data), "eval_count": 5})  # fmt: skip
    found = train_sft(made, say=said.append, on_figures=lambda *row: figures.append(row))
    return made, found, figures, said


def test_figures_come_as_they_are_made_and_lie_in_the_log(whole: Any) -> None:
    made, found, figures, said = whole
    rows = journal.read(Path(made.out))
    assert [(row["kind"], row["step"]) for row in rows] == [
        ("eval", 0), ("step", 1), ("step", 2), ("eval", 2), ("step", 3), ("step", 4), ("eval", 4), ("step", 5),
        ("eval", 5)]  # fmt: skip
    assert [(kind, step) for kind, step, _ in figures] == [(row["kind"], row["step"]) for row in rows]
    for row in rows:
        wanted = {"loss", "lr", "gradient_norm", "token_accuracy", "epoch", "seconds/update"}
        wanted = wanted if row["kind"] == "step" else {"eval/loss", "eval/token_accuracy", "seconds/eval"}
        assert wanted <= row.keys() and all(row[name] is not None for name in wanted)
    assert found["before"] == rows[0] and found["after"] == rows[-1]
    assert rows[-1]["eval/loss"] < rows[0]["eval/loss"]
    assert [line.split(":")[0] for line in said[:2]] == ["to learn from", "held out"]
    assert "5 steps of 4 samples" in said
    assert SftRecipe.model_validate(made.model_dump()) == made and (Path(made.out) / "recipe.yaml").is_file()
    assert sorted(path.name for path in Path(made.out).iterdir()) == [
        "checkpoints", "export", "lock", "log.jsonl", "recipe.yaml"]  # fmt: skip


def test_losses_are_means_over_tokens(whole: Any, data: Path) -> None:
    """Of the base, against the stock forward, one sample at a time."""
    from dataclasses import asdict

    from premeditate.prompts import verify_words
    from premeditate.training.sft.data import Encoder, Lesson, lesson

    made, _, figures, _ = whole
    base, total, count = load_base(made.model), 0.0, 0
    encoder = Encoder(base.processor, base.limit)
    for edit in list(judged.read(data))[:5]:
        one = lesson(edit, made, verify_words(base.prompts), data)
        assert isinstance(one, Lesson)
        batch = encoder([asdict(one)])
        tokens = int((batch["labels"] != -100).sum())
        with torch.no_grad():
            total, count = total + float(base.model(**batch).loss) * tokens, count + tokens
    assert figures[0][2]["eval/loss"] == pytest.approx(total / count, rel=1e-5)


def test_the_size_of_a_forward_changes_no_update(whole: Any, data: Path, tmp_path: Path) -> None:
    _, _, figures, _ = whole
    rows: list[Any] = []
    train_sft(
        recipe(data, tmp_path, steps=1, batch={"size": 4, "forward": 4}), on_figures=lambda *row: rows.append(row)
    )
    for name in ("loss", "gradient_norm"):
        assert rows[0][2][name] == pytest.approx(figures[1][2][name], rel=1e-4)


def test_the_export_is_a_folder_like_its_base(whole: Any) -> None:
    made, found, _, _ = whole
    export, base = Path(found["export"]), Path(presets.resolve("reasoner", "micro").spec)
    for name in ("config.json", "generation_config.json", "preprocessor_config.json", "premeditate.json",
                 "tokenizer.json"):  # fmt: skip
        assert json.loads((export / name).read_text()) == json.loads((base / name).read_text()), name
    assert (export / "chat_template.jinja").read_text() == (base / "chat_template.jinja").read_text()
    before, after = weights(base), weights(export)
    assert before.keys() == after.keys() and {value.dtype for value in after.values()} == {torch.float16}
    card = (export / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "rrm[mode=both]:" in card
    assert "8 judged edits" in card and "lr: 0.001" in card and made.out not in card
    assert f"| 5 | {found['after']['eval/entropy']:.3f} |" in card


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["whole", "lora"])
def test_stopped_and_resumed_is_never_stopped(data: Path, tmp_path: Path, lora: Any) -> None:
    one, two = (recipe(data, tmp_path / name, model={"lora": lora}, steps=5) for name in ("one", "two"))
    train_sft(one)

    def stop(kind: str, step: int, figures: Mapping[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sft(two, on_figures=stop)
    assert checkpoints.newest(tmp_path / "two") == 2
    # As if the next checkpoint had been half written.
    half = tmp_path / "two" / "checkpoints" / "checkpoint-4"
    shutil.copytree(half.with_name("checkpoint-2"), half)
    (half / "premeditate.json").unlink()
    said: list[str] = []
    train_sft(two, resume=True, say=said.append)
    assert "going on from step 2 of 5" in said
    rows = [[{k: v for k, v in row.items() if k != "at" and not k.startswith("seconds")}
             for row in journal.read(Path(run.out))] for run in (one, two)]  # fmt: skip
    assert rows[0] == rows[1] and [row["step"] for row in rows[1]] == [1, 2, 3, 4, 5]
    a, b = (weights(Path(run.out) / "export") for run in (one, two))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    name = "model.safetensors" if lora is None else "adapter_model.safetensors"
    a, b = (load_file(Path(run.out) / "checkpoints" / "checkpoint-5" / name) for run in (one, two))
    assert all(torch.equal(a[name], b[name]) for name in a)  # in float32
    assert {path.name for path in half.parent.iterdir()} == {"checkpoint-4", "checkpoint-5"}


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["whole", "lora"])
def test_a_run_that_is_done_stays_as_it_is_when_resumed(data: Path, tmp_path: Path, lora: Any) -> None:
    made = recipe(data, tmp_path, model={"lora": lora}, steps=3)
    found = train_sft(made)
    before, log = weights(Path(found["export"])), journal.read(tmp_path)
    shutil.rmtree(found["export"])
    assert train_sft(made, resume=True) == found
    assert journal.read(tmp_path) == log
    assert all(torch.equal(before[k], v) for k, v in weights(Path(found["export"])).items())


# -- families ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("vision", [True, False])
def test_all_of_a_model_is_trained_or_all_but_its_eyes(data: Path, tmp_path: Path, family: str, vision: bool) -> None:
    base = build_vlm(family, tmp_path / "base", prompts="terse", max_batch=3, max_pixels=512)
    made = recipe(data, tmp_path / "run", model={"base": str(base), "vision": vision}, steps=2, mode="verify")
    export = Path(train_sft(made)["export"])
    before, after = weights(base), weights(export)
    assert before.keys() == after.keys()
    for name, value in before.items():
        if "visual" not in name:
            # The embeddings of tokens that never occur stay; no other weight does.
            assert not torch.equal(value, after[name]), name
    eyes = [torch.equal(value, after[name]) for name, value in before.items() if "visual" in name]
    assert eyes and (not any(eyes) if vision else all(eyes))
    assert json.loads((export / "premeditate.json").read_text()) == {
        "prompts": "terse", "max_batch": 3, "max_pixels": 512}  # fmt: skip
    loaded = TransformersReasoner.load(str(export), device="cpu")
    assert loaded.max_batch == 3 and loaded.processor.image_processor.size["longest_edge"] == 512


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_adapters_lie_in_the_language_model_and_the_export_holds_them(data: Path, tmp_path: Path, family: str) -> None:
    from peft import PeftModel

    base = build_vlm(family, tmp_path / "base", prompts="terse")
    lora = {"lora": {"rank": 4, "alpha": 8}, "gradient_checkpointing": True}
    made = recipe(data, tmp_path / "run", steps=3, model={"base": str(base), **lora})
    found = train_sft(made)
    adapter, export = tmp_path / "run" / "adapter", Path(found["export"])
    names = load_file(adapter / "adapter_model.safetensors").keys()
    assert len(names) == 2 * 7 * 2 and all("language_model" in name and "visual" not in name for name in names)
    network = TransformersReasoner.load(str(base), device="cpu").model
    merged = PeftModel.from_pretrained(network, adapter).merge_and_unload().state_dict()
    for name, value in TransformersReasoner.load(str(export), device="cpu").model.state_dict().items():
        assert torch.equal(value, merged[name].half().float()), name
    changed = {name for name, value in weights(base).items() if not torch.equal(value, weights(export)[name])}
    assert len(changed) == 2 * 7 and all("_proj" in name and "visual" not in name for name in changed)


def test_a_halved_base_trains_adapters_in_float32(data: Path, tmp_path: Path) -> None:
    made = recipe(data, tmp_path / "run", steps=2, model={"dtype": "bfloat16", "lora": {"rank": 2}})
    train_sft(made)
    adapter = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {value.dtype for value in adapter.values()} == {torch.float32}
    assert any(value.any() for name, value in adapter.items() if "lora_B" in name)


# -- what cannot be ---------------------------------------------------------------------------------------------------


def test_data_in_which_every_edit_was_lost_is_refused_before_a_model_is_loaded(data: Path, tmp_path: Path) -> None:
    lost = write(tmp_path / "lost", [])
    for told in ({"train": str(lost)}, {"train": str(data), "eval": str(lost)}):
        with pytest.raises(judged.JudgedError, match=r"lost holds no judged edits: its shards .*datasheet\.md"):
            train_sft(recipe(data, tmp_path / "run", data=told))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"data": {"train": "nowhere"}}, judged.JudgedError, "nowhere holds no judged edits; make them"),
        ({"batch": {"size": 9}}, TrainingError, r"gives 8 samples, and a batch has 9; give batch\.size=8 or less"),
        ({"model": {"base": "http://h:1/v1"}}, ModelError, "a served model, whose weights are elsewhere"),
        ({"model": {"base": "mikro"}}, ModelError, "there is no reasoner 'mikro'; did you mean micro"),
        ({"model": {"lora": {"targets": ["q_prok"]}}}, ModelError, "no linear layer 'q_prok' .* did you mean q_proj"),
        ({"model": {"device": "cuda:1"}}, ModelError, "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_what_cannot_be_is_said_with_its_mend(
    data: Path, tmp_path: Path, changes: dict[str, Any], error: type[PremeditateError], said: str
) -> None:
    with pytest.raises(error, match=said):
        train_sft(recipe(data, tmp_path / "run", **changes))
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_base_of_another_kind_is_refused(data: Path, tmp_path: Path) -> None:
    llava = build_llava(tmp_path / "llava")
    with pytest.raises(ModelError, match="of the family llava, of which no judge can be trained; give a vision-l"):
        train_sft(recipe(data, tmp_path / "run", model={"base": str(llava)}))
    import transformers as tf

    tf.LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path / "llama")
    with pytest.raises(ModelError, match="of the family llama, of which no judge"):
        train_sft(recipe(data, tmp_path / "run", model={"base": str(tmp_path / "llama")}))


def test_a_folder_with_checkpoints_is_not_overwritten_or_taken_for_another_runs(whole: Any, tmp_path: Path) -> None:
    made, _, _, _ = whole
    with pytest.raises(TrainingError, match="holds checkpoints up to step 5; add --resume"):
        train_sft(made)
    other = write(tmp_path / "other", edits(tmp_path / "other", 8, seed=5))
    changed = made.model_copy(update={"seed": 3, "data": made.data.model_copy(update={"train": str(other)})})
    with pytest.raises(TrainingError, match="seed was 0, is 3; it learnt from other judged edits; resume with"):
        train_sft(changed, resume=True)


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_a_folder_in_which_another_process_trains_is_left_alone(data: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / ".lessons-of-it").mkdir()
    with open(tmp_path / "lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another process is training in"):
            train_sft(recipe(data, tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"lock", ".lessons-of-it"}


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_a_run_holds_its_folder_before_it_has_read_its_data(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    from premeditate.training.sft import run

    def look(*args: Any) -> Any:
        assert list(tmp_path.glob(".lessons-*"))
        with open(tmp_path / "lock", "rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        raise ModelError("seen", "")

    monkeypatch.setattr(run, "load_base", look)
    with pytest.raises(ModelError, match="seen"):
        train_sft(recipe(data, tmp_path))
    with open(tmp_path / "lock", "rb") as file:  # nor longer than it runs
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not list(tmp_path.glob(".lessons-*"))


def test_a_run_that_nobody_began_is_begun(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    train_sft(recipe(data, tmp_path / "run", steps=1), resume=True, say=said.append)
    assert said[0].endswith("holds no whole checkpoint: starting from the beginning")


def test_a_loss_that_is_no_number_ends_the_run(data: Path, tmp_path: Path) -> None:
    from premeditate.microworld.models.reasoner_build import load_folder, save_folder

    model, tokenizer = load_folder(Path(presets.resolve("reasoner", "micro").spec))
    torch.nn.init.constant_(model.model.language_model.norm.weight, torch.nan)
    save_folder(tmp_path / "nan", model, tokenizer)
    with pytest.raises(TrainingError, match=r"step 1: loss is nan; start again with a lower optimizer\.lr"):
        train_sft(recipe(data, tmp_path / "run", model={"base": str(tmp_path / "nan")}))
    assert journal.read(tmp_path / "run")[-1]["loss"] is None


def test_a_picture_that_goes_away_while_it_trains_is_said(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "judged"
    shutil.copytree(data, folder)

    def lose(kind: str, step: int, figures: Mapping[str, float]) -> None:
        shutil.rmtree(folder / "images", ignore_errors=True)

    with pytest.raises(ImageError, match="images/"):
        train_sft(recipe(folder, tmp_path / "run"), on_figures=lose)
