"""What benches share that hold figures against bounds: the options, the clock, and the end."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Figure:
    what: str
    value: float
    wanted: float
    least: bool = True

    @property
    def reached(self) -> bool:
        return self.value >= self.wanted if self.least else self.value <= self.wanted

    def __str__(self) -> str:
        sign = ">=" if self.least else "<="
        return f"{'reached' if self.reached else 'MISSED '}  {self.what}: {self.value:.3g} ({sign} {self.wanted:g})"


def options(doc: str | None) -> argparse.Namespace:
    """--repeats, --quick and --json of the command line; `repeats` is 1 with --quick. One thread from here on."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="of each way (default 5)")
    parser.add_argument("--quick", action="store_true", help="one of each: a look, within 50 s")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    args.repeats = 1 if args.quick else args.repeats
    torch.set_num_threads(1)
    return args


def timed(ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Process CPU seconds of each way, `repeats` times, all in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.process_time()
            way()
            seconds[name].append(time.process_time() - start)
    return seconds


def conclude(figures: Iterable[Figure], args: argparse.Namespace, **more: Any) -> int:
    """Prints the figures, or with --json one object of them and `more`. The exit status: 1 where one is missed."""
    found = list(figures)
    good = sum(figure.reached for figure in found)
    if args.json:
        rows = [{**vars(figure), "reached": figure.reached} for figure in found]
        print(json.dumps({**more, "repeats": args.repeats, "torch": torch.__version__, "figures": rows}))
    else:
        print(*found, f"{good} of {len(found)} figures reached", sep="\n")
    return 0 if good == len(found) else 1
