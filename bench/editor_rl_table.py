"""What editor RL reached: a table and curves from the folders of finished runs.

    python bench/editor_rl_table.py runs/* --png docs/results/editor-rl.png [--json docs/results/editor-rl.json]
                                    [--until STEP]

Runs of one recipe name are its seeds. Success is the share of held-out tasks that the deterministic sampler gets
exactly right; intervals are 95 %: Wilson's over a run's tasks, Student's over seeds. `proxy`: what a judge that is the
reward says of the same edits.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from premeditate.config import load_config
from premeditate.stats import Rate
from premeditate.training.curves import curve, draw, mean
from premeditate.training.journal import RECIPE, read
from premeditate.training.recipe import Recipe

SUCCESS = "eval/success.success"
OTHERS = {"follow": ("eval/graded.follow",), "keep": ("eval/graded.keep",), "ssim outside": ("eval/preservation.ssim",),
          "proxy": ("eval/rrm.overall", "eval/viescore.overall")}  # fmt: skip
Row = Mapping[str, Any]


def summary(name: str, runs: Mapping[int, Sequence[Row]]) -> dict[str, Any]:
    """One recipe: its seeds' first and last evaluations, and the interval of their mean."""
    found: dict[str, Any] = {"recipe": name, "seeds": []}
    for seed, rows in sorted(runs.items()):
        evaluations = [row for row in rows if row["kind"] == "eval"]
        steps = [row for row in rows if row["kind"] == "step"]
        first, last = evaluations[0], evaluations[-1]
        found["seeds"].append({
            "seed": seed,
            "steps": last["step"],
            "before": rate(first),
            "after": rate(last),
            "others": {k: [first[v], last[v]] for k, names in OTHERS.items() for v in names if v in first},
            "rollout_forwards": sum(row["rollout_forwards"] for row in steps) / len(steps),
            "informative": sum(row["groups/informative"] for row in steps[-20:]) / len(steps[-20:]),
        })  # fmt: skip
    curves = [curve(rows, SUCCESS) for rows in runs.values()]
    if len(curves) > 1:
        _, value, low, high = mean(curves)[-1]
        found["mean"] = {"value": value, "low": low, "high": high}
    return found


def rate(row: Row) -> dict[str, Any]:
    n = round(row[f"{SUCCESS}/n"])
    return Rate(round(row[SUCCESS] * n), n).to_json()


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def shift(ends: Sequence[Sequence[float]]) -> str:
    """From the mean of the firsts to the mean of the lasts."""
    before, after = (sum(end[i] for end in ends) / max(1, len(ends)) for i in range(2))
    return f"{before:.3f} -> {after:.3f}" if ends else "-"


def line(found: Mapping[str, Any]) -> str:
    seeds = found["seeds"]
    before = seeds[0]["before"]
    after = ", ".join(
        f"{percent(s['after']['value'])} [{percent(s['after']['low'])}, {percent(s['after']['high'])}]" for s in seeds
    )
    together = "-"
    if "mean" in found:
        m = found["mean"]
        together = f"{percent(m['value'])} [{percent(m['low'])}, {percent(m['high'])}]"
    other = " | ".join(shift([s["others"][k] for s in seeds if k in s["others"]]) for k in OTHERS)
    forwards = sum(s["rollout_forwards"] for s in seeds) / len(seeds)
    return (
        f"| {found['recipe']} | {seeds[0]['steps']} | {percent(before['value'])} [{percent(before['low'])}, "
        f"{percent(before['high'])}] | {after} | {together} | {other} | {forwards:.0f} |"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    options.add_argument("--until", type=int, help="leave out what came after this step")
    options.add_argument("--png", type=Path, help="draw the curves there")
    options.add_argument("--json", type=Path, help="write the figures there")
    args = options.parse_args()
    runs: dict[str, dict[int, list[dict[str, Any]]]] = defaultdict(dict)
    for folder in args.runs:
        recipe = load_config(Recipe, folder / RECIPE, [])
        if recipe.seed in runs[recipe.name]:
            options.error(f"two runs of {recipe.name} have the seed {recipe.seed}")
        rows = read(folder)
        runs[recipe.name][recipe.seed] = [row for row in rows if args.until is None or row["step"] <= args.until]
    found = [summary(name, seeds) for name, seeds in runs.items()]
    print("| recipe | steps | success before, % | after, each seed | mean of the seeds | "
          + " | ".join(OTHERS) + " | forwards a rollout |")  # fmt: skip
    print("|---|---|---|---|---|" + "---|" * len(OTHERS) + "---|")
    for each in found:
        print(line(each))
    if args.png:
        draw({name: list(seeds.values()) for name, seeds in runs.items()}, args.png, figure=SUCCESS)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
