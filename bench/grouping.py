"""How long one group of 1,024 samples with 5 rewards takes to group.

    python bench/grouping.py [--samples N] [--rewards D] [--runs N] [--bound S] [--json]

UCPG is timed on rewards of several kinds: continuous, yes/no, a checklist's fifths, one total order, and two samples to
each step of one. Reported are median processor seconds of the process. Exit code 1: the bound was missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import numpy as np
import torch

from premeditate.rl.grouping import GROUPINGS, ucpg


def kinds(n: int, d: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    order = np.sort(generator.random((n, d)), axis=0)
    twins = np.repeat(np.arange(n // 2 + 1.0), 2)[:n, None] + np.zeros(d)
    twins[::2, 0] += 0.1
    twins[1::2, -1] += 0.1
    return {
        "continuous": generator.random((n, d)),
        "yes/no": generator.integers(0, 2, (n, d)).astype(float),
        "fifths": generator.integers(0, 6, (n, d)) / 5,
        "total order": order[generator.permutation(n)],
        "twins": twins[generator.permutation(n)],
    }


def median(call: object, runs: int) -> float:
    assert callable(call)
    call()
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--rewards", type=int, default=5)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--bound", type=float, default=0.05, help="seconds that UCPG may take (default 0.05)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    matrices = kinds(options.samples, options.rewards)
    seconds = {f"ucpg, {kind}": median(lambda r=r: ucpg(r), options.runs) for kind, r in matrices.items()}
    worst = max(seconds.values())
    for name, group in GROUPINGS.items():
        if name != "ucpg":
            seconds[name] = median(lambda g=group: g(matrices["continuous"]), options.runs)
    if options.json:
        print(json.dumps({"seconds": seconds, "bound": options.bound, "within_bounds": worst < options.bound}))
    else:
        for name, value in seconds.items():
            print(f"{name:20} {1000 * value:7.2f} ms")
        print(
            f"{options.samples} samples, {options.rewards} rewards: UCPG takes at most {1000 * worst:.1f} ms "
            f"(bound {1000 * options.bound:g} ms): {'within bounds' if worst < options.bound else 'TOO SLOW'}"
        )
    return 0 if worst < options.bound else 1


if __name__ == "__main__":
    sys.exit(main())
