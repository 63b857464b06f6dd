"""From a group's reward matrix to advantages, as the recipe says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from premeditate.rl import grouping
from premeditate.training.recipe import Grouping


def advantages(rewards_GD: Tensor, how: Grouping, weights_D: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(advantages [G], cut to [-clip, clip]; mask [G]) of one group. A sample with a missing reward is masked."""
    if how.kind == "ucpg":
        values, mask = grouping.ucpg(rewards_GD, min_length=how.min_length)
    elif how.kind == "grpo":
        values, mask = grouping.grpo(rewards_GD)
    else:
        weights = torch.tensor(list(weights_D), dtype=rewards_GD.dtype)
        values, mask = (grouping.gdpo if how.kind == "gdpo" else grouping.weighted)(rewards_GD, weights)
    return (values.clamp(-how.clip, how.clip) if how.clip else values), mask
