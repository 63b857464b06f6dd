"""GCPO of a judge: what it reads, samples, trains on and reports. A judge that says what it is told to, and a tiny one
of a real class that had a cold start."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from premeditate import images, presets
from premeditate.config import ConfigError, load_config
from premeditate.datasets.preferences import Pair
from premeditate.prompts import verify_words
from premeditate.reasoners.base import ChatRequest
from premeditate.reasoners.transformers import TransformersReasoner
from premeditate.rewards.base import Sample
from premeditate.rewards.checklists.builder import ChecklistBuilder
from premeditate.rewards.judges.rrm import RRM
from premeditate.rewards.panel import Entry, Panel
from premeditate.rl.grouping import gcpo
from premeditate.rl.losses import clipped_tokens, token_kl
from premeditate.trace import Checklist, ChecklistItem, Task
from premeditate.training.data import DataError
from premeditate.training.distributed import World
from premeditate.training.errors import TrainingError
from premeditate.training.journal import Journal
from premeditate.training.loop import Parts, Trainer
from premeditate.training.policy import Place
from premeditate.training.tokens.model import TokenModel, Trace
from premeditate.training.verifier.pairs import Comparison, digest, load
from premeditate.training.verifier.policy import PairPolicy
from premeditate.training.verifier.recipe import Data, VerifierRecipe
from premeditate.training.verifier.rewards import Ordered, Stated
from premeditate.training.verifier.run import train_gcpo
from support.checklists import GOOD, Model, entries, said
from support.tiny_vlm import build_vlm

ROOT = Path(__file__).resolve().parents[1]
WORDS = verify_words("terse")
ITEMS = (ChecklistItem(question="Is it white?", dimension="follow"),)
MODE: Any = "think"


# -- pairs and judges -------------------------------------------------------------------------------------------------


def grey(level: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, (level,) * 3)


def white_wins(n: int, seed: int = 0) -> list[Pair]:
    """Pairs of a bright and a dark edit, of which the bright one is preferred, now first and now second."""
    found = []
    for i in range(n):
        light, dark = grey(255 - 5 * i), grey(5 * i + seed)
        edits = (light, dark) if i % 2 else (dark, light)
        found.append(Pair(f"p{i}", "make it white", grey(100 + i), *edits, "first" if i % 2 else "second",
                          meta={"checklist": [item.model_dump() for item in ITEMS]}))  # fmt: skip
    return found


def comparisons(n: int) -> list[Comparison]:
    return [Comparison(pair, ITEMS) for pair in white_wins(n)]


def recipe(out: Path | str = "runs/none", base: Path | str = "none", **changes: Any) -> VerifierRecipe:
    values: dict[str, Any] = {
        "out": str(out), "steps": 2, "judging": {"mode": MODE, "max_tokens": 8}, "logging": {"grids": 2},
        "model": {"base": str(base), "lora": None, "dtype": "float32", "device": "cpu"},
        "data": {"train": "test_gcpo_training:white_wins", "train_count": 6, "eval": None},
        "batch": {"groups": 4, "group_size": 6, "forward": 24}, "optimizer": {"lr": 3e-3},
    }  # fmt: skip
    return VerifierRecipe.model_validate({**values, **changes})


class Scripted:
    """Says what `says` makes of a request (None: it cannot take it), in two tokens, with one weight as its network."""

    def __init__(self, says: Callable[[ChatRequest], str | None]) -> None:
        self.says, self.network = says, nn.Linear(1, 1)
        self.reasoner = SimpleNamespace(prompts="terse")
        self.asked: list[ChatRequest] = []

    def write(self, requests: Sequence[ChatRequest], most: int) -> list[Trace | str]:
        self.asked += requests
        texts = [self.says(request) for request in requests]
        return ["too long" if text is None else Trace(request, torch.tensor([1, 2]), text, text != "so")
                for request, text in zip(requests, texts, strict=True)]  # fmt: skip

    def log_probs(self, traces: Sequence[Trace]) -> tuple[Tensor, Tensor]:
        mask = torch.ones(len(traces), 2, dtype=torch.bool)
        return -self.network.weight.square() * mask, mask


def scored(score: float) -> str:
    return WORDS.answer(score, (True,), "so", MODE)


def by_seed(request: ChatRequest) -> str:
    """A score that differs from trace to trace; every fifth cannot be read."""
    return "so" if request.seed % 5 == 0 else scored(request.seed % 7)


def trainer(
    told: VerifierRecipe, model: Any, train: list[Comparison], held_out: Sequence[Comparison] = (),
    policy: Any = PairPolicy, journal: Journal | None = None,
) -> Trainer:  # fmt: skip
    made = policy(told, model, train, list(held_out))
    parts = Parts(made, Panel([Entry(Stated())]), Panel([Entry(Ordered())]), len(train), len(held_out),
                  {"the training tasks": digest(train)})  # fmt: skip
    return Trainer(told, parts, World(), Path(told.out), journal)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny judge that has learnt to answer, with any score."""
    folder = build_vlm("qwen2_5_vl", tmp_path_factory.mktemp("judge"), prompts="terse")
    reasoner = TransformersReasoner.load(str(folder), device="cpu", dtype="float32")
    tokenizer = reasoner.tokenizer
    answers = [WORDS.answer(score, (True,), "", MODE).strip() for score in range(1, 10)]
    lessons = [tokenizer(f"{answer}{tokenizer.eos_token}")["input_ids"] for answer in answers]
    # It knows no other words: so a few steps are enough.
    others = set(range(len(tokenizer))) - {token for lesson in lessons for token in lesson}
    reasoner.model.generation_config.suppress_tokens = sorted(others)
    model = TokenModel(reasoner)
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=2e-3)
    several = [ChecklistItem.model_validate(entry) for entry in entries(GOOD)]
    texts = [WORDS.judge("make it white", items, MODE) for items in (ITEMS, several)]
    for step in range(44):
        text = texts[step % 4 == 3]
        requests = [ChatRequest((grey(100 + k), grey(28 * k)), text, temperature=1.0) for k in range(9)]
        taught = [Trace(request, torch.tensor(lessons[(4 * step + 5 * k) % 9]), "", True)
                  for k, request in enumerate(requests)]  # fmt: skip
        values, mask = model.log_probs(taught)
        optimizer.zero_grad()
        (-values.sum() / mask.sum()).backward()
        optimizer.step()
    reasoner.model.save_pretrained(folder)
    return folder


def fresh(judge: Path, frozen: Any = None) -> TokenModel:
    return TokenModel(TransformersReasoner.load(str(judge), device="cpu", dtype="float32"), frozen)


def trained(out: Path) -> dict[str, Tensor]:
    """The weights of the newest checkpoint."""
    from safetensors.torch import load_file

    return load_file(max((out / "checkpoints").iterdir()) / "model.safetensors")


# -- it learns --------------------------------------------------------------------------------------------------------


def rrm(folder: Path | str, pairs: list[Comparison]) -> dict[str, float]:
    """How the judge in `folder` orders the pairs, asked as anybody asks it."""
    reward = RRM(TransformersReasoner.load(str(folder), device="cpu", dtype="float32"), mode=MODE)
    samples = []
    for one in pairs:
        source, *edits = one.pictures()
        task = Task(id=one.id, images=(), instruction=one.pair.instruction)
        samples += [Sample(task, source, edit, Checklist(items=one.principles)) for edit in edits]
    verdicts = asyncio.run(reward.score(samples))
    scores = [verdict.scores.get("overall") for verdict in verdicts]
    both = [(w, o) for w, o in zip(scores[::2], scores[1::2], strict=True) if w is not None and o is not None]
    return {"coverage": len(both) / len(pairs), "pairs.accuracy": sum(w > o for w, o in both) / len(both),
            "pairs.ties_half": sum((w > o) + (w == o) / 2 for w, o in both) / len(both),
            "pairs.margin": sum(w - o for w, o in both) / len(both)}  # fmt: skip


def test_it_learns_which_edit_people_prefer(judge: Path, tmp_path: Path) -> None:
    """And the figures are those of the exported judge, asked as a reward."""
    spec = "test_gcpo_training:white_wins"
    told = recipe(
        tmp_path, judge, steps=12, data={"train": spec, "train_count": 8, "eval": spec, "eval_count": 10},
        batch={"groups": 8, "group_size": 12, "forward": 96}, evaluation={"every": 12},
        optimizer={"lr": 1e-3}, algorithm={"kl": 0.1},
    )  # fmt: skip
    lines: list[str] = []
    found = train_gcpo(told, say=lines.append)
    before, after = found["before"], found["after"]
    for figures, folder in ((before, judge), (after, Path(found["export"]))):
        for name, value in rrm(folder, comparisons(10)).items():
            assert figures[f"eval/{name}"] == pytest.approx(value, abs=1e-6), name
    assert before["eval/pairs.accuracy"] < 0.8 and after["eval/pairs.accuracy"] >= 0.9
    assert after["eval/pairs.margin"] > before["eval/pairs.margin"]


# -- sampling ---------------------------------------------------------------------------------------------------------


def test_traces_depend_on_seed_step_group_and_member_alone(judge: Path) -> None:
    model, pairs = fresh(judge), comparisons(4)

    def texts(step: int = 0, *, forward: int = 24, indices: Sequence[int] = (0, 1, 2, 3), **changes: Any) -> Any:
        told = recipe(batch={"groups": 4, "group_size": 6, "forward": forward}, **changes)
        found = {}
        for rollout in PairPolicy(told, model, pairs, []).sample([Place(step, i, i) for i in indices]):
            for k, place in enumerate(rollout.places):
                own = rollout.data[6 * k : 6 * k + 6]
                found[place.index] = [trace.tokens.tolist() for trace in own]
                for m, trace in enumerate(own):
                    _, better, worse = pairs[place.row].pictures()
                    assert trace.request.images[1] is (better if m < 3 else worse)
        return found

    once = texts()
    assert texts(forward=5) == once == texts(forward=1)
    assert texts(indices=(3, 1)) == {3: once[3], 1: once[1]}, "as on one of two devices"
    assert texts(step=1) != once != texts(seed=1)
    assert len({str(said) for group in once.values() for said in group}) > 4


def test_advantages_come_from_the_scores_of_both_edits() -> None:
    seen: list[tuple[list[str], Tensor, Tensor]] = []

    class Watching(PairPolicy):
        def rows(self, rollouts: Any, advantages: Any, masks: Any) -> Any:
            for rollout, values, mask in zip(rollouts, advantages, masks, strict=True):
                for k in range(len(rollout.places)):
                    part = slice(6 * k, 6 * k + 6)
                    seen.append(([trace.text for trace in rollout.data[part]], values[part], mask[part]))
            made = super().rows(rollouts, advantages, masks)
            assert len(made) == sum(int(mask.sum()) for _, _, mask in seen)
            return made

    run = trainer(recipe(), Scripted(by_seed), comparisons(6), policy=Watching)
    figures = run.train_step()
    assert len(seen) == 4
    known = [math.nan if text == "so" else float(text.rpartition("|")[2]) for texts, _, _ in seen for text in texts]
    for k, (_, values, mask) in enumerate(seen):
        scores = known[6 * k : 6 * k + 6]
        wanted = torch.cat(gcpo(scores[:3], scores[3:]))
        assert torch.allclose(values, wanted)
        informative = bool(wanted.any())
        assert mask.tolist() == [informative and not math.isnan(score) for score in scores]
    readable = sum(not math.isnan(score) for score in known)
    assert readable < 24 and figures["coverage"] == figures["coverage/rrm"] == pytest.approx(readable / 24)
    assert figures["groups/informative"] == sum(bool(mask.any()) for _, _, mask in seen) / 4
    assert figures["reward/rrm.score"] == pytest.approx(sum(s for s in known if not math.isnan(s)) / readable / 10)


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (lambda request: "I cannot", "it said 'I cannot'"),
        (lambda request: "so", r"cut off after 2 tokens \(raise judging.max_tokens\); it said 'so'"),
        (lambda request: None, "too long"),
    ],
)
def test_a_step_in_which_nothing_can_be_read_stops_with_the_reason(says: Any, why: str) -> None:
    model = Scripted(says)
    before = model.network.weight.clone()
    with pytest.raises(TrainingError, match=f"only 0% of the samples got a reward.*{why}"):
        trainer(recipe(min_coverage=0), model, comparisons(6)).train_step()
    assert torch.equal(model.network.weight, before)


# -- the objective ----------------------------------------------------------------------------------------------------


def test_the_loss_is_the_clipped_objective_against_the_judge_that_sampled(judge: Path) -> None:
    """By hand, trace by trace, after the weights have moved on; and the distance to the judge before training."""
    told = recipe(batch={"groups": 4, "group_size": 6, "forward": 5, "updates": 2}, algorithm={"kl": 0.3})
    before = fresh(judge)
    model = fresh(judge, before.network.requires_grad_(False))
    run = trainer(told, model, comparisons(4))
    rollouts, scores = run._sample([])
    parts = [torch.as_tensor(found.matrix[:, 0]) for found in scores]
    advantages = [torch.cat(gcpo(*part.chunk(2))).float() for part in parts]
    rows = run.policy.rows(rollouts, advantages, [~part.isnan() for part in parts])
    assert len(rows) >= 12 and rows.groups == sorted(rows.groups)
    with torch.no_grad():
        for p in model.network.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), alpha=0.02)
    some = list(range(0, len(rows), 2))
    found = run.policy.loss(rows, some)
    ratios = []
    for i, value, kl in zip(some, found.values.tolist(), found.metrics["kl"].tolist(), strict=True):
        trace, advantage = rows.data[i].trace, rows.data[i].advantage
        with torch.no_grad():
            (now, mask), (old, _) = model.log_probs([trace]), before.log_probs([trace])
        wanted = clipped_tokens(now, old, torch.tensor([advantage]), mask, clip_range=0.2)
        ratios.append(float(wanted.metrics["ratio"]))
        assert kl == pytest.approx(float(token_kl(now, old, mask)), abs=1e-5)
        assert value == pytest.approx(float(wanted.values) + 0.3 * kl, abs=1e-5)
    assert max(abs(ratio - 1) for ratio in ratios) > 0.05, "the weights have moved"
    nothing = run.policy.loss(rows, [])
    nothing.values.sum().backward()
    assert float(nothing.values) == 0 and all(p.grad is None for p in model.network.parameters())


# -- the run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, {"rank": 2, "targets": ["q_proj", "v_proj"]}], ids=["whole", "lora"])
def test_a_run_goes_on_as_if_it_had_never_been_stopped(
    judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Any
) -> None:
    def told(out: Path) -> VerifierRecipe:
        model = {"base": str(judge), "lora": lora, "dtype": "float32", "device": "cpu"}
        spec = "test_gcpo_training:white_wins"
        return recipe(out, model=model, steps=3, checkpoint={"every": 2}, algorithm={"kl": 0.1},
                      data={"train": spec, "train_count": 6, "eval": spec, "eval_count": 3},
                      batch={"groups": 2, "group_size": 6, "forward": 12, "updates": 2},
                      optimizer={"lr": 1e-3, "ema": 0.5})  # fmt: skip

    def stop(kind: str, step: int, figures: Any) -> None:
        if (kind, step) == ("step", 3):
            raise KeyboardInterrupt

    straight = train_gcpo(told(tmp_path / "straight"))
    with pytest.raises(KeyboardInterrupt):
        train_gcpo(told(tmp_path / "cut"), on_figures=stop)
    resumed = train_gcpo(told(tmp_path / "cut"), resume=True)
    one, other = trained(tmp_path / "straight"), trained(tmp_path / "cut")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    for name, value in straight["after"].items():
        if name.startswith("eval/"):
            assert resumed["after"][name] == value
    weights = [Path(found["export"]) / "model.safetensors" for found in (straight, resumed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    longer = told(tmp_path / "cut").model_copy(update={"steps": 4})
    monkeypatch.setattr(sys.modules[__name__], "white_wins", others)
    with pytest.raises(TrainingError, match="the training tasks changed since"):
        train_gcpo(longer, resume=True)


ORIGINAL = white_wins


def others(n: int, seed: int = 0) -> list[Pair]:
    return [replace(pair, preference="first") for pair in ORIGINAL(n, seed)]


SCRIPT = """
import sys
sys.path[:0] = [{tests!r}]
import torch
torch.set_num_threads(1)
from test_gcpo_training import recipe, two_step_run, train_gcpo
train_gcpo(two_step_run({out!r}, {judge!r}))
"""


def two_step_run(out: Path | str, judge: Path | str) -> VerifierRecipe:
    return recipe(out, judge, optimizer={"lr": 1e-3}, batch={"groups": 4, "group_size": 6, "forward": 12},
                  data={"train": "test_gcpo_training:white_wins", "train_count": 6,
                        "eval": "test_gcpo_training:white_wins", "eval_count": 3})  # fmt: skip


def test_two_processes_make_the_run_of_one(judge: Path, tmp_path: Path) -> None:
    train_gcpo(two_step_run(tmp_path / "one", judge))
    script = tmp_path / "two.py"
    script.write_text(SCRIPT.format(tests=str(ROOT / "tests"), out=str(tmp_path / "two"), judge=str(judge)))
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").open()] for name in ("one", "two")]
    for mine, its in zip(*logs, strict=True):
        for name in mine.keys() - {"at"}:
            if isinstance(mine[name], float) and "seconds" not in name:
                assert its[name] == pytest.approx(mine[name], rel=1e-3, abs=1e-5), name
    one, two, start = trained(tmp_path / "one"), trained(tmp_path / "two"), fresh(judge).network.state_dict()
    moved = sum(float((one[name] - start[name]).square().sum()) for name in one)
    apart = sum(float((one[name] - two[name]).square().sum()) for name in one)
    assert apart < 1e-3 * moved


# -- looking at it ----------------------------------------------------------------------------------------------------


def by_brightness(request: ChatRequest) -> str:
    """Right, but for two of its own: a tie and something that cannot be read."""
    source, edit = (image.getpixel((0, 0))[0] for image in request.images)
    return "so" if source == 103 else scored(5.0 if source == 102 else 9.0 if edit > 127 else 2.0)


def test_held_out_figures_are_over_pairs_of_which_both_edits_were_read() -> None:
    run = trainer(recipe(), Scripted(by_brightness), comparisons(4), comparisons(6))
    figures = run.evaluate()
    assert figures["eval/coverage"] == pytest.approx(5 / 6) and figures["eval/pairs.accuracy/n"] == 5
    assert figures["eval/pairs.accuracy"] == pytest.approx(4 / 5)
    assert figures["eval/pairs.ties_half"] == pytest.approx(4.5 / 5)
    assert figures["eval/pairs.margin"] == pytest.approx(4 * 0.7 / 5)


@pytest.mark.parametrize("size", [(64, 64), (900, 1600), (1600, 700)])
def test_a_grid_shows_both_edits_with_their_scores(tmp_path: Path, size: tuple[int, int]) -> None:
    """And no more pictures are held than it shows, however many pairs are held out."""
    held_out = [
        replace(one, pair=replace(one.pair, source=grey(100, size), first=grey(1, size), second=grey(200, (70, 90)),
                                  preference="second")) for one in comparisons(5)
    ]  # fmt: skip
    told = recipe(tmp_path)
    journal = Journal(tmp_path, told)
    try:
        run = trainer(told, Scripted(by_brightness), comparisons(4), held_out, journal=journal)
        run.evaluate()
        shown = [sample for _, samples in run.policy.evaluate(range(5)) for sample in samples]
    finally:
        journal.close()
    page = images.load(tmp_path / "grids" / "step-000000.png")
    assert page.width > 2 * 160 and page.height < 900
    assert [sample.edit.size == (1, 1) for sample in shown] == [False, False, True, True, True]
    for sample in shown[:2]:
        assert max(sample.edit.size) <= 276, "not made smaller by the grid"
        half, middle = sample.edit.width // 2, sample.edit.height - 5
        scale = min(half / size[0], half / size[1])
        left, right = (sample.edit.getpixel((x, middle))[0] for x in (round(size[0] * min(scale, 2) / 2), half + 10))
        assert left > 180 and right < 20, "the preferred one stands on the left"


# -- pairs ------------------------------------------------------------------------------------------------------------


def written(folder: Path, name: str, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with pictures: source.png, light0.png to light5.png, dark0.png to dark5.png."""
    grey(100).save(tmp_path / "source.png")
    for i in range(6):
        grey(250 - i).save(tmp_path / f"light{i}.png")
        grey(i).save(tmp_path / f"dark{i}.png")
    return tmp_path


def editreward(pictures: Path, **changes: Any) -> Path:
    items = [item.model_dump() for item in ITEMS]
    rows = [{"prompt": "make it white", "path_src": "source.png", "path1": f"light{i}.png", "path2": f"dark{i}.png",
             "tie_case": "false", "checklist": items, **changes} for i in range(4)]  # fmt: skip
    return written(pictures, "editreward.jsonl", rows)


def editscore(pictures: Path) -> Path:
    rows = [{"key": [f"a{i}", f"b{i}"], "instruction": "make it white", "input_image": "source.png",
             "output_images": [f"light{i}.png", f"dark{i}.png"], "task_type": "color", "dimension": "overall"}
            for i in range(4)]  # fmt: skip
    return written(pictures, "editscore.jsonl", rows)


@pytest.mark.parametrize("kind", ["editreward", "editscore"])
def test_published_pairs_train_as_they_are(
    judge: Path, pictures: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    author = Model(said(GOOD))
    monkeypatch.setattr(presets, "load_reasoner", lambda spec, **_: author)
    path = editreward(pictures) if kind == "editreward" else editscore(pictures)
    data = {"train": str(path), "train_count": None, "eval": str(path), "eval_count": 2}
    if kind == "editscore":
        data |= {"checklists": "author", "folder": str(pictures / "checklists")}
    found = train_gcpo(recipe(pictures / "run", judge, steps=1, data=data, optimizer={"lr": 1e-3}))
    assert found["steps"] == 1 and found["after"]["eval/pairs.accuracy/n"] == 2
    assert len(author.written) == (0 if kind == "editreward" else 1), "one source, one instruction: one checklist"
    assert len(list(pictures.glob("checklists/*"))) == len(author.written)


def test_pictures_in_files_are_read_when_they_are_needed(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = images.load
    monkeypatch.setattr(images, "load", lambda path, *a, **k: opened.append(Path(path).name) or real(path, *a, **k))
    found = load(str(editreward(pictures)), None, Data(), None, print)
    assert len(found) == 4 and not opened and len(digest(found)) == 64
    source, better, worse = found[1].pictures()
    assert (source.getpixel((0, 0))[0], better.getpixel((0, 0))[0], worse.getpixel((0, 0))[0]) == (100, 249, 1)
    assert sorted(opened) == ["dark1.png", "light1.png", "source.png"]


def test_a_pair_whose_picture_is_gone_is_unavailable_and_the_run_goes_on(pictures: Path) -> None:
    pairs = load(str(editreward(pictures)), None, Data(), None, print)
    (pictures / "light2.png").unlink()
    grey(3).save(pictures / "light3.png")  # as dark3.png
    model = Scripted(lambda request: scored(request.seed % 7))
    run = trainer(recipe(min_coverage=0.4), model, pairs, pairs)
    figures = run.train_step()
    assert figures["coverage"] == 0.5 and len(model.asked) == 12 and figures["samples/kept"] > 0
    run.step = 1
    reasons = set[str]()
    for rollout in run.policy.sample([Place(1, i, i) for i in range(4)]):
        for sample in rollout.samples:
            (one,) = sample.task.meta["judged"]
            assert one["status"] == ("unavailable" if sample.task.id.endswith(("3", "4")) else "scored")
            reasons.add(one["reason"])
    assert sum("light2.png" in why for why in reasons) == 1 == sum("the same picture" in why for why in reasons)
    held_out = run.evaluate()
    assert held_out["eval/coverage"] == 0.5
    with pytest.raises(TrainingError, match="only 50% of the samples"):
        trainer(recipe(min_coverage=0.6), model, pairs).train_step()


def awkward(n: int, seed: int = 0) -> list[Pair]:
    one, two, three, four, five, *_ = white_wins(6)
    return [
        one, replace(two, preference="tie"), replace(three, first=three.second.copy()), replace(four, meta={}),
        replace(five, instruction="  "), replace(one, instruction="make  it\nwhite ", id="p0"),
        replace(one, meta={"checklist": []}),
    ]  # fmt: skip


def test_what_is_left_out_is_counted_with_its_reason() -> None:
    lines: list[str] = []
    found = load("test_gcpo_training:awkward", 9, Data(), None, lines.append)
    assert [one.pair.instruction for one in found] == ["make it white"] * 2
    (line,) = lines
    assert line.startswith("5 pairs of test_gcpo_training:awkward are left out: ")
    for part in ("1 a tie", "2 no principles", "the two edits are the same picture", "the instruction is empty"):
        assert part in line


def test_pairs_without_principles_say_how_to_get_some(pictures: Path) -> None:
    with pytest.raises(DataError, match=r"no pair to learn from \(no principles\); give data.checklists=SPEC"):
        load(str(editscore(pictures)), None, Data(), None, print)
    with pytest.raises(DataError, match=r"\(a tie\); give pairs of which one edit is preferred"):
        load(str(editreward(pictures, tie_case=True)), None, Data(), None, print)
    with pytest.raises(DataError, match=r"meta.checklist is none .*; give a list of \{question, dimension\}"):
        load(str(editreward(pictures, checklist=["Is it white?"])), None, Data(), None, print)
    with pytest.raises(DataError, match=r"principles are unavailable \(error: down\).*; give another reasoner"):
        load(str(editscore(pictures)), None, Data(), ChecklistBuilder(Model(None)), print)


def bare(n: int, seed: int = 0) -> list[Pair]:
    """Without principles, and with one id for all."""
    return [replace(pair, id="same", meta={}) for pair in white_wins(n)]


def test_principles_are_written_once_and_kept(tmp_path: Path) -> None:
    def answers() -> Iterator[str]:
        for i in range(3):
            yield said({**GOOD, "follow": [f"Is it as white as snow {i}{k}?" for k in range(3)]})

    author = Model(*answers())
    found = load("test_gcpo_training:bare", 3, Data(), ChecklistBuilder(author, folder=tmp_path), print)
    assert len(author.written) == 3
    firsts = [one.principles[0].question for one in found]
    assert firsts == [f"Is it as white as snow {i}0?" for i in range(3)], "each pair has its own"
    again = Model(None)
    assert load("test_gcpo_training:bare", 3, Data(), ChecklistBuilder(again, folder=tmp_path), print) == found
    assert not again.written
    assert digest(found) != digest([replace(found[0], principles=found[1].principles), *found[1:]])
    assert digest(found) != digest(found[:2])


# -- the recipe -------------------------------------------------------------------------------------------------------


def test_a_change_of_one_field_leaves_the_others_as_they_are() -> None:
    plain = load_config(VerifierRecipe, None, [])
    assert (plain.batch.group_size, plain.batch.forward, plain.optimizer.weight_decay) == (16, 16, 0)
    told = load_config(VerifierRecipe, None, ["batch.groups=4", "optimizer.warmup=3", "grouping.clip=0.5"])
    assert told.batch == plain.batch.model_copy(update={"groups": 4})
    assert told.optimizer == plain.optimizer.model_copy(update={"warmup": 3})
    assert told.grouping.kind == "gcpo" and told.grouping.clip == 0.5


@pytest.mark.parametrize(
    ("change", "mend"),
    [
        ("batch.group_size=5", "give batch.group_size=6"),
        ("grouping.kind=grpo", "give grouping.kind=gcpo"),
        ("sharding.kind=fsdp", "give sharding.kind=none"),
        ("optimizer.betas=[0.9,1]", r"give optimizer.betas=\[0.9,0.999\]"),
        ("judging.mode=all", "judging.mode"),
    ],
)
def test_what_cannot_be_is_refused_with_the_mend(change: str, mend: str) -> None:
    with pytest.raises(ConfigError, match=mend):
        load_config(VerifierRecipe, None, [change])
