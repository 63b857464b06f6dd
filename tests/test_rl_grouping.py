"""From reward matrices to advantages: z-scores against numpy, chains against all subsets."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from premeditate.rl.grouping import GROUPINGS, gdpo, grpo, ucpg, weighted

NAN, INF = float("nan"), float("inf")
Array = npt.NDArray[np.float64]

# The chain of the paper's figure, and points that are not comparable with parts of it.
FIGURE = [
    (0.12, 0.2, 0.2), (0.2, 0.4, 0.3), (0.27, 0.6, 0.6), (0.34, 0.8, 0.6), (0.5, 0.8, 0.8), (0.75, 0.8, 0.9),
]  # fmt: skip
APART = [(0.9, 0.1, 0.5), (0.6, 0.3, 0.95), (0.05, 0.9, 0.4), (0.4, 0.5, 0.1)]


def z(values: Any) -> Array:
    values = np.asarray(values, dtype=np.float64)
    return (values - values.mean()) / values.std()


@st.composite
def matrices(draw: st.DrawFn, most: int = 10) -> Array:
    """Eighths, so that sums are exact, with ties, equal rows and missing entries."""
    size, dimensions = draw(st.integers(1, most)), draw(st.integers(1, 4))
    entries = st.integers(-draw(st.integers(0, 2)), draw(st.integers(1, 12)))
    numbers = draw(st.lists(entries, min_size=size * dimensions, max_size=size * dimensions))
    rewards = np.array(numbers, dtype=np.float64).reshape(size, dimensions)
    return np.where(rewards == -2, NAN, rewards / 8)


def best_chains(rewards: Array) -> list[list[int]]:
    """Every longest chain with the largest spread and then the largest sum, by trying all subsets; best sample first,
    in the order of preference."""
    present = [i for i in range(len(rewards)) if not np.isnan(rewards[i]).any()]
    present.sort(key=lambda i: (*rewards[i], i))
    below = (rewards[:, None] <= rewards[None]).all(-1).tolist()

    def is_chain(subset: tuple[int, ...]) -> bool:
        return all(below[i][j] for i, j in itertools.pairwise(subset))

    for size in range(len(present), 0, -1):
        found = [c for c in itertools.combinations(present, size) if is_chain(c)]
        if found:
            sums = rewards.sum(1)
            worth = [(sums[c[-1]] - sums[c[0]], sum(sums[i] for i in c)) for c in found]
            return sorted([*c[::-1]] for c, w in zip(found, worth, strict=True) if w == max(worth))
    return []


# -- chains -------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(matrices())
def test_ucpg_is_what_all_subsets_say(rewards: Array) -> None:
    advantages, mask = ucpg(rewards)
    chains = best_chains(rewards)
    chain = sorted(chains[0]) if chains else []
    if len(chain) < 2 or np.ptp(rewards[chain].sum(1)) == 0:
        assert not mask.any() and not advantages.any()
        return
    assert mask.nonzero()[:, 0].tolist() == chain
    np.testing.assert_allclose(advantages[mask].numpy(), z(rewards[chain].sum(1)), rtol=1e-12, atol=1e-12)
    assert not advantages[~mask].any()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 10), st.integers(1, 5))
def test_ucpg_keeps_a_longest_chain_of_any_rewards(seed: int, size: int, dimensions: int) -> None:
    rewards = np.random.default_rng(seed).random((size, dimensions))
    _, mask = ucpg(rewards)
    chains = best_chains(rewards)
    assert int(mask.sum()) == (len(chains[0]) if len(chains[0]) > 1 else 0)
    kept = sorted(rewards[mask.numpy()].tolist())
    assert all(a <= b for low, high in itertools.pairwise(kept) for a, b in zip(low, high, strict=True))


@settings(max_examples=80, deadline=None)
@given(matrices(), st.integers(0, 2**32 - 1))
def test_ucpg_does_not_care_for_the_order_of_the_samples(rewards: Array, seed: int) -> None:
    permutation = np.random.default_rng(seed).permutation(len(rewards))
    before, after = ucpg(rewards), ucpg(rewards[permutation])
    assert before[1].sum() == after[1].sum()
    if len({tuple(map(tuple, rewards[chain])) for chain in best_chains(rewards)}) <= 1:  # no draw to make
        torch.testing.assert_close(after[0], before[0][permutation])
        assert torch.equal(after[1], before[1][permutation])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 5))
def test_ucpg_does_not_care_for_the_order_where_rewards_are_continuous(seed: int, size: int, dimensions: int) -> None:
    generator = np.random.default_rng(seed)
    rewards, permutation = generator.random((size, dimensions)), generator.permutation(size)
    before, after = ucpg(rewards), ucpg(rewards[permutation])
    torch.testing.assert_close(after[0], before[0][permutation])
    assert torch.equal(after[1], before[1][permutation])


def test_the_papers_figure() -> None:
    advantages, mask = ucpg(torch.tensor(FIGURE))
    assert mask.all()
    np.testing.assert_allclose(advantages, [-1.52, -0.95, -0.09, 0.32, 0.86, 1.39], atol=0.005)
    shuffled = [APART[0], FIGURE[3], FIGURE[0], APART[1], FIGURE[5], APART[2], *FIGURE[1:3], APART[3], FIGURE[4]]
    mixed, mask = ucpg(torch.tensor(shuffled))
    assert [shuffled[i] for i in mask.nonzero()[:, 0]] == [r for r in shuffled if r in FIGURE]
    torch.testing.assert_close(mixed[mask], advantages[[FIGURE.index(r) for r in shuffled if r in FIGURE]])


def test_what_the_paper_leaves_open_is_decided() -> None:
    _, mask = ucpg([[0, 0], [1, 1], [1, 1], [0, 0]])  # equal samples all belong to the chain
    assert mask.all()
    _, mask = ucpg([[0, 0], [0.5, 0.1], [0, 0.9]])  # of two chains the one with the larger spread
    assert mask.tolist() == [True, False, True]
    _, mask = ucpg([[0, 0], [0.5, 0.25], [0.25, 0.25], [0.125, 0.5], [1, 1]])  # then the larger sum
    assert mask.tolist() == [True, True, True, False, True]
    for rewards in ([[0, 1], [0, 0], [1, 0]], [[1, 0], [0, 0], [0, 1]]):  # then the lower index, whatever the dimension
        assert ucpg(rewards)[1].tolist() == [True, True, False]
    assert not ucpg([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])[1].any()  # nothing comparable
    assert not ucpg([[0.3, 0.3]] * 5)[1].any()  # no spread
    _, mask = ucpg([[0, 0], [NAN, 1], [1, 1], [2, NAN]])
    assert mask.tolist() == [True, False, True, False]
    rewards = [[0, 0], [1, 1], [2, 0.5]]
    assert ucpg(rewards, min_length=2)[1].sum() == 2 and not ucpg(rewards, min_length=3)[1].any()
    with pytest.raises(ValueError, match="at least 2 samples"):
        ucpg(rewards, min_length=1)


def test_rounding_of_sums_does_not_break_the_order() -> None:
    tiny = 2.0**-60  # 1 + tiny == 1: the second is better, though the sums are equal
    rewards = [[1.0, tiny], [1.0, 0.0], [0.0, 0.0]]
    assert ucpg(torch.tensor(rewards, dtype=torch.float64))[1].all()
    assert not ucpg(torch.tensor(rewards[:2], dtype=torch.float64))[1].any()  # and alone that is no spread


def test_ucpg_of_a_large_group() -> None:
    rewards = np.random.default_rng(0).integers(0, 6, (600, 5)) / 5
    _, mask = ucpg(rewards)
    chain = sorted(rewards[mask.numpy()].tolist())
    assert all(a <= b for low, high in itertools.pairwise(chain) for a, b in zip(low, high, strict=True))
    # Longest paths once more, in pure Python
    rows = sorted(rewards.tolist())
    length = [1] * len(rows)
    for j, row in enumerate(rows):
        below = (length[i] for i in range(j) if all(a <= b for a, b in zip(rows[i], row, strict=True)))
        length[j] = 1 + max(below, default=0)
    assert len(chain) == max(length)


# -- z-scores -----------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(matrices(most=12))
def test_z_scores(rewards: Array) -> None:
    present = ~np.isnan(rewards).any(1)
    kept = rewards[present]
    weights = np.arange(1, rewards.shape[1] + 1) / 2
    columns = [c for c in kept.T if len(c) and np.ptp(c) > 0]
    scores = sum((w * (z(c) if len(c) and np.ptp(c) > 0 else 0 * c) for w, c in zip(weights, kept.T, strict=True)))
    cases = [
        (grpo(rewards), kept.sum(1), True),
        (weighted(rewards), kept.sum(1), True),
        (weighted(rewards, weights), kept @ weights, True),
        (gdpo(rewards, weights), scores, False),
    ]
    for (advantages, mask), values, normalised in cases:
        assert advantages.dtype == torch.float64 and mask.dtype == torch.bool
        if len(kept) < 2 or not columns or np.ptp(values) < 1e-9:
            assert not mask.any() and not advantages.any()
            continue
        assert mask.tolist() == present.tolist() and not advantages[~mask].any()
        np.testing.assert_allclose(advantages[mask], z(values) if normalised else values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", GROUPINGS)
def test_whatever_the_grouping(name: str) -> None:
    group = GROUPINGS[name]
    for rewards in ([1.0, 2.0, 4.0], np.array([1, 2, 4]), torch.tensor([[1.0], [2.0], [4.0]])):
        advantages, mask = group(rewards)
        assert mask.all() and advantages.shape == (3,)
        np.testing.assert_allclose(advantages.double(), z([1, 2, 4]), rtol=1e-6)
    assert group(torch.tensor([1.0, 2.0], dtype=torch.float64))[0].dtype == torch.float64
    assert group(torch.tensor([1.0, 2.0], dtype=torch.bfloat16))[0].dtype == torch.float32
    assert group(torch.tensor([1.0, 2.0], requires_grad=True))[0].requires_grad is False
    advantages, mask = group([[1.0, 0.0], [NAN, 3.0], [2.0, 1.0]])
    assert mask.tolist() == [True, False, True] and advantages.tolist() == pytest.approx(
        [-2, 0, 2] if name == "gdpo" else [-1, 0, 1]
    )
    for nothing in ([[1.0, 2.0]] * 4, [[NAN]] * 3, [1.0], [1.0, NAN]):  # no spread, no reward, no other to compare with
        advantages, mask = group(nothing)
        assert not mask.any() and not advantages.any() and len(mask) == len(nothing)
    for wrong, said in [
        ([1.0, INF], "infinite"),
        ([[-INF], [0.0]], "infinite"),
        ([], "G samples"),
        ([[[1.0]]], "G samp"),
    ]:
        with pytest.raises(ValueError, match=said):
            group(wrong)


@pytest.mark.parametrize("name", GROUPINGS)
def test_rounding_makes_no_advantages(name: str) -> None:
    group = GROUPINGS[name]
    thirds = [[0.1, 0.2, 0.7], [0.7, 0.2, 0.1], [0.2, 0.7, 0.1]]
    for dtype in (torch.float32, torch.float64):
        if name in ("grpo", "weighted"):
            assert not group(torch.tensor(thirds, dtype=dtype))[1].any()
        one = torch.tensor([1 / 3, 1 / 3, 1 / 3], dtype=dtype)
        one[1] = torch.nextafter(one[1], torch.tensor(1.0, dtype=dtype))
        assert not group(one)[1].any()
        assert not group(1e6 * one)[1].any()
    small = torch.tensor([1e-30, 2e-30, 4e-30])  # small is not rounding
    assert group(small)[1].all()
    np.testing.assert_allclose(group(small)[0], z([1, 2, 4]), rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["grpo", "weighted", "gdpo"]))
def test_advantages_are_equivariant_and_ignore_scale_and_shift(seed: int, name: str) -> None:
    generator = np.random.default_rng(seed)
    rewards, permutation = generator.random((7, 3)), generator.permutation(7)
    group = GROUPINGS[name]
    torch.testing.assert_close(group(rewards[permutation])[0], group(rewards)[0][permutation])
    torch.testing.assert_close(group(5 * rewards + 2)[0], group(rewards)[0])


def test_gdpo_lets_rewards_of_different_scales_count_alike() -> None:
    rewards = np.array([[0.0, 300.0], [1.0, 100.0], [1.0, 200.0], [0.0, 0.0]])
    advantages = gdpo(rewards)[0]
    np.testing.assert_allclose(advantages, z(rewards[:, 0]) + z(rewards[:, 1]))
    torch.testing.assert_close(gdpo(rewards * [100, 1])[0], advantages)
    np.testing.assert_allclose(gdpo([[0.0, 5.0], [1.0, 5.0]])[0], [-1, 1])  # a dimension without spread adds 0
    assert not gdpo([[0.0, 0.3], [1.0, 0.1], [0.5, 0.2]])[1].any()  # exact opposites cancel: nothing to learn
    assert gdpo([[0.0, 0.3], [1.0, 0.1], [0.5, 0.2]], [2.0, 1.0])[1].all()


def test_weights() -> None:
    rewards = [[0.0, 3.0], [1.0, 1.0], [2.0, 0.0]]
    np.testing.assert_allclose(weighted(rewards, [1, 0])[0], z([0, 1, 2]), rtol=1e-6)
    np.testing.assert_allclose(weighted(rewards, torch.tensor([1.0, -2.0]))[0], z([-6, -1, 2]), rtol=1e-6)
    assert not weighted(rewards, [0, 0])[1].any()
    for group in (weighted, gdpo):
        for weights in ([1.0], [1.0, NAN], [1.0, INF]):
            with pytest.raises(ValueError, match="give 2 finite numbers"):
                group(rewards, weights)
    assert math.isclose(float(weighted(rewards)[0].sum()), 0, abs_tol=1e-6)
