"""How often the tiny editor's picture is exactly what the prompt asked for, judged by the exact checker."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from premeditate.microworld.checker import decode_arrays
from premeditate.microworld.language import OPERATIONS
from premeditate.microworld.models.editor_data import TEST_SEEDS, Example, draw, test_rng
from premeditate.microworld.render import render
from premeditate.stats import wilson


def run_editor(pipe: Any, examples: Sequence[Example], *, seed: int = 0, steps: int = 4, batch: int = 64) -> np.ndarray:
    """Edits through the stock pipeline call. uint8 [N, 64, 64, 3]."""
    import torch

    pictures = []
    for start in range(0, len(examples), batch):
        part = examples[start : start + batch]
        out = pipe(
            image=[render(e.source) for e in part],
            prompt=[e.prompt for e in part],
            height=64,
            width=64,
            max_area=64 * 64,
            _auto_resize=False,
            num_inference_steps=steps,
            guidance_scale=1.0,
            max_sequence_length=min(512, pipe.tokenizer_2.model_max_length),
            generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(part))],
        ).images
        pictures += [np.asarray(image.convert("RGB")) for image in out]
    return np.stack(pictures)


def exact(examples: Sequence[Example], pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """bool [N]: every cell right and sharp; and bool [N, 16]: which cells are."""
    target = np.array([e.target.codes for e in examples])
    codes, sharp, _ = decode_arrays(pictures)
    good = (codes == target) & sharp
    return good.all(-1), good


def share(hits: np.ndarray) -> dict[str, Any]:
    """A share with its interval: `exact` (0-1), `low`, `high`, `n`."""
    low, high = wilson(int(hits.sum()), len(hits))
    return {"exact": round(float(hits.mean()), 4), "low": round(low, 4), "high": round(high, 4), "n": len(hits)}


def summary(examples: Sequence[Example], pictures: np.ndarray) -> dict[str, Any]:
    """Exact share, share of right cells, of right changed cells, of right kept cells, and the exact share by kind of
    step (of single-step examples) with counts."""
    hits, cells = exact(examples, pictures)
    changed = np.array([[a != b for a, b in zip(e.source.codes, e.target.codes, strict=True)] for e in examples])
    by: dict[str, list[bool]] = defaultdict(list)
    for example, hit in zip(examples, hits, strict=True):
        if len(example.operations) == 1:
            by[example.operations[0]].append(bool(hit))
    return {
        **share(hits),
        "cells": round(float(cells.mean()), 4),
        "changed_cells": round(float(cells[changed].mean()), 4),
        "kept_cells": round(float(cells[~changed].mean()), 4),
        "kinds": {op: share(np.array(by[op])) for op in OPERATIONS if by[op]},
    }


def suite(name: str, n: int, seed: int = TEST_SEEDS) -> list[Example]:
    """Held-out examples of one kind: `single`, `two`, `three` (canonical prompts), `cell`, `description` (single steps,
    other styles), `two-description`, `held-out` (canonical, with an unseen colour-shape pair)."""
    options: dict[str, dict[str, Any]] = {
        "single": {"style": "canonical"},
        "two": {"style": "canonical", "steps": 2},
        "three": {"style": "canonical", "steps": 3},
        "cell": {"style": "cell"},
        "description": {"style": "description"},
        "two-description": {"style": "description", "steps": 2},
        "held-out": {"style": "canonical", "held_out": True},
    }
    if name not in options:
        raise ValueError(f"no suite {name!r}; there are {', '.join(options)}")
    offset = 10_000_000 * list(options).index(name)
    balanced = options[name].get("steps", 1) == 1
    return [
        draw(test_rng(seed + offset + i), operation=OPERATIONS[i % 8] if balanced else None, **options[name])
        for i in range(n)
    ]


SUITES = ("single", "two", "three", "cell", "description", "two-description", "held-out")


def evaluate_pipeline(
    pipe: Any, n: int = 1000, seed: int = TEST_SEEDS, suites: Sequence[str] = SUITES
) -> dict[str, Any]:
    """`summary` of every suite with `n` examples each (twice as many for `single`)."""
    begin = time.process_time()
    result: dict[str, Any] = {}
    for name in suites:
        examples = suite(name, 2 * n if name == "single" else n, seed)
        result[name] = summary(examples, run_editor(pipe, examples, seed=seed))
    return {"seed": seed, "cpu_seconds": round(time.process_time() - begin, 1), "suites": result}


def evaluate_editor(folder: str | Path, n: int = 1000, seed: int = TEST_SEEDS) -> dict[str, Any]:
    """Held-out figures of an editor folder: exact shares with 95 % Wilson intervals per suite and per kind of step.

    Single steps are balanced over the eight kinds; `n` examples per suite, 2n for `single`. Raises ValueError where
    `seed` is below the first test seed.
    """
    from premeditate.microworld.models.editor_build import load_pipeline

    return evaluate_pipeline(load_pipeline(folder), n, seed)
