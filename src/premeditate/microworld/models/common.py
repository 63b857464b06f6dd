"""Small helpers that both trainings share: schedule, clock, averaged weights, logs, checkpoints."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass
class Clock:
    """Progress of a run that is bounded by `seconds`, by `steps`, or by whichever ends first. Survives a resume.

    Seconds are the process's CPU time over `threads`: what else the machine does makes a run longer, not worse.
    """

    seconds: float | None = None
    steps: int | None = None
    step: int = 0
    spent: float = 0.0
    threads: int = 1
    _mark: float = field(default_factory=time.process_time)

    def __post_init__(self) -> None:
        if self.seconds is None and self.steps is None:
            raise ValueError("say how long to train: seconds=... or steps=...")

    def tick(self) -> None:
        now = time.process_time()
        self.step, self.spent, self._mark = self.step + 1, self.spent + (now - self._mark) / self.threads, now

    def pause(self) -> None:
        """Leaves what happened since the last tick (an evaluation, say) out of the time spent."""
        self._mark = time.process_time()

    @property
    def progress(self) -> float:
        """0 at the start, 1 at the end."""
        parts = [self.spent / self.seconds if self.seconds else 0.0, self.step / self.steps if self.steps else 0.0]
        return min(1.0, max(parts))


def warmup_stable_decay(progress: float, warm: float = 0.01, decay: float = 0.25) -> float:
    """The factor on the peak learning rate: linear up, constant, linear down over the last `decay`, to 2 %."""
    if progress < warm:
        return max(progress / warm, 0.02)
    return max(0.02, min(1.0, (1 - progress) / decay))


class Average:
    """Exponential moving average of a model's parameters, with a short memory at first."""

    def __init__(self, parameters: list[torch.Tensor], decay: float = 0.998) -> None:
        self.live, self.decay, self.count = parameters, decay, 0
        self.mean = [p.detach().clone() for p in parameters]

    def update(self) -> None:
        import torch

        self.count += 1
        with torch.no_grad():
            torch._foreach_lerp_(self.mean, self.live, 1 - min(self.decay, self.count / (self.count + 10)))

    def swap(self) -> None:
        """Exchanges live and averaged values in place; call twice around an evaluation or a save."""
        import torch

        with torch.no_grad():
            for live, mean in zip(self.live, self.mean, strict=True):
                kept = live.detach().clone()
                live.copy_(mean)
                mean.copy_(kept)


class Log:
    """One JSON object per line in `path`, and a readable line through `say`."""

    def __init__(self, path: Path, say: Callable[[str], None] | None = None) -> None:
        self.path, self.say = path, say or (lambda line: None)
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, **row: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.say("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Written beside and then renamed: a killed run leaves the previous checkpoint whole."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Tensors and plain values only: nothing in the file is executed."""
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)
