"""Which checkpoints of a run are whole, and whose they are.

OUT/checkpoints/checkpoint-120/    as transformers writes it: weights or adapters, optimiser, random states
            premeditate.json       written last: without it, the rest is half written. Step, recipe, hashes
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from premeditate.files import write_atomic
from premeditate.local import SIDECAR
from premeditate.training.checkpoint import differences, listed, shaping
from premeditate.training.errors import TrainingError

CHECKPOINTS = "checkpoints"
FREE = (
    "name", "out", "logging", "checkpoint", "evaluation", "data.train", "data.eval", "data.eval_count", "model.device",
    "model.gradient_checkpointing", "batch.forward",
)  # fmt: skip
"""What a recipe may change while its run goes on. Of the data, the content counts."""
_NAME = re.compile(r"checkpoint-(\d+)")


def newest(out: Path) -> int | None:
    """The step of the newest whole checkpoint of the run in `out`, None where there is none."""
    return max(_whole(out / CHECKPOINTS), default=None)


def start(out: Path, *, resume: bool, say: Callable[[str], None]) -> Path | None:
    """The checkpoint that a run in `out` goes on from, or None for the beginning. Half-written ones are removed.

    `resume` must be given where there are checkpoints. Raises `TrainingError` where it is not. `say` is told of a
    resume that found nothing.
    """
    folder = out / CHECKPOINTS
    steps = _whole(folder)
    if steps and not resume:
        raise TrainingError(
            f"{out} holds checkpoints up to step {max(steps)}",
            "add --resume to go on with them, or give another folder (out=...)",
        )
    for step, path in _all(folder):
        if step not in steps:
            shutil.rmtree(path, ignore_errors=True)
    if resume and not steps:
        say(f"{out} holds no whole checkpoint: starting from the beginning")
    return steps[max(steps)] if steps else None


def finish(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> None:
    """Marks the checkpoint of `step` in `folder`, which has been written, as whole and as that of `state`. Removes all
    but the newest `keep`. Raises `WriteError`."""
    row = {"step": step, **state}
    write_atomic(folder / f"checkpoint-{step}" / SIDECAR, (json.dumps(row, indent=1) + "\n").encode())
    steps = _whole(folder)
    for old in sorted(steps)[:-keep]:
        # Unmarked first: one that is half removed must not look whole.
        (steps[old] / SIDECAR).unlink(missing_ok=True)
        shutil.rmtree(steps[old], ignore_errors=True)


def check_same(path: Path, state: Mapping[str, Any]) -> int:
    """The step of the checkpoint at `path`. Raises `TrainingError` if it is of another recipe, other data or another
    base than `state` = {"recipe", "data", "base"}; the error names what differs."""
    saved = _mark(path)
    assert saved is not None
    different = list(differences(*(shaping(row.get("recipe"), FREE) for row in (saved, state))))
    different += [f"it learnt from {what}" for key, what in (("data", "other judged edits"), ("base", "another base"))
                  if saved.get(key) != state[key]]  # fmt: skip
    if different:
        raise TrainingError(
            f"{path} belongs to another run: {listed(different)}",
            "resume with the recipe and the data of that run (recipe.yaml beside its log), or give another folder "
            "(out=...)",
        )
    return int(saved["step"])


def _all(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("checkpoint-*"):
        if match := _NAME.fullmatch(path.name):
            yield int(match[1]), path


def _whole(folder: Path) -> dict[int, Path]:
    return {step: path for step, path in _all(folder) if (_mark(path) or {}).get("step") == step}


def _mark(path: Path) -> dict[str, Any] | None:
    try:
        row = json.loads((path / SIDECAR).read_bytes())
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) else None
