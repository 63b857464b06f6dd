"""Losses of flow policies: against their formulas in float64, finite differences, and what they are for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from premeditate.rl.flow import step
from premeditate.rl.losses import (
    awm,
    clipped,
    dpo,
    flow_grpo,
    gaussian_kl,
    grpo_guard,
    nft,
    pairs,
    published_kl,
    velocity_kl,
)

F64 = torch.float64
ADVANTAGES = torch.tensor([1.3, -0.7, 0.0, 0.4, -2.1], dtype=F64)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


V, OLD, TARGET, X = (draw(5, 3, 4, seed=i) for i in range(4))
SIGMA = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1], dtype=F64)
AFTER = SIGMA - 0.05


def surrogate(ratio: Tensor, advantages: Tensor, e: float) -> Tensor:
    """Row by row, as the paper's min() of the gain."""
    rows = [
        -min(float(a * r), float(a * min(max(r, 1 - e), 1 + e)))
        for r, a in zip(ratio.detach(), advantages, strict=True)
    ]
    return torch.tensor(rows, dtype=ratio.dtype)


# -- every loss, against its formula and against finite differences ----------------------------------------------------


def flow_grpo_case(log_prob: Tensor) -> Tensor:
    return flow_grpo(log_prob, OLD[:, 0, 0], ADVANTAGES, clip_range=0.3).values


def guard_case(dynamics: str, dt: Tensor | None) -> Callable[[Tensor], Tensor]:
    def case(velocity: Tensor) -> Tensor:
        now, then = replayed(velocity, dynamics), replayed(OLD, dynamics)
        return grpo_guard(now.log_prob, then.log_prob, now.mean, then.mean, now.std, ADVANTAGES, clip_range=0.05,
                          dt=dt, dynamics=dynamics).values  # fmt: skip

    return case


def replayed(velocity: Tensor, dynamics: str = "flow-sde") -> Any:
    return step(X, velocity, SIGMA, AFTER, dynamics=dynamics, noise_level=0.7, x_next=TARGET)


def dpo_case(errors: Tensor) -> Tensor:
    return dpo(errors[0], errors[1], OLD[:, 0, 0], OLD[:, 0, 1], beta=2.5).values


GRADIENTS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "flow-grpo": (flow_grpo_case, OLD[:, 0, 0] + torch.tensor([0.4, 0.1, 0.2, -0.5, -0.2])),
    "guard": (guard_case("flow-sde", None), OLD + 0.1 * V),
    "guard, reweighted": (guard_case("dance-sde", AFTER - SIGMA), OLD + 0.1 * V),
    "guard, cps": (guard_case("cps", None), OLD + 0.1 * V),
    "nft": (lambda v: nft(v, OLD, TARGET, ADVANTAGES, beta=0.6, clip=1.5).values, V),
    "awm": (lambda v: awm(v, OLD, TARGET, ADVANTAGES, clip_range=0.5).values, OLD + 0.1 * V),
    "awm, ghuber": (
        lambda v: awm(v, OLD, TARGET, ADVANTAGES, clip_range=0.5, power=0.25, weight=SIGMA).values,
        OLD + 0.1 * V,
    ),
    "dpo": (dpo_case, V[:2, :, 0].repeat(1, 2)[:, :5]),
    "exact kl": (lambda v: gaussian_kl(v, OLD, SIGMA), V),
    "published kl": (lambda v: published_kl(v, OLD, SIGMA, AFTER - SIGMA), V),
    "velocity kl": (lambda v: velocity_kl(v, OLD), V),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    loss, at = GRADIENTS[name]
    values = loss(at)
    assert values.shape == (5,) and values.dtype == F64 and bool(values.isfinite().all())
    assert torch.autograd.gradcheck(loss, at.clone().requires_grad_())


def test_flow_grpo_is_its_formula() -> None:
    log_prob, old = V[:, 0, 0], OLD[:, 0, 0]
    ratio = (log_prob - old).exp()
    found = flow_grpo(log_prob, old, ADVANTAGES, clip_range=0.3)
    torch.testing.assert_close(found.values, surrogate(ratio, ADVANTAGES, 0.3))
    torch.testing.assert_close(found.metrics["ratio"], ratio)
    torch.testing.assert_close(found.metrics["ratio_std"], ratio.std(correction=0))
    torch.testing.assert_close(found.metrics["approx_kl"], ratio - 1 - ratio.log())


@pytest.mark.parametrize("dynamics", ["flow-sde", "dance-sde", "cps"])
@pytest.mark.parametrize("reweighted", [False, True])
def test_grpo_guard_is_its_formula(dynamics: str, reweighted: bool) -> None:
    now, then, dt = replayed(V, dynamics), replayed(OLD, dynamics), AFTER - SIGMA
    # The noise that leads from the old mean to the step that was taken
    noise = (TARGET - then.mean) / then.std[:, None, None]
    ratio = (noise * (now.mean - then.mean)).mean((1, 2)).exp()
    if dynamics != "cps":  # as printed
        moved = ((now.mean - then.mean) ** 2).mean((1, 2))
        printed = (now.log_prob - then.log_prob) * now.std + moved / (2 * now.std)
        torch.testing.assert_close(printed.exp(), ratio)
    found = grpo_guard(now.log_prob, then.log_prob, now.mean, then.mean, now.std, ADVANTAGES, clip_range=0.05,
                       dt=dt if reweighted else None, dynamics=dynamics)  # fmt: skip
    expected = surrogate(ratio, ADVANTAGES, 0.05)
    torch.testing.assert_close(found.values, expected / -dt if reweighted else expected)
    torch.testing.assert_close(found.metrics["ratio"], ratio)


@pytest.mark.parametrize("beta", [0.3, 1.0])
@pytest.mark.parametrize("clip", [1.0, 5.0])
def test_nft_is_its_formula(beta: float, clip: float) -> None:
    found = nft(V, OLD, TARGET, ADVANTAGES, beta=beta, clip=clip)
    for i, advantage in enumerate(ADVANTAGES.tolist()):
        r = 0.5 + 0.5 * min(max(advantage / clip, -1), 1)
        plus, minus = (1 - beta) * OLD[i] + beta * V[i], (1 + beta) * OLD[i] - beta * V[i]
        expected = r * ((plus - TARGET[i]) ** 2).mean() + (1 - r) * ((minus - TARGET[i]) ** 2).mean()
        torch.testing.assert_close(found.values[i], expected)
        assert found.metrics["goodness"][i].item() == pytest.approx(r)
    torch.testing.assert_close(found.metrics["old_distance"], ((V - OLD) ** 2).mean((1, 2)))


def test_adaptive_nft_is_its_formula_and_its_weights_carry_no_gradient() -> None:
    v = V.clone().requires_grad_()
    found = nft(v, OLD, TARGET, ADVANTAGES, beta=0.6, clip=1.5, adaptive=(X, SIGMA))
    weights = []
    for i, advantage in enumerate(ADVANTAGES.tolist()):
        r, x0 = 0.5 + 0.5 * min(max(advantage / 1.5, -1), 1), X[i] - SIGMA[i] * TARGET[i]
        value = 0.0
        for share, mixed in ((r, 0.4 * OLD[i] + 0.6 * V[i]), (1 - r, 1.6 * OLD[i] - 0.6 * V[i])):
            guess = X[i] - SIGMA[i] * mixed
            weights.append((guess - x0).abs().mean())
            value += share * ((guess - x0) ** 2).mean() / weights[-1]
        torch.testing.assert_close(found.values[i], torch.as_tensor(value, dtype=F64))
    # The gradient with the weights held
    found.values.sum().backward()
    u = V.clone().requires_grad_()
    r, scale = found.metrics["goodness"], SIGMA**2
    good, bad = torch.stack(weights).reshape(5, 2).T
    held = r / good * scale * ((0.4 * OLD + 0.6 * u - TARGET) ** 2).mean((1, 2))
    held = held + (1 - r) / bad * scale * ((1.6 * OLD - 0.6 * u - TARGET) ** 2).mean((1, 2))
    held.sum().backward()
    torch.testing.assert_close(v.grad, u.grad)
    perfect = nft(TARGET, TARGET, TARGET, ADVANTAGES, beta=1.0, adaptive=(X, 0.5))  # no division by 0
    assert not perfect.values.any()


@pytest.mark.parametrize(("power", "weight"), [(1.0, 1.0), (1.0, 0.3), (0.25, 0.8)])
def test_awm_is_its_formula(power: float, weight: float) -> None:
    def surrogate_log_prob(v: Tensor) -> Tensor:
        error = ((v - TARGET) ** 2).mean((1, 2))
        if power == 1:
            return -weight * error
        return -weight / power * ((error + 1e-10) ** power - 1e-10**power)

    ratio = (surrogate_log_prob(V) - surrogate_log_prob(OLD)).exp()
    found = awm(V, OLD, TARGET, ADVANTAGES, clip_range=0.2, power=power, weight=weight)
    torch.testing.assert_close(found.values, surrogate(ratio, ADVANTAGES, 0.2))
    torch.testing.assert_close(found.metrics["error"], ((V - TARGET) ** 2).mean((1, 2)))


def test_dpo_is_its_formula() -> None:
    w, l, ref_w, ref_l = (V[:, 0, k] ** 2 for k in range(4))  # noqa: E741
    inner = -2.5 / 2 * ((w - ref_w) - (l - ref_l))
    found = dpo(w, l, ref_w, ref_l, beta=2.5)
    torch.testing.assert_close(found.values, -(1 / (1 + (-inner).exp())).log())
    torch.testing.assert_close(found.metrics["margin"], inner)
    assert found.metrics["accuracy"].tolist() == [float(m > 0) for m in inner]
    torch.testing.assert_close(dpo(w, l, w, l, beta=2.5).values, torch.full((5,), math.log(2), dtype=F64))
    assert dpo(w + 1e6, l, ref_w, ref_l, beta=1e3).values.isfinite().all()


# -- what they are for -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamics", ["flow-sde", "dance-sde", "cps"])
@pytest.mark.parametrize("guard", [False, True])
def test_the_first_update_has_ratio_one_and_the_policy_gradient(dynamics: str, guard: bool) -> None:
    x, v, noise = (t.float() for t in (X, V, TARGET))
    sampled = step(x, v, SIGMA, AFTER, dynamics=dynamics, noise_level=0.7, noise=noise)
    u = v.clone().requires_grad_()
    now = step(x, u, SIGMA, AFTER, dynamics=dynamics, noise_level=0.7, x_next=sampled.x_next)
    if guard:
        found = grpo_guard(now.log_prob, sampled.log_prob, now.mean, sampled.mean, now.std, ADVANTAGES, clip_range=1e-6,
                           dynamics=dynamics)  # fmt: skip
        scale = (1 / (2 * now.std) if dynamics == "cps" else now.std).detach()
    else:
        found = flow_grpo(now.log_prob, sampled.log_prob, ADVANTAGES, clip_range=1e-6)
        scale = torch.ones(5)
    assert (found.metrics["ratio"] == 1).all() and not found.metrics["clip_share"].any()
    torch.testing.assert_close(found.values, -ADVANTAGES)
    (gradient,) = torch.autograd.grad(found.values.sum(), u, retain_graph=True)
    (expected,) = torch.autograd.grad((-ADVANTAGES * scale * now.log_prob).sum(), u)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient", "cut"),
    [
        (1.2, 1.0, 0.0, 1),  # a good sample that is likely enough already
        (1.2, -1.0, 1.2, 0),
        (0.8, 1.0, -0.8, 0),
        (0.8, -1.0, 0.0, 1),  # a bad one that is unlikely enough already
        (1.05, 1.0, -1.05, 0),
        (0.95, -1.0, 0.95, 0),
        (1.2, 0.0, 0.0, 0),
    ],
)
def test_clipping_takes_the_gradient_on_both_sides(ratio: float, advantage: float, gradient: float, cut: int) -> None:
    log_ratio = torch.tensor([math.log(ratio)], dtype=F64, requires_grad=True)
    found = clipped(log_ratio, torch.tensor([advantage], dtype=F64), 0.1)
    found.values.sum().backward()
    assert log_ratio.grad is not None and log_ratio.grad.item() == pytest.approx(gradient)
    assert found.metrics["clip_share"].tolist() == [cut]


def test_the_guards_ratio_is_centred_and_the_plain_one_is_not() -> None:
    x, v = draw(1, 16).expand(4000, 16), draw(1, 16, seed=1).expand(4000, 16)
    noise = draw(4000, 16, seed=2)
    means: dict[float, tuple[float, float]] = {}
    for sigma in (0.9, 0.5, 0.2):
        old = step(x, v, sigma, sigma - 0.1, dynamics="flow-sde", noise_level=0.7, noise=noise)
        now = step(x, v + 0.5, sigma, sigma - 0.1, dynamics="flow-sde", noise_level=0.7, x_next=old.x_next)
        guarded = grpo_guard(now.log_prob, old.log_prob, now.mean, old.mean, now.std, torch.ones(4000), clip_range=0.1)
        plain = flow_grpo(now.log_prob, old.log_prob, torch.ones(4000), clip_range=0.1)
        means[sigma] = guarded.metrics["ratio"].log().mean().item(), plain.metrics["ratio"].log().mean().item()
        expected = gaussian_kl(now.mean[:1], old.mean[:1], now.std[:1]).item()
        assert means[sigma][1] == pytest.approx(-expected, rel=0.2)
        assert abs(means[sigma][0]) < 0.002
    assert all(abs(guarded) < abs(plain) / 5 for guarded, plain in means.values())


def test_kl_divergences() -> None:
    now, frozen = replayed(V), replayed(OLD)
    gaussians = [torch.distributions.Normal(r.mean, r.std[:, None, None]) for r in (now, frozen)]
    exact = torch.distributions.kl_divergence(*gaussians).mean((1, 2))
    torch.testing.assert_close(gaussian_kl(now.mean, frozen.mean, now.std), exact)
    s = 0.7 * (SIGMA / (1 - SIGMA)).sqrt()
    squared = ((V - OLD) ** 2).mean((1, 2))
    torch.testing.assert_close(velocity_kl(V, OLD), squared)
    torch.testing.assert_close(exact, 0.05 / 2 * (1 / s + s * (1 - SIGMA) / (2 * SIGMA)) ** 2 * squared)
    code = ((now.mean - frozen.mean) ** 2).mean((1, 2)) / (2 * s**2)
    torch.testing.assert_close(published_kl(now.mean, frozen.mean, now.std, AFTER - SIGMA), code)
    torch.testing.assert_close(code, exact * 0.05)
    assert gaussian_kl(now.mean, frozen.mean, 0.0).tolist() == [0] * 5
    last = torch.tensor([0.0, 0.1], dtype=F64)
    u = V[:2].clone().requires_grad_()
    gaussian_kl(u, OLD[:2], last).sum().backward()
    assert u.grad is not None and u.grad.isfinite().all() and not u.grad[0].any() and u.grad[1].any()


def test_nft_moves_towards_good_samples_and_away_from_bad_ones() -> None:
    v = OLD.clone().requires_grad_()
    found = nft(v, OLD, TARGET, ADVANTAGES, beta=0.7, clip=2.0)
    found.values.sum().backward()
    usual = 2 * (OLD - TARGET) / OLD[0].numel()
    weight = 0.7 * (ADVANTAGES / 2).clamp(-1, 1)
    torch.testing.assert_close(v.grad, weight[:, None, None] * usual)


def test_old_policies_targets_and_advantages_get_no_gradient() -> None:
    old, target, advantages = (t.clone().requires_grad_() for t in (OLD, TARGET, ADVANTAGES))
    v = V.clone().requires_grad_()
    total = nft(v, old, target, advantages, beta=1.0).values.sum()
    total = total + awm(v, old, target, advantages, clip_range=9.0).values.sum()
    total = total + flow_grpo(v[:, 0, 0], old[:, 0, 0], advantages, clip_range=9.0).values.sum()
    total.backward()
    assert v.grad is not None and old.grad is target.grad is advantages.grad is None


def test_half_precision_is_cast_up() -> None:
    v, old, target = (t.bfloat16() for t in (V, OLD, TARGET))
    for values in (
        nft(v, old, target, ADVANTAGES.float(), beta=1.0).values,
        awm(v, old, target, ADVANTAGES.float(), clip_range=0.1).values,
        velocity_kl(v, old),
        gaussian_kl(v, old, 0.3),
    ):
        assert values.dtype == torch.float32
    torch.testing.assert_close(velocity_kl(v, old), ((v.float() - old.float()) ** 2).mean((1, 2)))


def test_a_step_without_noise_adds_nothing() -> None:
    now = step(X, V, SIGMA, AFTER, dynamics="ode", noise_level=0.0, x_next=TARGET)
    found = grpo_guard(now.log_prob, now.log_prob, now.mean, OLD, now.std, ADVANTAGES, clip_range=0.1)
    assert (found.metrics["ratio"] == 1).all()


def test_pairs_are_the_best_and_the_worst() -> None:
    nan = math.nan
    rewards = torch.tensor([[0.1, 0.9, 0.5], [1.0, 1.0, 1.0], [nan, 0.2, 0.4], [nan, nan, 0.3], [0.2, 0.7, 0.7]])
    assert pairs(rewards).tolist() == [[1, 0], [8, 7], [13, 12]]
    assert pairs([3.0, 1.0, 2.0]).tolist() == [[0, 1]]
    assert pairs([nan, nan]).shape == (0, 2)
    with pytest.raises(ValueError, match="NaN where missing"):
        pairs([1.0, math.inf])


def test_what_cannot_be_is_said() -> None:
    one, two = torch.zeros(2), torch.zeros(3)
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: flow_grpo(one, one, two, clip_range=0.1), "advantages has shape [3], log_prob has [2]"),
        (lambda: flow_grpo(one, one, one, clip_range=0.0), "give a positive one"),
        (lambda: grpo_guard(one, one, V, OLD[:3], 0.1, one, clip_range=0.1), "old_mean has shape [3, 3, 4]"),
        (lambda: grpo_guard(one, one, V[:2], OLD[:2], two, one, clip_range=0.1), "std has shape [3] for 2 samples"),
        (lambda: grpo_guard(one, one, V[:2], OLD[:2], 0.1, one, clip_range=0.1, dt=0.1), "dt is not negative"),
        (lambda: published_kl(V, OLD, 0.1, 0.0), "dt is not negative"),
        (lambda: nft(V, OLD, TARGET, one, beta=1.0), "advantages has shape [2] for 5 samples"),
        (lambda: nft(V, OLD, TARGET[:2], ADVANTAGES, beta=1.0), "target has shape [2, 3, 4]"),
        (lambda: nft(V, OLD, TARGET, ADVANTAGES, beta=0.0), "beta=1, clip=5"),
        (lambda: nft(V, OLD, TARGET, ADVANTAGES, beta=1.0, adaptive=(X[:1], 0.5)), "x has shape [1, 3, 4]"),
        (lambda: awm(V, OLD, TARGET, ADVANTAGES, clip_range=0.1, power=2.0), "in (0, 1]"),
        (lambda: dpo(one, one, one, one, beta=-1.0), "beta=-1"),
        (lambda: dpo(one, two, one, one, beta=1.0), "loser_error has shape [3]"),
    ]
    for call, said in cases:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            call()
        assert said in str(caught.value)
