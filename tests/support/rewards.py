"""Samples, pictures and rewards for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from premeditate.rewards.base import Reward, Sample
from premeditate.rewards.function import FunctionReward
from premeditate.rewards.panel import Entry, Panel
from premeditate.trace import Task, Verdict

PICTURE = Image.new("RGB", (8, 8))
WAIT = 10.0


def samples(n: int, group_size: int = 1) -> list[Sample]:
    """Samples that a reward can tell apart by meta["k"]."""
    return [
        Sample(
            Task(id=f"t{k}", images=(), instruction="x", meta={"k": k}), PICTURE, PICTURE, group=f"g{k // group_size}"
        )
        for k in range(n)
    ]


def k_of(sample: Sample) -> int:
    return sample.task.meta["k"]


def function(fn: Callable[[Sequence[Sample]], Any], **attributes: Any) -> FunctionReward:
    for name, value in attributes.items():
        setattr(fn, name, value)
    return FunctionReward(fn, name=attributes.get("name", "f"))


@contextmanager
def panel_of(*entries: Entry | Reward) -> Iterator[Panel]:
    with Panel([e if isinstance(e, Entry) else Entry(e) for e in entries]) as panel:
        yield panel


class Plain:
    """A reward as somebody else would write it."""

    name = "plain"
    dimensions: tuple[str, ...] = ("low", "high")

    def __init__(self, answer: Callable[[Sample], dict[str, float]]) -> None:
        self.answer = answer
        self.calls: list[list[int]] = []

    async def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        self.calls.append([k_of(s) for s in samples])
        await asyncio.sleep(0)
        return [Verdict(status="scored", scores=self.answer(s)) for s in samples]


def sample(
    source: Image.Image, edit: Image.Image, group: str = "", *, instruction: str = "do it", **meta: Any
) -> Sample:
    return Sample(Task(id="t", images=(), instruction=instruction, meta=meta), source, edit, group=group)


def score(reward: Reward, *samples: Sample) -> Sequence[Verdict]:
    return asyncio.run(reward.score(samples))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Blotches with an edge here and there, so that means, variances and covariances all matter."""
    rng = np.random.default_rng(seed)
    blotches = Image.fromarray(rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8))
    return blotches.resize((width, height), Image.Resampling.BILINEAR)


def changed(image: Image.Image, amount: float, seed: int = 1, box: tuple[int, int, int, int] | None = None) -> Any:
    """`image` with uniform noise of +-amount, all over or in `box`."""
    values = np.asarray(image).astype(float)
    left, top, right, bottom = box or (0, 0, image.width, image.height)
    part = values[top:bottom, left:right]
    part += np.random.default_rng(seed).uniform(-amount, amount, part.shape)
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))
