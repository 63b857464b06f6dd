"""The flow policy on the training core, with the real FLUX transformer and random weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from premeditate.rewards.panel import Panel
from premeditate.training import checkpoint
from premeditate.training.errors import TrainingError
from premeditate.training.loop import Trainer
from support import tiny_flow
from support.tiny_flow import recipe, rows, trainer

ALGORITHMS = ("flow-grpo", "grpo-guard", "nft", "awm", "dpo")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def panel() -> Iterator[Panel]:
    with tiny_flow.panel_of(recipe()) as found:
        yield found


def steps(run: Trainer, count: int) -> list[dict[str, float]]:
    found = []
    for _ in range(count):
        found.append(run.train_step())
        run.step += 1
    return found


def weights(run: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.named.values()])


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("lora", [{"rank": 4}, None])
def test_each_algorithm_updates_adapters_or_the_whole_transformer(panel: Panel, name: str, lora: Any) -> None:
    run = trainer(recipe(algorithm={"name": name}, model={"lora": lora}), panel)
    frozen = {n: p.detach().clone() for n, p in run.policy.module.named_parameters() if not p.requires_grad}
    before = weights(run)
    figures = steps(run, 2)[-1]
    assert torch.isfinite(weights(run)).all() and not torch.equal(weights(run), before)
    assert figures["loss"] == figures["loss"] and figures["gradient_norm"] > 0
    assert figures["groups/informative"] == 1 and figures["coverage"] == 1
    after = dict(run.policy.module.named_parameters())
    assert all(torch.equal(after[n], p) for n, p in frozen.items()), "a frozen weight moved"
    assert bool(frozen) == (lora is not None)


@pytest.mark.parametrize("name", ["flow-grpo", "grpo-guard"])
@pytest.mark.parametrize("dynamics", ["flow-sde", "dance-sde", "cps"])
def test_replayed_steps_are_as_probable_as_when_they_were_sampled(panel: Panel, name: str, dynamics: str) -> None:
    # Several updates a step, so that the ratio is calculated and not taken to be 1; the first must still find 1.
    parts: dict[str, Any] = {"algorithm": {"name": name}, "rollout": {"dynamics": dynamics}, "batch": {"updates": 2}}
    run = trainer(recipe(**parts), panel)
    for figures in steps(run, 3):  # LoRA is no longer 0 then, and is merged while sampling
        assert figures["mismatch"] < 1e-6
    still = trainer(recipe(**(parts | {"optimizer": {"lr": 1e-12}})), panel)
    assert abs(steps(still, 1)[0]["ratio"] - 1) < 1e-6


@pytest.mark.parametrize("name", ["flow-grpo", "nft", "dpo"])
def test_the_size_of_a_forward_changes_nothing(panel: Panel, name: str) -> None:
    found = []
    for forward in (1, 4, 64):
        kl = {} if name == "dpo" else {"kl": 0.1, "kl_kind": "velocity"}
        run = trainer(recipe(algorithm={"name": name, **kl}, batch={"forward": forward}), panel)
        (figures,) = steps(run, 1)
        found.append((torch.cat([p.grad.flatten() for p in run.named.values() if p.grad is not None]), figures["loss"]))
    for gradient, loss in found[1:]:
        torch.testing.assert_close(gradient, found[0][0], rtol=1e-3, atol=1e-3 * float(found[0][0].abs().max()))
        assert loss == pytest.approx(found[0][1], abs=1e-5)


def test_tasks_of_different_shapes_share_a_step(panel: Panel) -> None:
    run = trainer(recipe(batch={"groups": 4}), panel, tasks=rows(4, wide=True))
    figures = steps(run, 1)[0]
    assert figures["groups/informative"] == 1 and figures["samples/kept"] == 1


def test_fewer_forwards_where_the_prefix_is_shared_and_steps_are_thinned(panel: Panel) -> None:
    window = {"kind": "fixed", "first": 2, "size": 1}
    plain = steps(trainer(recipe(rollout={"window": window}), panel), 1)[0]
    shared = steps(trainer(recipe(rollout={"window": window, "share_prefix": True}), panel), 1)[0]
    thinned = trainer(recipe(rollout={"window": window, "share_prefix": True, "solver": "ab2", "compress": 0.5}), panel)
    assert plain["rollout_forwards"] == 6 * 4
    assert shared["rollout_forwards"] == 2 * 2 + 6 * 2
    assert steps(thinned, 1)[0]["rollout_forwards"] == 2 * 1 + 6 * 2


def test_guidance_counts_twice(panel: Panel) -> None:
    run = trainer(recipe(), panel)
    run.policy.adapter.true_cfg_scale = 2.0  # type: ignore[attr-defined]
    assert steps(run, 1)[0]["rollout_forwards"] == 2 * 6 * 4


@pytest.mark.parametrize("lora", [{"rank": 4}, None])
def test_the_distance_to_the_start_is_0_at_first_and_grows(panel: Panel, lora: Any) -> None:
    for kind in ("exact", "published", "velocity"):
        run = trainer(recipe(algorithm={"kl": 0.01, "kl_kind": kind}, model={"lora": lora}), panel)
        first, second = (figures["kl"] for figures in steps(run, 2))
        assert abs(first) < 1e-10 < second


# -- resume -----------------------------------------------------------------------------------------------------------

RESUMED: list[dict[str, Any]] = [
    {"algorithm": {"name": "flow-grpo"}},
    {"algorithm": {"name": "grpo-guard", "kl": 0.1}, "batch": {"updates": 2}, "optimizer": {"ema": 0.9}},
    {"algorithm": {"name": "nft", "old_decay": 0.8}, "model": {"lora": None}},
    {"algorithm": {"name": "dpo"}, "rollout": {"window": {"kind": "random", "size": 2}}},
]


@pytest.mark.parametrize("told", RESUMED, ids=lambda t: t["algorithm"]["name"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(panel: Panel, tmp_path: Path, told: dict[str, Any]) -> None:
    straight = trainer(recipe(**told), panel)
    figures = steps(straight, 4)
    stopped = trainer(recipe(**told), panel, tmp_path)
    steps(stopped, 2)
    stopped.save()
    resumed = trainer(recipe(**told), panel, tmp_path)
    path = checkpoint.latest(tmp_path)
    assert path is not None
    resumed.restore(checkpoint.load(path, recipe(**told)))
    again = steps(resumed, 2)
    assert torch.equal(weights(resumed), weights(straight))
    for one, other in zip(again, figures[2:], strict=True):
        assert {k: v for k, v in one.items() if "seconds" not in k} == {
            k: v for k, v in other.items() if "seconds" not in k
        }
    if straight.ema and resumed.ema:
        assert all(torch.equal(a, b) for a, b in zip(straight.ema.mean, resumed.ema.mean, strict=True))


@pytest.mark.parametrize("merge", [True, False])
def test_what_is_not_finite_ends_the_run_and_is_not_kept(panel: Panel, tmp_path: Path, merge: bool) -> None:
    run = trainer(recipe(optimizer={"lr": 1e30}, rollout={"merge_lora": merge}), panel, tmp_path)
    run.save()
    with pytest.raises(TrainingError, match=r"not finite.*lower optimizer\.lr"):
        steps(run, 5)
    with torch.no_grad():
        next(iter(run.named.values())).fill_(float("nan"))
    with pytest.raises(TrainingError, match="weights are not finite"):
        run.save()
    path = checkpoint.latest(tmp_path)
    assert path is not None and checkpoint.damage(path) is None


# -- several processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "told",
    [
        {"algorithm": {"name": "flow-grpo", "kl": 0.1}, "sharding": {"kind": "none"}},
        {"algorithm": {"name": "flow-grpo", "kl": 0.1}, "sharding": {"kind": "fsdp"}},
        {
            "algorithm": {"name": "nft", "kl": 0.1, "kl_kind": "velocity", "old_decay": 0.5},
            "model": {"lora": None},
            "optimizer": {"ema": 0.9},
            "sharding": {"kind": "fsdp"},
        },
        {
            "algorithm": {"name": "awm", "kl": 0.1, "kl_kind": "velocity"},
            "sharding": {"kind": "fsdp"},
            "batch": {"updates": 2, "forward": 2},
            "rewards": [{"use": "support.tiny_flow:even"}],
        },
    ],
    ids=["replicated", "sharded", "sharded-whole", "one-has-nothing-to-learn"],
)
def test_two_processes_make_the_update_of_one(tmp_path: Path, told: dict[str, Any]) -> None:
    told = told | {"batch": {"groups": 4, "group_size": 3, "forward": 4} | told.get("batch", {})}
    alone = recipe(**{**told, "sharding": {"kind": "none"}})
    with tiny_flow.panel_of(alone) as panel:
        one = trainer(alone, panel, tasks=rows(4, wide=True), held_out=3)
        start = weights(one)
        figures = steps(one, 3)
        held_out = one.evaluate()
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(ROOT / "tests" / "support" / "two_processes.py"), json.dumps(told), str(tmp_path)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    # Adam's steps are of one length whatever the gradient: where there is next to none, rounding decides.
    assert (two["weights"] - weights(one)).norm() < 1e-2 * (weights(one) - start).norm()
    for mine, its in zip(figures, two["figures"], strict=True):
        rewards = [name for name in mine if name.startswith("reward/")]
        for name in ("loss", "gradient_norm", "rollout_forwards", "groups/informative", *rewards):
            assert its[name] == pytest.approx(mine[name], rel=1e-3, abs=1e-5), name
    for name, value in held_out.items():
        if "seconds" not in name:
            assert two["held_out"][name] == pytest.approx(value, abs=1e-4), name
    # What two processes wrote, one goes on with.
    path = checkpoint.latest(tmp_path)
    assert path is not None
    one.restore(checkpoint.load(path, one.recipe))
    torch.testing.assert_close(two["weights"], weights(one), rtol=0, atol=1e-7)
