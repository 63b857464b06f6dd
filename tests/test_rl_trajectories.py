"""Sampling flow models: solvers against a solved ODE and diffusers, windows and prefixes against sampling by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from premeditate.rl.flow import sample, step

SDE = ("flow-sde", "dance-sde", "cps")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


MEAN, SPREAD = 0.7, 0.4


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x1 - x0 | x] for data that is N(MEAN, SPREAD^2). Its ODE takes x at sigma = 1 to MEAN + SPREAD x."""
    level = sigma.reshape(-1, *[1] * (x.ndim - 1)).to(x)
    centred = (x - (1 - level) * MEAN) / ((1 - level) ** 2 * SPREAD**2 + level**2)
    return level * centred - (MEAN + (1 - level) * SPREAD**2 * centred)


def error(solver: str, sigmas: Tensor) -> float:
    """The largest error at the last level of `sigmas`, from the exact solution at the first."""
    z = draw(1, 64, dtype=torch.float64)
    first, last = ((1 - s) * MEAN + ((1 - s) ** 2 * SPREAD**2 + s**2).sqrt() * z for s in sigmas[[0, -1]])
    return (sample(gaussian, first, sigmas, solver=solver).x - last).abs().max().item()


def even(steps: int) -> Tensor:
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def shifted(steps: int) -> Tensor:
    return 3 * even(steps) / (1 + 2 * even(steps))


def even_log_snr(steps: int) -> Tensor:
    return torch.sigmoid(torch.linspace(4, -4, steps + 1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("solver", "grid", "order"),
    [
        ("euler", even, 1),
        ("euler", shifted, 1),
        ("ab2", even, 2),
        ("ab2", even_log_snr, 2),
        ("dpm2m", even_log_snr, 2),
        ("dpm2m", even, 1.8),  # log-SNR is infinite at both ends
    ],
)
def test_the_solvers_have_their_order(solver: str, grid: Callable[[int], Tensor], order: float) -> None:
    errors = [error(solver, grid(n)) for n in (160, 320, 640)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes == pytest.approx([order, order], abs=0.1), errors


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("dpm2m", 2)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_dpm2m_is_that_of_diffusers(solver: str, order: int, shift: float) -> None:
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=order,
        algorithm_type="dpmsolver++", final_sigmas_type="zero",
    )  # fmt: skip
    scheduler.set_timesteps(12)
    x = theirs = draw(1, 64, dtype=torch.float64)
    for i, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(gaussian(theirs, scheduler.sigmas[i : i + 1]), t, theirs).prev_sample
    ours = sample(gaussian, x, scheduler.sigmas, solver=solver).x
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # their levels are float32


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_ode_is_that_of_diffusers(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(10)
    x = theirs = draw(2, 7, 3)
    for sigma, t in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
        theirs = scheduler.step(gaussian(theirs, sigma), t, theirs).prev_sample
    torch.testing.assert_close(sample(gaussian, x, scheduler.sigmas).x, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [10, 20])
def test_higher_order_is_worth_it_at_usual_step_counts(steps: int) -> None:
    assert error("ab2", even(steps)) < error("euler", even(steps)) / 4
    assert error("dpm2m", even(steps)) < error("euler", even(steps)) / 4


def test_the_window_alone_is_stochastic_and_recorded() -> None:
    sigmas, x = torch.linspace(1, 0, 11), draw(4, 5, 3)
    asked: list[int] = []

    def noise(index: int) -> Tensor:
        asked.append(index)
        return draw(4, 5, 3, seed=100 + index)

    done = sample(gaussian, x, sigmas, window=(3, 4), dynamics="flow-sde", noise_level=0.7, noise=noise)
    assert asked == [3, 4] and done.forwards == 40
    assert done.states.shape == done.nexts.shape == done.means.shape == (4, 2, 5, 3)
    torch.testing.assert_close(done.sigmas, sigmas[[3, 4]])
    torch.testing.assert_close(done.sigmas_next, sigmas[[4, 5]])
    by_hand = x
    for i in range(10):
        here = torch.full((4,), float(sigmas[i]))
        v, sde = gaussian(by_hand, here), i in (3, 4)
        result = step(by_hand, v, float(sigmas[i]), float(sigmas[i + 1]), dynamics="flow-sde" if sde else "ode",
                      noise_level=0.7, noise=draw(4, 5, 3, seed=100 + i) if sde else None)  # fmt: skip
        if sde:
            assert torch.equal(done.states[:, i - 3], by_hand) and torch.equal(done.nexts[:, i - 3], result.x_next)
            assert torch.equal(done.means[:, i - 3], result.mean) and done.stds[i - 3] == result.std[0]
            assert torch.equal(done.log_probs[:, i - 3], result.log_prob)
        by_hand = result.x_next
    torch.testing.assert_close(done.x, by_hand)


@pytest.mark.parametrize("dynamics", SDE)
def test_all_recorded_steps_replay_in_one_batch(dynamics: str) -> None:
    done = sample(gaussian, draw(4, 5, 3), torch.linspace(1, 0, 9), window=range(8), dynamics=dynamics,
                  noise_level=0.7, noise=lambda i: draw(4, 5, 3, seed=i))  # fmt: skip
    x, after = done.states.flatten(0, 1), done.nexts.flatten(0, 1)
    sigma, sigma_next = done.sigmas.repeat(4), done.sigmas_next.repeat(4)
    again = step(x, gaussian(x, sigma), sigma, sigma_next, dynamics=dynamics, noise_level=0.7, x_next=after)
    assert (again.log_prob - done.log_probs.flatten()).abs().max() < 1e-6
    torch.testing.assert_close(again.mean, done.means.flatten(0, 1))
    torch.testing.assert_close(again.std, done.stds.repeat(4))


@pytest.mark.parametrize("dynamics", ["flow-sde", "dance-sde"])
def test_the_sde_has_the_marginals_of_the_ode(dynamics: str) -> None:
    """Why the drift is corrected: with small steps the noisy sampler draws from the same distribution."""
    x = draw(1, 40_000)
    done = sample(gaussian, x, torch.linspace(1, 0, 101), window=range(1, 99), dynamics=dynamics, noise_level=0.5,
                  noise=lambda i: draw(1, 40_000, seed=i + 1))  # fmt: skip
    assert done.x.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert done.x.std().item() == pytest.approx(SPREAD, abs=0.02)
    assert (done.x * x).mean().item() < 0.7 * SPREAD  # and it has forgotten part of its first noise


@pytest.mark.parametrize("solver", ["euler", "ab2", "dpm2m"])
@pytest.mark.parametrize("chosen", [(), (0, 1), (4, 5), (8,)])
def test_a_shared_prefix_gives_the_same_samples_for_less(solver: str, chosen: tuple[int, ...]) -> None:
    x, calls = draw(2, 4, 3).repeat_interleave(3, 0), []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (len(x),)
        calls.append(len(x))
        return gaussian(x, sigma)

    def run(group: int):  # type: ignore[no-untyped-def]
        return sample(model, x, torch.linspace(1, 0, 10), window=chosen, dynamics="flow-sde", noise_level=0.7,
                      noise=lambda i: draw(6, 4, 3, seed=i), solver=solver, group=group)  # fmt: skip

    apart = run(1)
    calls.clear()
    shared = run(3)
    prefix = chosen[0] if chosen else 9
    assert calls == [2] * prefix + [6] * (9 - prefix) and shared.forwards == sum(calls)
    for name in ("x", "states", "nexts", "means", "log_probs"):
        torch.testing.assert_close(getattr(shared, name), getattr(apart, name), rtol=1e-6, atol=1e-6)
    if chosen:
        assert not torch.equal(shared.x[0], shared.x[1])


def test_trajectories_carry_no_gradient_and_are_float32_for_a_bfloat16_model() -> None:
    model = torch.nn.Linear(3, 3).bfloat16()
    done = sample(lambda x, s: model(x.bfloat16()), draw(2, 3).bfloat16(), torch.linspace(1, 0, 4), window=(1,),
                  dynamics="cps", noise_level=0.5, noise=lambda i: draw(2, 3))  # fmt: skip
    assert not done.x.requires_grad
    assert {t.dtype for t in (done.x, done.states, done.nexts, done.means, done.log_probs)} == {torch.float32}
    plain = sample(gaussian, draw(2, 3), torch.linspace(1, 0, 4))
    assert plain.states.shape == (2, 0, 3) and plain.log_probs.shape == (2, 0) and plain.stds.shape == (0,)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"group": 2}, "differ in their first noise"),
        ({"group": 3}, "no whole groups of 3"),
        ({"window": (9,)}, "indices are 0-4"),
        ({"solver": "ab3"}, "did you mean 'ab2'"),
        ({"dynamics": "flowsde"}, "did you mean 'flow-sde'"),
        ({"noise": None}, "need noise"),
        ({"sigmas": [1.0]}, "T+1"),
        ({"sigmas": [0.0, 0.5, 1.0]}, "fall from 1"),
        ({"sigmas": [1000.0, 500.0, 0.0]}, "fall from 1"),
        ({"velocity": lambda x, s: x[:, :1]}, "velocity has shape [4, 1]"),
    ],
)
def test_trajectories_that_cannot_be(change: dict[str, object], said: str) -> None:
    usual: dict[str, object] = {
        "velocity": gaussian, "x": draw(4, 3), "sigmas": torch.linspace(1, 0, 6), "window": (1,),
        "dynamics": "flow-sde", "noise_level": 0.7, "noise": lambda i: draw(4, 3),
    }  # fmt: skip
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        sample(**(usual | change))  # type: ignore[arg-type]
    assert said in str(caught.value)
