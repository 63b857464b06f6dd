"""Objectives of flow and token policies: pure functions over N rows that give each row's loss and what to watch."""

from premeditate.rl.losses.awm import awm
from premeditate.rl.losses.clipped import Loss, clipped
from premeditate.rl.losses.dpo import dpo, pairs
from premeditate.rl.losses.flow_grpo import flow_grpo
from premeditate.rl.losses.grpo_guard import grpo_guard
from premeditate.rl.losses.kl import gaussian_kl, published_kl, velocity_kl
from premeditate.rl.losses.nft import nft
from premeditate.rl.losses.tokens import clipped_tokens, token_kl

__all__ = [
    "Loss",
    "awm",
    "clipped",
    "clipped_tokens",
    "dpo",
    "flow_grpo",
    "gaussian_kl",
    "grpo_guard",
    "nft",
    "pairs",
    "published_kl",
    "token_kl",
    "velocity_kl",
]
