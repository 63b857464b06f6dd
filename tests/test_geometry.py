"""How a step's samples lie on devices, updates and forwards, and what a step costs."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from premeditate.config import ConfigError
from premeditate.errors import ExitCode
from premeditate.rl.flow import compress, sample
from premeditate.training.geometry import Forwards, Geometry, forwards, windows
from premeditate.training.recipe import Recipe


def recipe(**parts: Any) -> Recipe:
    return Recipe.model_validate(parts)


def batch(**values: Any) -> Recipe:
    return recipe(batch=values)


small = st.integers(1, 12)


@given(parts=small, devices=small, updates=st.integers(1, 4), size=st.integers(2, 9), forward=st.integers(1, 40))
def test_every_sample_is_covered_once(parts: int, devices: int, updates: int, size: int, forward: int) -> None:
    made = batch(groups=parts * devices * updates, group_size=size, updates=updates, forward=forward)
    geometry = Geometry.of(made, devices)
    seen: Counter[tuple[int, int]] = Counter()
    for rank in range(devices):
        mine = geometry.assignment(rank)
        assert mine == sorted(mine) and len(mine) == geometry.groups_per_device
        # Each update gives every device as much to do as the others.
        assert Counter(map(geometry.update_of, mine)) == dict.fromkeys(range(updates), parts)
        samples = [(group, member) for group in mine for member in range(size)]
        assert len(samples) == geometry.samples_per_device
        for part in geometry.slices(len(samples)):
            assert 1 <= len(part) <= forward
            seen.update(samples[i] for i in part)
    assert seen == {(g, m): 1 for g in range(geometry.groups) for m in range(size)}
    assert geometry.samples == made.batch.groups * size == sum(seen.values())
    assert geometry.accumulation == len(geometry.slices(geometry.rows_per_update))
    assert geometry.rows_per_update * updates == geometry.samples_per_device * len(windows(made)[0])


@given(groups=st.integers(1, 60), devices=small, updates=st.integers(1, 5))
def test_impossible_settings_name_possible_ones(groups: int, devices: int, updates: int) -> None:
    made = batch(groups=groups, updates=updates)
    if groups % (devices * updates) == 0:
        Geometry.of(made, devices)
        return
    with pytest.raises(ConfigError) as caught:
        Geometry.of(made, devices)
    assert caught.value.exit_code == ExitCode.USAGE
    named = re.findall(r"(batch\.groups|batch\.updates)=(\d+)|(\d+) devices?\b", caught.value.mend)
    assert named
    for key, value, count in named:
        changed = {"groups": groups, "updates": updates} | ({key.split(".")[1]: int(value)} if key else {})
        Geometry.of(batch(**changed), int(count or devices))
    counts = [int(value) for key, value, _ in named if key == "batch.groups"]
    possible = [g for g in range(1, 200) if g % (devices * updates) == 0]
    assert min(counts, key=lambda g: abs(g - groups)) in [
        g for g in possible if abs(g - groups) == min(abs(p - groups) for p in possible)
    ]


def test_an_impossible_setting_says_what_to_type() -> None:
    with pytest.raises(ConfigError) as caught:
        Geometry.of(batch(groups=10), 4)
    assert str(caught.value) == (
        "batch.groups=10 cannot be split over 4 devices x 1 update (4 equal parts); "
        "nearest: batch.groups=8 or batch.groups=12, or 2 devices"
    )
    with pytest.raises(ConfigError, match=r"nearest: batch.groups=6 or batch.groups=8, or batch.updates=1"):
        Geometry.of(batch(groups=7, updates=2))
    with pytest.raises(ConfigError, match="give at least 1"):
        Geometry.of(batch(), 0)


def test_one_sample_at_a_time_and_twelve_to_a_group_on_eight_devices() -> None:
    geometry = Geometry.of(recipe(batch={"groups": 8, "group_size": 12, "forward": 1}, rollout={"steps": 4}), 8)
    assert geometry.rollout_forwards == 12 and geometry.accumulation == 12 * 3 and geometry.microbatch == 1
    assert dict(geometry.table())["devices"] == "8, 1 groups (12 samples) each"


def test_groups_share_a_forward_where_they_fit() -> None:
    def per_step(forward: int) -> int:
        return Geometry.of(batch(groups=5, group_size=4, forward=forward)).rollout_forwards

    assert [per_step(n) for n in (4, 7, 8, 19, 20, 99, 3)] == [5, 5, 3, 2, 1, 1, 10]


def test_the_order_of_groups_does_not_depend_on_the_devices() -> None:
    made = batch(groups=12, updates=2)
    alone, together = Geometry.of(made, 1), [Geometry.of(made, d) for d in (2, 3, 6)]
    for geometry in together:
        assert sorted(g for rank in range(geometry.devices) for g in geometry.assignment(rank)) == alone.assignment(0)
        assert (
            [geometry.update_of(g) for g in range(12)] == [alone.update_of(g) for g in range(12)] == [0] * 6 + [1] * 6
        )


# -- windows --------------------------------------------------------------------------------------------------------


def test_windows_follow_the_recipe() -> None:
    assert windows(recipe(steps=2, rollout={"steps": 5})) == [(0, 1, 2, 3)] * 2
    sliding = {"steps": 5, "window": {"kind": "sliding", "size": 2, "every": 3}}
    assert windows(recipe(steps=7, rollout=sliding)) == [(0, 1)] * 3 + [(1, 2)] * 3 + [(2, 3)]
    assert windows(recipe(steps=3, algorithm={"name": "nft"})) == [()] * 3


@pytest.mark.parametrize("window", [{"kind": "fixed"}, {"kind": "fixed", "size": 20}, {"first": 9}, {"last": 11}])
def test_an_impossible_window_is_refused_early(window: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^rollout\.window: .+; |rollout.window: .+ needs a size"):
        Geometry.of(recipe(rollout={"steps": 10, "window": window}))


# -- forwards -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("compression", [1.0, 0.5])
@pytest.mark.parametrize(
    "window",
    [{}, {"kind": "fixed", "size": 2, "first": 3}, {"kind": "random", "size": 1}, {"kind": "sliding", "size": 2}],
)
def test_rollouts_cost_what_the_sampler_says(window: dict[str, Any], compression: float, share: bool) -> None:
    made = recipe(
        steps=40, batch={"groups": 3, "group_size": 4}, data={"eval": None},
        rollout={"steps": 8, "window": {"every": 10, **window}, "share_prefix": share, "compress": compression},
    )  # fmt: skip
    asked = 0

    def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        nonlocal asked
        asked += len(x)
        return x * 0

    for chosen in windows(made):
        levels, inside = compress(torch.linspace(1, 0, 9), chosen, compression)
        sample(velocity, torch.zeros(12, 1, 1), levels, window=inside, dynamics="flow-sde", noise_level=0.7,
               noise=lambda _: torch.zeros(12, 1, 1), group=4 if share else 1)  # fmt: skip
    found = forwards(made)
    assert found.phases["rollout"] == pytest.approx(asked / 40)
    assert found.phases["update"] == 3 * 12 * len(windows(made)[0]) and found.phases["evaluation"] == 0


def counts(made: Forwards) -> tuple[float, ...]:
    return tuple(made.phases[name] for name in ("old policy", "reference", "update"))


def test_phases_of_each_objective() -> None:
    def cost(name: str, updates: int = 1, **algorithm: Any) -> Forwards:
        sizes = {"groups": 2, "group_size": 4, "updates": updates}
        return forwards(
            recipe(batch=sizes, rollout={"steps": 5}, algorithm={"name": name, "timesteps": 2, **algorithm})
        )

    assert counts(cost("flow-grpo")) == (0, 0, 3 * 8 * 4)
    assert counts(cost("flow-grpo", 2)) == (0, 0, 3 * 8 * 4)  # the rollout's probabilities are kept
    assert counts(cost("flow-grpo", kl=0.1)) == (0, 8 * 4, 3 * 8 * 4)
    assert counts(cost("nft")) == (0, 0, 3 * 8 * 2)
    assert counts(cost("nft", old_decay=0.9)) == counts(cost("awm", 2)) == (8 * 2, 0, 3 * 8 * 2)
    assert counts(cost("dpo")) == (0, 2 * 2 * 2, 3 * 2 * 2 * 2)  # two pairs, at two levels, two samples each
    assert cost("nft").peer == {"rollout": 40, "old policy": 40, "reference": 0, "update": 120, "evaluation": 64}
    assert cost("flow-grpo").peer["old policy"] == 8 * 4


def test_guidance_doubles_and_evaluations_are_shared_out() -> None:
    made = recipe(rollout={"steps": 4}, evaluation={"every": 5, "steps": 10}, data={"eval_count": 20})
    single, double = forwards(made), forwards(made, passes=2)
    assert single.phases["evaluation"] == 20 * 10 / 5 and double.total == 2 * single.total
    assert forwards(made, held_out=5).phases["evaluation"] == 10
    assert double.ratio() == single.ratio() and double.ratio(100, 150) == pytest.approx(1.5 * single.ratio())
    assert dict(single.table())["total"].endswith("x)")


def test_the_bench_geometry_needs_fewer_forwards() -> None:
    """16 images of 4 tasks, 10 steps, 2 trained: what a plain loop makes against sharing, at equal text."""
    made = {
        "data": {"eval": None},
        "batch": {"groups": 4, "group_size": 4},
        "rollout": {"steps": 10, "window": {"kind": "fixed", "size": 2, "first": 2}},
    }
    plain = forwards(recipe(**made))
    assert sum(plain.peer.values()) == 160 + 32 + 96 and plain.total == 160 + 96
    made["rollout"] |= {"share_prefix": True, "compress": 0.5}
    shared = forwards(recipe(**made))
    assert shared.phases["rollout"] == 4 * 1 + 16 * (2 + 3) and shared.ratio() == 288 / 180
