"""Flow steps and windows: against float64 formulas and torch's Gaussian."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from premeditate.rl.flow import DYNAMICS, compress, noised, step, window

SDE = ("flow-sde", "dance-sde", "cps")
LEVELS = [(1.0, 0.9), (0.9, 0.7), (0.5, 0.1), (0.02, 0.01), (0.3, 0.0), (1.0, 0.0)]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def published(x: Tensor, v: Tensor, sigma: float, after: float, a: float, dynamics: str) -> tuple[Tensor, float]:
    """Mean and standard deviation as the papers write them, in float64."""
    x, v, dt = x.double(), v.double(), after - sigma
    x0, x1 = x - sigma * v, x + (1 - sigma) * v
    if dynamics == "flow-sde":
        s = a * math.sqrt(sigma / (1 - (after if sigma == 1 else sigma)))
        mean = x * (1 + s**2 / (2 * sigma) * dt) + v * (1 + s**2 * (1 - sigma) / (2 * sigma)) * dt
        return mean, s * math.sqrt(-dt)
    if dynamics == "dance-sde":
        return x + (v + a**2 / 2 * (x - (1 - sigma) * x0) / sigma**2) * dt, a * math.sqrt(-dt)
    if dynamics == "cps":
        s = after * math.sin(a * math.pi / 2)
        return (1 - after) * x0 + math.sqrt(after**2 - s**2) * x1, s
    return x + v * dt, 0.0


# -- one step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize(("sigma", "after"), LEVELS)
@pytest.mark.parametrize("a", [0.0, 0.3, 0.7, 1.0])
def test_mean_and_std_are_the_published_ones(dynamics: str, sigma: float, after: float, a: float) -> None:
    x, v, noise = (draw(3, 4, 5, seed=i, dtype=torch.float64) for i in range(3))
    mean, std = published(x, v, sigma, after, a, dynamics)
    result = step(x, v, sigma, after, dynamics=dynamics, noise_level=a, noise=noise)
    assert result.mean.dtype == torch.float64 and result.mean.shape == x.shape
    assert result.std.shape == result.log_prob.shape == (3,)
    torch.testing.assert_close(result.mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.std, torch.full((3,), std, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.x_next, mean + std * noise, rtol=1e-12, atol=1e-12)
    single = step(x.float(), v.float(), sigma, after, dynamics=dynamics, noise_level=a, noise=noise.float())
    torch.testing.assert_close(single.x_next.double(), result.x_next, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize(("sigma", "after"), LEVELS)
def test_without_noise_every_step_is_the_odes(dynamics: str, sigma: float, after: float) -> None:
    x, v = draw(2, 6), draw(2, 6, seed=1)
    quiet = step(x, v, sigma, after, dynamics=dynamics, noise_level=0.0)
    assert torch.equal(quiet.x_next, step(x, v, sigma, after, dynamics="ode", noise_level=0.7).x_next)
    assert torch.equal(quiet.x_next, quiet.mean) and not quiet.std.any() and not quiet.log_prob.any()
    with_noise = step(x, v, sigma, after, dynamics=dynamics, noise_level=0.0, noise=draw(2, 6, seed=2))
    assert torch.equal(with_noise.x_next, quiet.x_next)


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize(("sigma", "after"), LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_replay_finds_the_sampled_probability(
    dynamics: str, sigma: float, after: float, dtype: torch.dtype
) -> None:  # fmt: skip
    x, v = draw(4, 16, 8).to(dtype), draw(4, 16, 8, seed=1).to(dtype)
    taken = step(x, v, sigma, after, dynamics=dynamics, noise_level=0.7, noise=draw(4, 16, 8, seed=2))
    levels = torch.full((4,), sigma), torch.full((4,), after)
    again = step(x, v, *levels, dynamics=dynamics, noise_level=0.7, x_next=taken.x_next)
    assert taken.x_next.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (taken.log_prob - again.log_prob).abs().max() < 1e-6
    assert torch.equal(again.x_next, taken.x_next)
    assert all(bool(part.isfinite().all()) for part in (*taken, *again))


@pytest.mark.parametrize("dynamics", ["flow-sde", "dance-sde"])
def test_log_prob_is_the_mean_gaussian_log_density(dynamics: str) -> None:
    x, v, after = (draw(5, 3, 4, seed=i, dtype=torch.float64) for i in range(3))
    result = step(x, v, 0.6, 0.4, dynamics=dynamics, noise_level=0.7, x_next=after)
    gaussian = torch.distributions.Normal(result.mean, result.std[:, None, None])
    torch.testing.assert_close(result.log_prob, gaussian.log_prob(after).mean((1, 2)))


def test_cps_has_the_published_log_prob_and_no_noise_in_its_last_step() -> None:
    x, v, noise = draw(3, 8), draw(3, 8, seed=1), draw(3, 8, seed=2)
    result = step(x, v, 0.6, 0.4, dynamics="cps", noise_level=0.8, noise=noise)
    torch.testing.assert_close(result.log_prob, -((result.x_next - result.mean) ** 2).mean(1))
    last = step(x, v, 0.1, 0.0, dynamics="cps", noise_level=0.8)
    assert torch.equal(last.x_next, last.mean) and not last.log_prob.any()
    torch.testing.assert_close(last.mean, x - 0.1 * v)


@pytest.mark.parametrize("a", [0.3, 0.8, 1.0])
def test_cps_keeps_the_variance_of_its_level(a: float) -> None:
    """With the true data and noise, x_next is data and noise in the proportion that sigma_next says."""
    x0, x1, fresh = (draw(1, 200_000, seed=i, dtype=torch.float64) for i in range(3))
    for sigma, after in [(1.0, 0.9), (0.9, 0.5), (0.5, 0.2)]:
        x = (1 - sigma) * x0 + sigma * x1
        made = step(x, x1 - x0, sigma, after, dynamics="cps", noise_level=a, noise=fresh).x_next
        rest = made - (1 - after) * x0
        assert rest.std().item() == pytest.approx(after, rel=0.01)
        assert (rest * x0).mean().item() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_steps_of_different_levels_fit_into_one_batch(dynamics: str) -> None:
    x, v, noise = (draw(len(LEVELS), 7, 3, seed=i) for i in range(3))
    sigma, after = torch.tensor(LEVELS).T
    together = step(x, v, sigma, after, dynamics=dynamics, noise_level=0.7, noise=noise)
    for i, (one, two) in enumerate(LEVELS):
        alone = step(x[i : i + 1], v[i : i + 1], one, two, dynamics=dynamics, noise_level=0.7, noise=noise[i : i + 1])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i : i + 1], b, rtol=1e-6, atol=1e-6)


def test_gradients_reach_the_velocity_and_the_step_before_counts() -> None:
    x, v, after = (draw(2, 3, seed=i, dtype=torch.float64) for i in range(3))
    for dynamics in SDE:
        assert torch.autograd.gradcheck(
            lambda u, d=dynamics: step(x, u, 0.7, 0.5, dynamics=d, noise_level=0.7, x_next=after)[1:3],
            v.clone().requires_grad_(),
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dynamics": "flow_sde"}, "did you mean 'flow-sde'"),
        ({"dynamics": "sde"}, "flow-sde, dance-sde, cps, ode"),
        ({"velocity": torch.zeros(2, 4)}, "velocity has shape [2, 4], x has [2, 3]"),
        ({"noise": torch.zeros(3)}, "noise has shape [3]"),
        ({"noise": None, "x_next": torch.zeros(1, 3)}, "x_next has shape [1, 3]"),
        ({"sigma": 0.5, "sigma_next": 0.5}, "sigma falls from 1 (noise) to 0 (data)"),
        ({"sigma": torch.tensor([0.5, 0.3]), "sigma_next": 0.4}, "0.3, 0.5 to 0.4"),
        ({"sigma": 1.5}, "0 <= sigma_next < sigma <= 1"),
        ({"sigma_next": -0.1}, "0 <= sigma_next < sigma <= 1"),
        ({"sigma": math.nan}, "0 <= sigma_next < sigma <= 1"),
        ({"sigma": torch.ones(3)}, "sigma has shape [3] for 2 samples"),
        ({"noise_level": -0.1}, "of at least 0"),
        ({"noise_level": math.nan}, "of at least 0"),
        ({"dynamics": "cps", "noise_level": 1.1}, "between 0 and 1"),
        ({"x_next": torch.zeros(2, 3)}, "give noise to sample a step, or x_next to replay"),
        ({"noise": None}, "give noise=torch.randn"),
        ({"x": torch.tensor(0.0)}, "one entry per sample"),
    ],
)
def test_what_cannot_be_is_said(change: dict[str, object], said: str) -> None:
    usual: dict[str, object] = {
        "x": torch.zeros(2, 3), "velocity": torch.zeros(2, 3), "sigma": 0.6, "sigma_next": 0.4,
        "dynamics": "flow-sde", "noise_level": 0.7, "noise": torch.zeros(2, 3),
    }  # fmt: skip
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is looked at below)
        step(**(usual | change))  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_noised_is_the_straight_path() -> None:
    x0, noise, sigma = draw(3, 2, 4), draw(3, 2, 4, seed=1), torch.tensor([0.0, 0.25, 1.0])
    x, target = noised(x0.bfloat16(), noise.bfloat16(), sigma)
    assert x.dtype == torch.float32
    x, target = noised(x0, noise, sigma)
    torch.testing.assert_close(x[0], x0[0])
    torch.testing.assert_close(x[1], 0.75 * x0[1] + 0.25 * noise[1])
    torch.testing.assert_close(x[2], noise[2])
    torch.testing.assert_close(target, noise - x0)
    back = step(x[1:], target[1:], sigma[1:], 0.0, dynamics="ode", noise_level=0.0).x_next
    torch.testing.assert_close(back, x0[1:])
    with pytest.raises(ValueError, match="outside 0-1"):
        noised(x0, noise, 1.1)


# -- windows ------------------------------------------------------------------------------------------------------


def test_windows() -> None:
    assert window("all", 10) == tuple(range(9))
    assert window("all", 10, last=10) == tuple(range(10))
    assert window("all", 10, first=2, last=5) == (2, 3, 4)
    assert window("fixed", 10, size=2, first=1) == (1, 2)
    assert window("fixed", 1, size=1, last=1) == (0,)
    slid = [window("sliding", 10, size=2, first=1, last=5, every=3, iteration=i)[0] for i in range(15)]
    assert slid == [1, 1, 1, 2, 2, 2] + [3] * 9


def test_random_windows_depend_on_seed_and_iteration_alone() -> None:
    def starts(seed: int) -> list[int]:
        drawn = [window("random", 10, size=3, first=1, last=8, iteration=i, seed=seed) for i in range(300)]
        assert all(w == tuple(range(w[0], w[0] + 3)) and w[0] >= 1 and w[-1] < 8 for w in drawn)
        return [w[0] for w in drawn]

    torch.manual_seed(1)
    first = starts(0)
    torch.manual_seed(2)
    assert first == starts(0) and first != starts(1) and set(first) == {1, 2, 3, 4, 5}
    assert all(30 < first.count(s) < 100 for s in range(1, 6))
    assert first[:4] == [4, 3, 4, 5]  # the same on every machine and in every version


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("slide", {}, "did you mean 'sliding'"),
        ("fixed", {}, "needs a size of 1-9, not None"),
        ("fixed", {"size": 10}, "needs a size of 1-9, not 10"),
        ("random", {"size": 0}, "needs a size of 1-9"),
        ("sliding", {"size": 4, "first": 6}, "needs a size of 1-3"),
        ("all", {"last": 11}, "give last=10 or less"),
        ("all", {"first": 9}, "give first=8 or less"),
        ("all", {"first": -1}, "give first=0"),
        ("all", {"steps": 1}, "last=1: by default the final step is left out"),
        ("all", {"steps": 0}, "at least 1"),
        ("all", {"size": 2}, 'use kind "fixed"'),
        ("sliding", {"size": 1, "every": 0}, "every is at least 1"),
        ("random", {"size": 1, "iteration": -1}, "iteration at least 0"),
    ],
)
def test_windows_that_cannot_be(kind: str, settings: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        window(kind, **({"steps": 10} | settings))  # type: ignore[arg-type]
    assert said in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_compressing_keeps_the_window_and_thins_the_rest(data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, 30))
    first = data.draw(st.integers(0, steps - 1))
    size = data.draw(st.integers(0, steps - first))
    factor = data.draw(st.floats(0.01, 1))
    chosen = tuple(range(first, first + size))
    sigmas = torch.linspace(1, 0, steps + 1) ** 1.5
    fewer, new = compress(sigmas, chosen, factor)
    levels = fewer.tolist()
    assert all(a > b for a, b in pairwise(levels)) and set(levels) <= set(sigmas.tolist())
    assert levels[0] == 1 and levels[-1] == 0
    kept = [(sigmas[i].item(), sigmas[i + 1].item()) for i in chosen]
    assert [(levels[i], levels[i + 1]) for i in new] == kept
    parts = [first, steps - first - size] if size else [steps]
    assert len(levels) - 1 == size + sum(max(1, round(factor * n)) for n in parts if n)
    if factor == 1:
        assert torch.equal(fewer, sigmas) and new == chosen


def test_compressing_chooses_evenly_and_refuses_nonsense() -> None:
    fewer, new = compress(torch.linspace(1, 0, 11), (4, 5), 0.5)
    torch.testing.assert_close(fewer, torch.tensor([1.0, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0]))
    assert new == (2, 3)
    for bad, said in [((10,), "indices are 0-9"), ((-1,), "indices are 0-9")]:
        with pytest.raises(ValueError, match=said):
            compress(torch.linspace(1, 0, 11), bad, 0.5)
    with pytest.raises(ValueError, match="1 keeps all"):
        compress(torch.linspace(1, 0, 11), (), 0.0)
