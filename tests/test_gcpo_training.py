"""GCPO of a judge: what it reads, samples, trains on and reports. A judge that says what it is told to, and a tiny one
of a real class that had a cold start."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from premeditate import images
from premeditate.datasets.preferences import Pair
from premeditate.reasoners.base import ChatRequest
from premeditate.reasoners.transformers import TransformersReasoner
from premeditate.rewards.base import Sample
from premeditate.rewards.judges.rrm import RRM
from premeditate.rl.grouping import gcpo
from premeditate.rl.losses import clipped_tokens, token_kl
from premeditate.trace import Checklist, Task
from premeditate.training.errors import TrainingError
from premeditate.training.journal import Journal
from premeditate.training.policy import Place
from premeditate.training.tokens.base import load_base
from premeditate.training.verifier.pairs import Comparison
from premeditate.training.verifier.policy import PairPolicy
from premeditate.training.verifier.recipe import VerifierRecipe
from premeditate.training.verifier.run import train_gcpo, trainable
from support import preferred
from support.preferred import MODE, Scripted, comparisons, fresh, grey, recipe, scored, trainer, white_wins

ROOT = Path(__file__).resolve().parents[1]


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
    spec = "support.preferred:white_wins"
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


def by_seed(request: ChatRequest) -> str:
    """A score that differs from trace to trace; every fifth cannot be read."""
    return "so" if request.seed % 5 == 0 else scored(request.seed % 7)


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


@pytest.mark.parametrize(
    ("lora", "dtype", "held", "calculated"),
    [
        (None, "bfloat16", torch.float32, torch.bfloat16), (None, "float32", torch.float32, None),
        ({"rank": 2}, "bfloat16", torch.bfloat16, None),
    ],
)  # fmt: skip
def test_forwards_calculate_in_the_dtype_that_is_asked_for(
    judge: Path, lora: Any, dtype: str, held: torch.dtype, calculated: torch.dtype | None
) -> None:
    told = recipe(base=judge, model={"base": str(judge), "lora": lora, "dtype": dtype, "device": "cpu"})
    model = trainable(load_base(told.model), told)
    assert model.network.dtype == held and model.dtype == calculated
    assert {p.dtype for p in model.network.parameters() if p.requires_grad} == {torch.float32}


# -- the run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, {"rank": 2, "targets": ["q_proj", "v_proj"]}], ids=["whole", "lora"])
def test_a_run_goes_on_as_if_it_had_never_been_stopped(
    judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Any
) -> None:
    def told(out: Path) -> VerifierRecipe:
        model = {"base": str(judge), "lora": lora, "dtype": "float32", "device": "cpu"}
        spec = "support.preferred:white_wins"
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
    monkeypatch.setattr(preferred, "white_wins", others)
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
                  data={"train": "support.preferred:white_wins", "train_count": 6,
                        "eval": "support.preferred:white_wins", "eval_count": 3})  # fmt: skip


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
