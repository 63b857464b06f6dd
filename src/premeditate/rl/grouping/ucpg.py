"""Unbiased chain preference grouping: train on the samples that all rewards rank alike.

    i before j    iff  r_i^k <= r_j^k for every reward k                 (a partial order on the G samples of a task)
    C             a longest chain of it                                   (dynamic programming)
    A_i = (s_i - mean_C(s)) / std_C(s) for i in C, s_i = sum_k r_i^k;     all others are masked

ThinkRL-Edit (arXiv 2601.03467, figure "Unbiased Chain Preference Grouping"). What the paper leaves open is decided so:

- Ties count as order: samples with equal rewards stand in the chain one after the other, by index.
- Among the longest chains the one with the largest spread of s is taken (the strongest contrast), then the one with the
  largest sum of s over its members, then the lowest indices, read from the chain's best sample down. The last is a
  draw: no reward is preferred to another, for which place a sample has in its group says nothing about it.
- A chain shorter than `min_length`, or without a spread of s beyond rounding, masks the whole group.
- A sample with a missing reward is left out before.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from premeditate.rl.grouping.rewards import Group

Ints = npt.NDArray[np.int64]


def ucpg(rewards: Any, *, min_length: int = 2) -> tuple[Tensor, Tensor]:
    """(advantages [G], mask [G]) of one group's `rewards` [G, D] or [G], NaN where one is missing.

    O(G^2 D). float64 stays, all else gives float32. Raises ValueError for infinite rewards, other shapes, and a
    `min_length` below 2.
    """
    if min_length < 2:
        raise ValueError(f"min_length={min_length} cannot be; a chain needs at least 2 samples to compare")
    group = Group(rewards)
    if len(group.values) < min_length:
        return group.result(None)
    chain = torch.from_numpy(longest_chain(group.values.numpy()))
    if len(chain) < min_length:
        return group.result(None)
    members = group.values[chain]
    return group.result(group.z_scores(members.sum(1), members.abs().sum(1)), chain)


def longest_chain(rewards: npt.NDArray[np.float64]) -> Ints:
    """Indices [L] of the chain of `rewards` [P, D] that the rules above choose, from its worst to its best sample."""
    # Lexicographic order keeps the partial one, and does it exactly, which an order by sums would not: of two samples,
    # one before the other, rounding can make the sums equal.
    order = np.lexsort((np.arange(len(rewards)), *rewards.T[::-1]))
    r = rewards[order]
    after = np.ones((len(r), len(r)), dtype=bool)  # [j, i]: i may stand before j
    for column in r.T:
        after &= column[:, None] >= column[None, :]

    length = np.ones(len(r), dtype=np.int64)  # of the longest chain that ends here
    for j in range(1, len(r)):
        length[j] += np.max(length[:j], where=after[j, :j], initial=0)

    # The chain before a sample ends one layer below. Within a layer the better end comes first, so that the first that
    # may stand before j is the one to take.
    sums = r.sum(1)
    start, total = sums.copy(), sums.copy()  # first and summed s of the chain that ends here
    before = np.full(len(r), -1, dtype=np.int64)
    layers = [np.flatnonzero(length == n) for n in range(1, int(length.max()) + 1)]
    for below, layer in pairwise(layers):
        ranked = below[np.lexsort((order[below], -total[below], start[below]))] if len(below) > 1 else below
        before[layer] = ranked[after[np.ix_(layer, ranked)].argmax(1)] if len(below) > 1 else below[0]
        start[layer] = start[before[layer]]
        total[layer] += total[before[layer]]

    last = layers[-1]
    j = int(last[np.lexsort((order[last], -total[last], start[last] - sums[last]))][0])
    chain = []
    while j >= 0:
        chain.append(j)
        j = int(before[j])
    return order[chain[::-1]].astype(np.int64)
