"""Group contrastive preference optimisation: rewards across the two groups of a pair, advantages inside each.

    r_j^w = 1/N sum_k 1{tau_j^w > tau_k^l},     r_j^l = 1/N sum_k 1{tau_j^l < tau_k^w}
    A_j   = r_j - mean of r over the own group

Edit-R1 (arXiv 2604.27505, GCPO). tau: the scores of N sampled judgements of a preferred edit (w) and of N of the other
(l). A tie is no win. There is no standard deviation: where every judgement wins alike (all of them once the judge tells
the two apart, none where it gives equal scores) all advantages are 0.

Missing scores are NaN. They win against nobody and nobody wins against them: the denominators are the judgements that
have a score, the share r that of the other group's, the mean that of the own. So what is left of a pair is treated like
a smaller pair, and a judgement that was not read costs the others nothing.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

Missing = Literal["left out", "lost"]


def gcpo(winner_scores: Any, loser_scores: Any, *, missing: Missing = "left out") -> tuple[Tensor, Tensor]:
    """(winner_advantages [N], loser_advantages [N]), each in (-1, 1), from one pair's scores [N] and [N], NaN where one
    is missing; anything that torch reads as tensors.

    The advantage of a missing score is 0, and all are 0 where one group has no scores at all. Each group's sum is 0 up
    to rounding. With `missing` "lost", a missing score has r = 0 and counts in its own group's mean, so that saying
    nothing that can be read is the worst of answers; nobody wins against it still. float64 stays, all else gives
    float32. Raises ValueError for infinite scores, other shapes, groups of different sizes and another `missing`.
    """
    if missing not in get_args(Missing):
        raise ValueError(f"missing is {missing!r}; use one of: {', '.join(get_args(Missing))}")
    groups = [torch.as_tensor(scores).detach() for scores in (winner_scores, loser_scores)]
    for scores, name in zip(groups, ("winner_scores", "loser_scores"), strict=True):
        if scores.ndim != 1 or len(scores) == 0:
            raise ValueError(f"{name} have shape {list(scores.shape)}; give [N], one score for each judgement")
        if bool(scores.isinf().any()):
            raise ValueError(f"{name} hold an infinite score; give a finite number, or NaN where it is missing")
    winners, losers = (scores.cpu().double() for scores in groups)
    if len(winners) != len(losers):
        raise ValueError(
            f"there are {len(winners)} winner_scores and {len(losers)} loser_scores; give equally many, NaN for a "
            "missing one"
        )
    beats = winners[:, None] > losers[None, :]  # False where either is NaN
    there = ~winners.isnan(), ~losers.isnan()
    counted = [torch.ones_like(part) for part in there] if missing == "lost" else there
    found = (
        _centred(beats.sum(1), counted[0], int(there[1].sum())),
        _centred(beats.sum(0), counted[1], int(there[0].sum())),
    )
    dtype = torch.promote_types(*(g.dtype if g.dtype == torch.float64 else torch.float32 for g in groups))
    return found[0].to(groups[0].device, dtype), found[1].to(groups[1].device, dtype)


def _centred(wins: Tensor, present: Tensor, others: int) -> Tensor:
    """wins / others less its mean over the present, 0 elsewhere. Subtracted as integers: equal shares give exact 0."""
    count = int(present.sum())
    if count == 0 or others == 0:
        return torch.zeros(len(wins), dtype=torch.float64)
    difference = (wins * count - wins.sum()).double() / (count * others)
    return torch.where(present, difference, torch.zeros_like(difference))
