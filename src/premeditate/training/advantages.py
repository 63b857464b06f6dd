"""From a group's reward matrix to advantages, as the recipe says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from premeditate.rl import grouping
from premeditate.rl.grouping.gcpo import Missing
from premeditate.training.recipe import Grouping


def advantages(rewards_GD: Tensor, how: Grouping, weights_D: Tensor) -> tuple[Tensor, Tensor]:
    """(advantages [G], cut to [-clip, clip]; mask [G]) of one group. A sample with a missing reward is masked. For gcpo
    the first half are judgements of the preferred edit, the second of the other."""
    if how.kind == "ucpg":
        values, mask = grouping.ucpg(rewards_GD, min_length=how.min_length)
    elif how.kind == "gcpo":
        winners, losers = rewards_GD.sum(1).chunk(2)
        values, mask = _both(winners, losers, how.missing)
    elif how.kind == "grpo":
        values, mask = grouping.grpo(rewards_GD)
    else:
        values, mask = (grouping.gdpo if how.kind == "gdpo" else grouping.weighted)(rewards_GD, weights_D)
    return (values.clamp(-how.clip, how.clip) if how.clip else values), mask


def _both(winners: Tensor, losers: Tensor, missing: Missing) -> tuple[Tensor, Tensor]:
    """As the other groupings, where all advantages are 0 the group teaches nothing and is masked."""
    values = torch.cat(grouping.gcpo(winners, losers, missing=missing))
    counted = ~torch.cat([winners, losers]).isnan() | (missing == "lost")
    return values, counted & bool(values.any())


def ordered(rewards_GD: Tensor) -> Tensor:
    """For each comparison of a pair's first half with its second, of those that have both scores: 1 where the first is
    higher, else 0. Shape [at most G^2 / 4]."""
    winners, losers = (half[~half.isnan()] for half in rewards_GD.sum(1).chunk(2))
    return (winners[:, None] > losers[None, :]).float().flatten()


def asked(rewards_GD: Tensor, names_D: Sequence[str]) -> Tensor:
    """bool [D]: the dimensions that a group was judged by. `names`: "reward.dimension".

    A dimension that no sample of the group has, while another one of the same reward is there, was not asked for: a
    checklist without a question about it. It is left out for all. A reward that gave nothing at all failed.
    """
    there = (~rewards_GD.isnan()).any(0)
    answered = {name.rpartition(".")[0] for name, some in zip(names_D, there.tolist(), strict=True) if some}
    failed = [name.rpartition(".")[0] not in answered for name in names_D]
    return there | there.new_tensor(failed)
