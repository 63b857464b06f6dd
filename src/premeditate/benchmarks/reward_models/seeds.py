"""The same judge with other seeds in each repeat: without them, one that samples says the same again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from premeditate.reasoners.base import ChatRequest, Completion, Reasoner
from premeditate.rewards.base import Reward
from premeditate.rewards.specs import LoadReasoner, load_reward
from premeditate.rewards.verified import VerifiedReward

APART = 1_000
"""Between the seeds of two repeats; the passes of a judge take consecutive ones."""


class Reseeded:
    """A reasoner whose seeds are `APART` further on in each repeat."""

    def __init__(self, reasoner: Reasoner, repeat: int) -> None:
        self.reasoner, self.shift = reasoner, APART * repeat
        self.prompts = reasoner.prompts

    @property
    def name(self) -> str:
        return self.reasoner.name

    def __getattr__(self, name: str) -> Any:  # how many requests it takes, how it is closed, ...
        if name.startswith("__") or name == "reasoner":
            raise AttributeError(name)
        return getattr(self.reasoner, name)

    async def chat(self, requests: Sequence[ChatRequest]) -> Sequence[Completion]:
        return await self.reasoner.chat([replace(r, seed=r.seed + self.shift) for r in requests])


def reseeding(use: str, load_reasoner: LoadReasoner) -> Callable[[int], Reward]:
    """Makes the reward that `use` names for each repeat. Their reasoners are loaded once, and a checklist is written
    once for all repeats. A reward that asks no reasoner is the same one in all: nobody here knows its seeds. Raises
    `ModelError`."""
    loaded: dict[str, Reasoner] = {}
    first: list[Reward] = []

    def make(repeat: int) -> Reward:
        def reasoner(spec: str) -> Reasoner:
            if spec not in loaded:
                loaded[spec] = load_reasoner(spec)
            return Reseeded(loaded[spec], repeat)

        if first and not loaded:
            return first[0]
        reward = load_reward(use, reasoner)
        if first and isinstance(reward, VerifiedReward) and isinstance(first[0], VerifiedReward):
            reward.builder = first[0].builder
        first.append(reward)
        return reward

    return make
