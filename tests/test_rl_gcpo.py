"""GCPO: advantages of two groups against a loop over all pairs, and the clipped objective over tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from premeditate.rl.grouping import gcpo
from premeditate.rl.losses import clipped_tokens, token_kl

NAN = float("nan")
F64 = torch.float64
Scores = list[float]
SCORE = st.one_of(st.just(NAN), st.integers(-3, 10).map(lambda k: k / 2))


@st.composite
def groups(draw: st.DrawFn) -> tuple[Scores, Scores]:
    n = draw(st.integers(1, 8))
    one = st.lists(SCORE, min_size=n, max_size=n)
    return draw(one), draw(one)


def by_hand(own: Scores, other: Scores, wins: bool) -> Scores:
    """The paper's sums with missing scores taken out first."""
    there = [x for x in other if not math.isnan(x)]
    shares = {
        j: sum((x > y) if wins else (x < y) for y in there) / len(there)
        for j, x in enumerate(own)
        if not math.isnan(x) and there
    }
    mean = sum(shares.values()) / len(shares) if shares else 0.0
    return [shares[j] - mean if j in shares else 0.0 for j in range(len(own))]


@settings(max_examples=200, deadline=None)
@given(groups())
def test_a_lost_judgement_is_one_that_wins_against_nobody(pair: tuple[Scores, Scores]) -> None:
    winners, losers = pair
    for found, own, other, wins in zip(
        gcpo(*pair, missing="lost"), pair, (losers, winners), (True, False), strict=True
    ):
        there = [y for y in other if not math.isnan(y)]
        shares = [sum((x > y) if wins else (x < y) for y in there) / max(1, len(there)) for x in own]  # NaN: never
        mean = sum(shares) / len(shares) if there else 0.0
        expected = [share - mean if there else 0.0 for share in shares]
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@settings(max_examples=300, deadline=None)
@given(groups())
def test_gcpo_is_what_all_pairs_say(pair: tuple[Scores, Scores]) -> None:
    winners, losers = pair
    found = gcpo(torch.tensor(winners, dtype=F64), torch.tensor(losers, dtype=F64))
    np.testing.assert_allclose(found[0].numpy(), by_hand(winners, losers, True), atol=1e-15)
    np.testing.assert_allclose(found[1].numpy(), by_hand(losers, winners, False), atol=1e-15)
    for advantages, scores in zip(found, pair, strict=True):
        assert abs(float(advantages.sum())) < 1e-14 and float(advantages.abs().max()) < 1
        assert all(a == 0 for a, s in zip(advantages, scores, strict=True) if math.isnan(s))


@settings(max_examples=100, deadline=None)
@given(groups())
def test_gcpo_sees_the_order_of_scores_only_and_mirrors(pair: tuple[Scores, Scores]) -> None:
    winners, losers = (torch.tensor(scores, dtype=F64) for scores in pair)
    plain = gcpo(winners, losers)
    stretched = gcpo((winners / 3).exp(), (losers / 3).exp())
    mirrored = gcpo(-losers, -winners)  # the scale turned round: who preferred now loses
    for one, two, three in zip(plain, stretched, mirrored[::-1], strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_gcpo_worked_example() -> None:
    winners, losers = gcpo([8.0, 5.0, 2.0, 5.0], [5.0, 1.0, 6.0, 2.0])
    # Of the loser's scores 8 beats 4, 5 beats 2 (the tie is no win), 2 beats 1: shares 1, 1/2, 1/4, 1/2.
    torch.testing.assert_close(winners, torch.tensor([1.0, 0.5, 0.25, 0.5]) - 0.5625)
    # Below the winner's scores: 5 is below 8; 1 below all; 6 below 8; 2 below three.
    torch.testing.assert_close(losers, torch.tensor([0.25, 1.0, 0.25, 0.75]) - 0.5625)
    assert winners.dtype == losers.dtype == torch.float32


@pytest.mark.parametrize(
    ("winners", "losers"),
    [([9, 8, 7], [1, 2, 3]), ([5, 5, 5], [5, 5, 5]), ([1, 2, 3], [7, 8, 9]), ([1, NAN], [NAN, NAN]), ([NAN], [1])],
)
def test_gcpo_has_no_gradient_where_all_judgements_fare_alike(winners: Scores, losers: Scores) -> None:
    for advantages in gcpo(winners, losers):
        assert not advantages.any()


def test_a_missing_score_neither_wins_nor_loses() -> None:
    winners, losers = gcpo([7.0, NAN, 3.0], [5.0, NAN, 1.0])
    less = gcpo([7.0, 3.0], [5.0, 1.0])
    assert winners.tolist() == [float(less[0][0]), 0.0, float(less[0][1])]
    assert losers.tolist() == [float(less[1][0]), 0.0, float(less[1][1])]


@pytest.mark.parametrize(
    ("winners", "losers", "said"),
    [
        ([1.0, 2.0], [1.0], "2 winner_scores and 1 loser_scores"),
        ([], [], r"winner_scores have shape \[0\]"),
        ([[1.0]], [[1.0]], r"shape \[1, 1\]"),
        ([1.0], [math.inf], "loser_scores hold an infinite"),
    ],
)
def test_gcpo_refuses(winners: Scores, losers: Scores, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        gcpo(winners, losers)


def test_gcpo_refuses_a_word_for_missing_scores_that_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="missing is 'loss'; use one of: left out, lost"):
        gcpo([1.0], [0.0], missing="loss")  # type: ignore[arg-type]


# -- tokens -------------------------------------------------------------------------------------------------------

N, T, E = 4, 6, 0.2
LENGTHS = torch.tensor([6, 1, 3, 5])
MASK = torch.arange(T)[None] < LENGTHS[:, None]
ADVANTAGES = torch.tensor([0.75, -0.5, 0.0, -1.25], dtype=F64)


def draw(seed: int) -> Tensor:
    return -torch.rand(N, T, generator=torch.Generator().manual_seed(seed), dtype=F64)


def by_loops(log_probs: Tensor, old: Tensor) -> list[float]:
    rows = []
    for n in range(N):
        total = 0.0
        for t in range(int(LENGTHS[n])):
            ratio, a = math.exp(float(log_probs[n, t] - old[n, t])), float(ADVANTAGES[n])
            total += min(ratio * a, min(max(ratio, 1 - E), 1 + E) * a)
        rows.append(-total / int(LENGTHS[n]))
    return rows


def test_the_token_objective_is_its_formula() -> None:
    new, old = draw(1), draw(2)
    loss = clipped_tokens(new, old, ADVANTAGES, MASK, clip_range=E)
    np.testing.assert_allclose(loss.values.numpy(), by_loops(new, old), rtol=1e-13)
    ratios = (new - old).exp()
    for n in range(N):
        part, a = ratios[n, : LENGTHS[n]], ADVANTAGES[n]
        torch.testing.assert_close(loss.metrics["ratio"][n], part.mean())
        cut = ((part > 1 + E) & (a > 0)) | ((part < 1 - E) & (a < 0))
        assert float(loss.metrics["clip_share"][n]) == pytest.approx(float(cut.double().mean()))
        torch.testing.assert_close(loss.metrics["approx_kl"][n], (part - 1 - part.log()).mean())
    torch.testing.assert_close(loss.metrics["ratio_std"], ratios[MASK].std(correction=0))


def test_gradients_are_right_and_padding_has_none() -> None:
    new = draw(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: clipped_tokens(x, draw(2), ADVANTAGES, MASK, clip_range=E).values, (new,))
    assert torch.autograd.gradcheck(lambda x: token_kl(x, draw(3), MASK), (new,))
    dirty = torch.where(MASK, draw(1), NAN).requires_grad_()
    old = torch.where(MASK, draw(2), -math.inf)
    (clipped_tokens(dirty, old, ADVANTAGES, MASK, clip_range=E).values + token_kl(dirty, old, MASK)).sum().backward()
    assert dirty.grad is not None and bool(dirty.grad.isfinite().all())
    assert not dirty.grad[~MASK].any()
    assert dirty.grad[0].any()


def test_on_policy_the_loss_is_minus_the_advantage_for_every_length() -> None:
    x = draw(1).requires_grad_()
    loss = clipped_tokens(x, x.detach(), ADVANTAGES, MASK, clip_range=E)
    torch.testing.assert_close(loss.values, -ADVANTAGES)
    loss.values.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.where(MASK, -ADVANTAGES[:, None] / LENGTHS[:, None], 0.0))
    assert not token_kl(x, x.detach(), MASK).any()
    assert not loss.metrics["clip_share"].any() and float(loss.metrics["ratio_std"]) == 0


def test_low_precision_is_cast_up_and_a_mask_of_numbers_will_do() -> None:
    new, old = draw(1).bfloat16(), draw(2).bfloat16()
    found = clipped_tokens(new, old, ADVANTAGES.float(), MASK.long(), clip_range=E).values
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), by_loops(new.double(), old.double()), rtol=1e-5)


def test_token_kl_averages_to_the_true_one() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(5, generator=generator, dtype=F64).log_softmax(0) for _ in range(2))
    exact = float((policy.exp() * (policy - reference)).sum())
    # Every token once, weighted by the policy, is the expectation.
    each = token_kl(policy[:, None], reference[:, None], torch.ones(5, 1))
    assert float((policy.exp() * each).sum()) == pytest.approx(exact) and bool((each >= 0).all())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mask": torch.zeros(N, T)}, "no tokens that count"),
        ({"mask": MASK[:, :3]}, "mask has shape"),
        ({"old_log_probs": draw(2)[:2]}, "old_log_probs has shape"),
        ({"advantages": ADVANTAGES[:2]}, "advantages has shape"),
        ({"log_probs": draw(1)[0], "old_log_probs": draw(1)[0], "mask": MASK[0]}, "log_probs has shape"),
    ],
)
def test_tokens_refuse(change: dict[str, Tensor], said: str) -> None:
    given = {"log_probs": draw(1), "old_log_probs": draw(2), "advantages": ADVANTAGES, "mask": MASK, **change}
    with pytest.raises(ValueError, match=said):
        clipped_tokens(**given, clip_range=E)
    with pytest.raises(ValueError, match="clip range"):
        clipped_tokens(draw(1), draw(2), ADVANTAGES, MASK, clip_range=0.0)


def test_a_judge_learns_to_tell_the_two_apart() -> None:
    """A judge that writes one of ten scores for each picture, trained by both functions together."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(2, 10, requires_grad=True)  # of the preferred picture, of the other
    optimiser = torch.optim.Adam([logits], lr=0.1)
    n = 32
    for _ in range(40):
        log_p = logits.log_softmax(1)
        scores = torch.multinomial(log_p.detach().exp(), n, replacement=True, generator=generator)
        advantages = torch.cat(gcpo(scores[0], scores[1]))
        taken = log_p.gather(1, scores).reshape(2 * n, 1)
        loss = clipped_tokens(taken, taken.detach(), advantages, torch.ones(2 * n, 1), clip_range=E).values.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    p = logits.detach().softmax(1)
    above = float((p[0][:, None] * p[1][None] * torch.ones(10, 10).tril(-1)).sum())
    assert above > 0.9  # 0.45 untrained
