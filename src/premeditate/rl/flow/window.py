"""Which denoising steps are stochastic and trained, and how the others are thinned.

Flow-GRPO (arXiv 2505.05470) trains all steps. Flow-GRPO-Fast (its repository) draws a short window for every iteration,
MixGRPO (arXiv 2507.21802) slides one from high noise to low; the steps outside are the ODE's, and cost no training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from premeditate.rl.tensors import unknown

WINDOWS = ("all", "fixed", "random", "sliding")


def window(
    kind: str,
    steps: int,
    *,
    size: int | None = None,
    first: int = 0,
    last: int | None = None,
    every: int = 25,
    iteration: int = 0,
    seed: int = 0,
) -> tuple[int, ...]:
    """The sorted indices, of `steps` denoising steps 0..steps-1, that are stochastic and trained.

    They lie in [first, last); `last` None leaves the final step out, whose noise would stay in the picture.
    "all": the whole range; takes no `size`. "fixed": `size` steps from `first` on. "random": `size` steps in a row from
    a start that is uniform in the range and depends on (seed, iteration) alone. "sliding": `size` steps from
    first + iteration // every on, until the range ends, and there from then on.

    Raises ValueError where no such window exists, and says what would.
    """
    if kind not in WINDOWS:
        raise unknown("window", kind, WINDOWS)
    if steps < 1:
        raise ValueError(f"{steps} denoising steps cannot be; give at least 1")
    if every < 1 or iteration < 0:
        raise ValueError(f"every={every}, iteration={iteration} cannot be; every is at least 1, iteration at least 0")
    end = steps - 1 if last is None else last
    if end > steps:
        raise ValueError(f"the window ends at step {end} of {steps}; give last={steps} or less")
    if not 0 <= first < end:
        possible = f"give first={max(end - 1, 0)} or less" if end > 0 and first >= 0 else "give first=0"
        possible += "" if end > 0 else f" and last={steps}: by default the final step is left out"
        raise ValueError(f"no step lies in [{first}, {end}); {possible}")
    if kind == "all":
        if size is not None and size != end - first:
            raise ValueError(f'a window of kind "all" takes no size ({size}); leave it out, or use kind "fixed"')
        return tuple(range(first, end))
    if size is None or not 1 <= size <= end - first:
        raise ValueError(f'a window of kind "{kind}" in [{first}, {end}) needs a size of 1-{end - first}, not {size}')
    latest = end - size
    start = first
    if kind == "sliding":
        start = min(first + iteration // every, latest)
    elif kind == "random":  # a hash, not a generator: the same on every machine, version and rank
        digest = hashlib.sha256(f"window {seed} {iteration}".encode()).digest()
        start = first + int.from_bytes(digest[:8], "big") % (latest - first + 1)
    return tuple(range(start, start + size))


def compress(sigmas: Sequence[float] | Tensor, window: Sequence[int], factor: float) -> tuple[Tensor, tuple[int, ...]]:
    """Fewer ODE steps: the levels `sigmas` [T+1] with those before and after the window thinned.

    n steps before (after) it become round(factor * n), evenly chosen, and at least one where there were any. All levels
    from the window's first to its last step stay, and so do the first and last level of all. An empty window: all steps
    are thinned. `factor` in (0, 1]. Returns the levels left and the window's indices among them.
    """
    levels = torch.as_tensor(sigmas)
    steps = len(levels) - 1
    if levels.ndim != 1 or steps < 1:
        raise ValueError(f"sigmas has shape {list(levels.shape)}; give T+1 levels for T steps")
    if not 0 < factor <= 1:
        raise ValueError(f"a compression of {factor:g} cannot be; 1 keeps all steps outside the window, 0.5 half")
    chosen = sorted(window)
    if chosen and not 0 <= chosen[0] <= chosen[-1] < steps:
        raise ValueError(
            f"the window {tuple(window)} does not lie in the {steps} steps; their indices are 0-{steps - 1}"
        )
    if not chosen:
        return levels[_thinned(0, steps, factor)], ()
    before = _thinned(0, chosen[0], factor)
    kept = [*before, *range(chosen[0] + 1, chosen[-1] + 1), *_thinned(chosen[-1] + 1, steps, factor)]
    return levels[kept], tuple(kept.index(i) for i in chosen)


def _thinned(start: int, stop: int, factor: float) -> list[int]:
    """Indices of the levels that are left of those from `start` to `stop`, both included."""
    n = stop - start
    m = max(1, round(factor * n)) if n else 0
    return [start + (2 * i * n + m) // (2 * m) for i in range(m)] + [stop]
