"""The training core, on a policy that has nothing to do with pictures or flow."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from premeditate.rewards.base import RewardError, Sample
from premeditate.rewards.function import FunctionReward
from premeditate.rewards.panel import Entry, Panel
from premeditate.stats import wilson
from premeditate.training import checkpoint
from premeditate.training.advantages import asked
from premeditate.training.distributed import World
from premeditate.training.errors import TrainingError
from premeditate.training.journal import Journal
from premeditate.training.loop import Parts, Trainer
from premeditate.training.policy import Place, Rollout, Rows, micro_batches
from premeditate.training.recipe import Recipe
from premeditate.training.watch import Tally, Watch
from support.toy_policy import LevelPolicy, right_level

TASKS = 6


def recipe(**parts: Any) -> Recipe:
    base: dict[str, Any] = {
        "rewards": [{"use": "-"}], "batch": {"groups": 6, "group_size": 8, "forward": 16}, "optimizer": {"lr": 0.2},
        "evaluation": {"every": 5}, "checkpoint": {"every": 5, "keep": 2}, "logging": {"grids": 2}, "steps": 10,
    }  # fmt: skip
    return Recipe.model_validate({**base, **parts})


def trainer(
    told: Recipe, reward: Any = right_level, out: Path = Path("."), *, timeout: float = 20, policy: Any = None,
    journal: Journal | None = None,
) -> Trainer:  # fmt: skip
    policy = policy or LevelPolicy(TASKS, told.batch.group_size, updates=told.batch.updates)
    panel = Panel([Entry(FunctionReward(reward), timeout=timeout, name="right")])
    judge = Panel([Entry(FunctionReward(right_level), name="right")])
    return Trainer(told, Parts(policy, panel, judge, TASKS, TASKS), World(), out, journal)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    found = Journal(tmp_path, recipe())
    yield found
    found.close()


# -- a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [1, 2])
def test_it_learns_what_is_rewarded_and_keeps_a_record(tmp_path: Path, updates: int) -> None:
    told = recipe(steps=30, batch={"groups": 6, "group_size": 8, "forward": 16, "updates": updates})
    journal = Journal(tmp_path, told)
    run = trainer(told, out=tmp_path, journal=journal)
    run.run(30)
    rows = journal.rows()
    journal.close()
    evaluations = [row for row in rows if row["kind"] == "eval"]
    assert [row["step"] for row in evaluations] == [0, 5, 10, 15, 20, 25, 30]
    first, last = (row["eval/right.score"] for row in (evaluations[0], evaluations[-1]))
    assert first < 0.5 and last == 1.0
    assert evaluations[-1]["eval/right.score/low"] == pytest.approx(wilson(TASKS, TASKS)[0])
    trained = [row for row in rows if row["kind"] == "step"]
    assert [row["step"] for row in trained] == list(range(1, 31))
    assert {"reward/right.score", "groups/informative", "samples/kept", "loss", "ratio", "gradient_norm",
            "seconds/sample", "seconds/reward", "seconds/update"} <= trained[0].keys()  # fmt: skip
    assert trained[-1]["groups/informative"] < 0.5 < trained[0]["groups/informative"], "solved tasks teach no more"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000025", "step-000030"]
    assert (tmp_path / "grids" / "step-000000.png").stat().st_size > 0
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["kind"] == "eval"


def test_a_run_goes_on_where_its_checkpoint_stands(tmp_path: Path) -> None:
    straight = trainer(recipe(), out=tmp_path / "straight")
    straight.run(10)
    first = trainer(recipe(), out=tmp_path)
    first.run(5)
    second = trainer(recipe(), out=tmp_path)
    path = checkpoint.latest(tmp_path)
    assert path is not None
    second.restore(checkpoint.load(path, recipe()))
    assert second.step == 5
    second.run(10)
    assert torch.equal(second.policy.module.weight, straight.policy.module.weight)  # type: ignore[arg-type]
    assert second.watch.state() == straight.watch.state()


def test_each_update_of_a_step_takes_its_share_of_the_groups() -> None:
    seen: list[set[int]] = []

    class Watching(LevelPolicy):
        def loss(self, rows: Any, indices: Sequence[int]) -> Any:
            seen.append({rows.groups[i] for i in indices})
            return super().loss(rows, indices)

    told = recipe(batch={"groups": 6, "group_size": 8, "forward": 100, "updates": 3})
    trainer(told, policy=Watching(TASKS, 8, updates=3)).train_step()
    assert [sorted(groups) for groups in seen] == [[0, 1], [2, 3], [4, 5]]


def test_rewards_are_found_while_the_next_part_is_sampled() -> None:
    scored = threading.Event()

    def reward(samples: Sequence[Sample]) -> list[float | None]:
        scored.set()
        return right_level(samples)

    class Waiting(LevelPolicy):
        def sample(self, places: Sequence[Place]) -> Iterator[Rollout]:
            for i, rollout in enumerate(super().sample(places)):
                if i == 1:
                    assert scored.wait(20), "the first part was not scored before the second was sampled"
                yield rollout

    trainer(recipe(), reward, policy=Waiting(TASKS, 8)).train_step()
    assert scored.is_set()


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_missing_reward_masks_its_sample_and_is_never_0() -> None:
    def reward(samples: Sequence[Sample]) -> list[float | None]:
        return [None if i % 2 else value for i, value in enumerate(right_level(samples))]

    kept: list[float] = []

    class Watching(LevelPolicy):
        def rows(self, rollouts: Any, advantages: Any, masks: Any) -> Any:
            for mask, values in zip(masks, advantages, strict=True):
                assert not mask[1::2].any() and not values[1::2].any()
                kept.append(float(mask.sum()))
            return super().rows(rollouts, advantages, masks)

    figures = trainer(recipe(), reward, policy=Watching(TASKS, 8)).train_step()
    assert figures["coverage"] == 0.5 and 0 < sum(kept) <= TASKS * 4
    # Of the rewards that there are: a missing one taken for 0 would halve it.
    assert figures["reward/right.score"] == pytest.approx(trainer(recipe()).train_step()["reward/right.score"], abs=0.2)


def refuses(samples: Sequence[Sample]) -> list[float | None]:
    raise ConnectionError("the judge is not there")


def hangs(samples: Sequence[Sample]) -> list[float | None]:
    time.sleep(30)
    return right_level(samples)


@pytest.mark.parametrize(("reward", "why"), [(refuses, "the judge is not there"), (hangs, "timed out|no answer")])
def test_a_step_without_rewards_ends_the_run_with_the_reason(tmp_path: Path, reward: Any, why: str) -> None:
    run = trainer(recipe(), out=tmp_path)
    run.run(5)
    broken = trainer(recipe(), reward, tmp_path, timeout=0.2)
    path = checkpoint.latest(tmp_path)
    assert path is not None
    broken.restore(checkpoint.load(path, recipe()))
    with pytest.raises(TrainingError, match=rf"step 6: only 0% .*({why}).*--resume"):
        broken.run(10)
    assert checkpoint.latest(tmp_path) == path and checkpoint.damage(path) is None


def test_a_reward_that_breaks_its_contract_ends_the_run() -> None:
    with pytest.raises(RewardError, match="8"):
        trainer(recipe(), lambda samples: [1.0]).train_step()


def test_a_run_with_nothing_to_learn_from_ends(tmp_path: Path) -> None:
    run = trainer(recipe(patience=3), lambda samples: [1.0] * len(samples), tmp_path)
    with pytest.raises(TrainingError, match=r"in 3 steps no group had rewards that differ.*group_size"):
        run.run(10)
    assert run.step == 2


def test_some_missing_rewards_are_borne_and_too_many_are_not() -> None:
    def some(samples: Sequence[Sample]) -> list[float | None]:
        return [None if i < 3 else value for i, value in enumerate(right_level(samples))]

    assert trainer(recipe(min_coverage=0.6), some).train_step()["coverage"] == 0.625
    with pytest.raises(TrainingError, match="only 62% of the samples"):
        trainer(recipe(min_coverage=0.7), some).train_step()


# -- its parts --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 9), st.randoms(use_true_random=False))
def test_micro_batches_hold_each_row_once_and_one_key_each(keys: list[int], most: int, random: Any) -> None:
    chosen = random.sample(range(len(keys)), random.randint(0, len(keys)))
    found = list(micro_batches(Rows(keys, keys, None), chosen, most, World()))
    pairs = list(micro_batches(Rows(keys, keys, None, samples=2), chosen, most, World()))
    assert all(len(batch) <= max(1, most // 2) for batch in pairs)
    assert sorted(i for batch in found for i in batch) == sorted(chosen)
    assert all(0 < len(batch) <= most and len({keys[i] for i in batch}) == 1 for batch in found)


@given(st.lists(st.lists(st.floats(-5, 5), max_size=5), min_size=1, max_size=5))
def test_a_tally_is_the_mean_of_all_values(parts: list[list[float]]) -> None:
    tally = Tally(World())
    for part in parts:
        tally.add("x", torch.tensor(part, dtype=torch.float64))
    values = [v for part in parts for v in part]
    figures = tally.figures(intervals=True)
    assert ("x" in figures) == bool(values)
    if values:
        assert figures["x"] == pytest.approx(sum(values) / len(values), abs=1e-9) and figures["x/n"] == len(values)
        assert figures["x/low"] <= figures["x"] + 1e-9 and figures["x"] <= figures["x/high"] + 1e-9


def test_what_nobody_asked_for_is_left_out_and_what_failed_is_not() -> None:
    nan = math.nan
    names = ("checks.follow", "checks.keep", "checks.quality", "other.score")
    whole = torch.tensor([[1.0, 0.5, nan, nan], [0.0, nan, nan, nan]])
    # No question about quality, one answer about keep is missing, and the other reward gave nothing at all.
    assert asked(whole, names).tolist() == [True, True, False, True]
    assert asked(whole[:, :3], names[:3]).tolist() == [True, True, False]


@pytest.mark.parametrize("rewards", [(0.5, 0.4, 0.1), (0.1, 0.4, 0.5)])
def test_a_fall_from_the_start_is_said_where_the_reward_rose(rewards: tuple[float, ...]) -> None:
    watch = Watch(patience=5)
    assert watch.evaluation(0, {"eval/success": 0.6, "eval/success/low": 0.5, "eval/success/high": 0.7}) == []
    for reward in rewards:
        watch.step({"reward/proxy": reward, "groups/informative": 1.0})
    said = watch.evaluation(3, {"eval/success": 0.2, "eval/success/low": 0.1, "eval/success/high": 0.3,
                                "eval/coverage": 0.1, "eval/coverage/low": 0.1, "eval/coverage/high": 0.1})  # fmt: skip
    assert len(said) == (rewards[-1] > rewards[0])


def test_a_reward_that_rises_while_the_held_out_falls_is_said() -> None:
    watch = Watch(patience=5)
    for reward, held_out in ((0.2, 0.6), (0.4, 0.7), (0.9, 0.3)):
        for _ in range(20):
            watch.step({"reward/proxy": reward, "groups/informative": 1.0})
        bounds = {"eval/success/low": held_out - 0.05, "eval/success/high": held_out + 0.05}
        said = watch.evaluation(7, {"eval/success": held_out, **bounds})
        assert bool(said) == (held_out == 0.3)
    assert "eval/success is 0.300, down from 0.700" in said[0]
    again = Watch(patience=5)
    again.restore(json.loads(json.dumps(watch.state())))
    assert again.state() == watch.state()
