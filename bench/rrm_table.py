"""What each stage of a reasoning reward model's training is worth: pairwise accuracy on held-out micro-world pairs.

    python bench/rrm_table.py RUNS [--n 1000] [--untrained SIZE=SPEC ...] [--json FILE] [--png FILE]

RUNS holds folders SIZE-STAGE-sSEED, each with a trained judge in export/: STAGE is think, verify or both (the cold
start in that mode) or gcpo (after it, from `both`). --untrained SIZE=SPEC adds a model before any training: with the
scores that it can give an edit already (VIEScore's), and asked in each of the modes. Every judge is asked greedily,
once, about the same pairs, of which the exact checker prefers one (`premeditate.microworld.pairs.held_out_pairs`).

A tie of the judge is a wrong answer in `accuracy` and half a right one in `ties half`; a pair without both scores is
missing, and in neither (`coverage`). Intervals are 95 %: Wilson's over the pairs for one run, Student's over the seeds
for a mean; differences are paired (the same pairs and seeds), with a bootstrap over pairs.

With --json every judge's answers are kept there, so that a run that was cut off goes on, and one with more judges asks
these only. A judge whose weights have changed since is asked anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from premeditate import presets
from premeditate.benchmarks.reward_models.pairwise import Accuracy, accuracy, label
from premeditate.benchmarks.reward_models.run import evaluate
from premeditate.microworld.pairs import held_out_pairs
from premeditate.microworld.verifier import ExactVerifier
from premeditate.prompts.verify import check_mode
from premeditate.reasoners.transformers import TransformersReasoner
from premeditate.rewards.judges.rrm import RRM
from premeditate.rewards.judges.viescore import VIEScore
from premeditate.stats import student

STAGES = ("think", "verify", "both", "gcpo")
NAME = re.compile(rf"(?P<size>[\w.]+)-(?P<stage>{'|'.join(STAGES)})-s(?P<seed>\d+)")
COMPARED = (("both", "think"), ("both", "verify"), ("gcpo", "both"))
UNTRAINED = ("interval", *STAGES[:3])
SEED, DRAWS = 7, 2_000


def weights(spec: str) -> str:
    """Names a judge's weights: a hash of the files, or the name of a model that does not change."""
    files = sorted(Path(spec).glob("*.safetensors"))
    return (
        hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).hexdigest() if files else spec
    )


def measure(spec: str, mode: str, pairs: Sequence[Any], k: int) -> dict[str, Any]:
    """`mode` "interval": the model's own scores of an edit (VIEScore), without principles."""
    reasoner = TransformersReasoner.load(presets.resolve("reasoner", spec).spec)
    # As GCPO samples: with all of the temperature. One trace that can be read makes a score.
    ways: dict[str, Any] = {"k": k, "temperature": 1.0, "least": 1} if k > 1 else {}
    reward: Any = VIEScore(reasoner, **ways) if mode == "interval" else RRM(reasoner, mode=check_mode(mode), **ways)
    told = evaluate(reward, pairs, checker=ExactVerifier() if mode in ("verify", "both") else None)
    answers = told.agreement.get("all")
    return {
        "of": weights(presets.resolve("reasoner", spec).spec),
        "scores": [row.scores[0] for row in told.rows], "preference": [row.preference for row in told.rows],
        "statuses": told.statuses, "seconds": told.seconds,
        "weights": sum(p.numel() for p in reasoner.model.parameters()),
        "verdicts": None if answers is None else answers.to_json(),
    }  # fmt: skip


def right(found: dict[str, Any], ties: Any = "wrong") -> Accuracy:
    return accuracy([label(*pair) for pair in found["scores"]], found["preference"], ties)


def correct(found: dict[str, Any], tie: float) -> Any:
    """[pairs]: 1 right, 0 wrong, `tie` for a tie, NaN missing."""
    out = []
    for pair, truth in zip(found["scores"], found["preference"], strict=True):
        said = label(*pair)
        out.append(math.nan if said is None else tie if said == "tie" else float(said == truth))
    return np.array(out)


def difference(one: Sequence[Any], other: Sequence[Any]) -> dict[str, Any]:
    """Of two stages' `correct`, seed by seed: the mean gain over pairs that both have, and its interval."""
    gains = np.array([a - b for a, b in zip(one, other, strict=True)])
    rng, n = np.random.default_rng(0), gains.shape[1]
    drawn = [np.nanmean(gains[:, rng.integers(0, n, n)]) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"difference": float(np.nanmean(gains)), "low": float(low), "high": float(high),
            "seeds": [float(np.nanmean(g)) for g in gains]}  # fmt: skip


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def lines(groups: dict[tuple[str, str], dict[int, dict[str, Any]]]) -> list[str]:
    out = ["| model | weights | stage | accuracy, % | each seed | ties half, % | mean of the seeds | coverage, % "
           "| verdicts as the checker's, % |", "|---" * 9 + "|"]  # fmt: skip
    for (size, stage), seeds in groups.items():
        runs = [seeds[s] for s in sorted(seeds)]
        pooled = {key: [x for run in runs for x in run[key]] for key in ("scores", "preference")}
        acc, half = right(pooled), right(pooled, "half")
        values = [found for run in runs if (found := right(run, "half").value) is not None]
        mean, *bounds = student(values) if len(values) > 1 else values[:1] or [math.nan]
        verdicts = [
            run["verdicts"]["agree"]["value"] for run in runs if run["verdicts"] and run["verdicts"]["agree"]["n"]
        ]
        interval = f" [{', '.join(map(percent, bounds))}]" if bounds else ""
        low, high = acc.interval or (None, None)
        out.append("| " + " | ".join([
            size, f"{runs[0]['weights']:,}", stage, f"{percent(acc.value)} [{percent(low)}, {percent(high)}]",
            ", ".join(percent(right(run).value) for run in runs), percent(half.value),
            "-" if not values else f"**{percent(mean)}**{interval}", percent(acc.coverage.value),
            percent(float(np.mean(verdicts))) if verdicts else "-",
        ]) + " |")  # fmt: skip
    return out


def compared(groups: dict[tuple[str, str], dict[int, dict[str, Any]]]) -> list[str]:
    out = ["| gain, points | model | ties half | each seed | ties wrong | each seed |", "|---" * 6 + "|"]
    sizes = list(dict.fromkeys(size for size, _ in groups))
    asked = [(f"{a} - {b}", size, (size, a), (size, b)) for size in sizes for a, b in COMPARED]
    if len(sizes) == 2:
        asked += [(f"{sizes[0]} - {sizes[1]}", stage, (sizes[0], stage), (sizes[1], stage)) for stage in STAGES]
    for name, what, one, other in asked:
        common = sorted(set(groups.get(one, {})) & set(groups.get(other, {})))
        if common:
            cells = [name, what]
            for tie in (0.5, 0.0):
                found = difference(*([correct(groups[key][s], tie) for s in common] for key in (one, other)))
                cells += [f"{100 * found['difference']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]",
                          ", ".join(f"{100 * g:+.1f}" for g in found["seeds"])]  # fmt: skip
            out.append(f"| {' | '.join(cells)} |")
    return out


def draw(groups: dict[tuple[str, str], dict[int, dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    sizes = list(dict.fromkeys(size for size, _ in groups))
    for k, size in enumerate(sizes):
        known = [(i, stage) for i, stage in enumerate(STAGES) if (size, stage) in groups]
        found = [[right(run, "half").value for run in groups[size, stage].values()] for _, stage in known]
        values = [[100 * value for value in some if value is not None] for some in found]
        places = [i + 0.08 * (2 * k - 1) for i, _ in known]
        axes.plot(places, [np.mean(v) if v else np.nan for v in values], "o-", color=f"C{k}", label=size, zorder=3)
        for place, some in zip(places, values, strict=True):
            axes.plot([place] * len(some), some, "_", color=f"C{k}", alpha=0.6, markersize=14)
    axes.axhline(50, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(STAGES)), ["think", "verify", "think + verify", "+ GCPO"])
    axes.set_ylabel("pairwise accuracy (ties half), %")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--n", type=int, default=1000, help="held-out pairs")
    parser.add_argument("--k", type=int, default=1, help="traces of each edit; their mean score counts")
    parser.add_argument("--untrained", nargs="*", default=[], metavar="SIZE=SPEC")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    args = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    kept = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    if kept and (kept["n"], kept["k"]) != (args.n, args.k):
        parser.error(f"{args.json} holds answers of --n {kept['n']} --k {kept['k']}; name another file")
    parts: dict[str, Any] = kept.get("parts", {})
    jobs = [(f"{pair.partition('=')[0]}-untrained_{mode}-s0", pair.partition("=")[2], mode)
            for pair in args.untrained for mode in UNTRAINED]  # fmt: skip
    for folder in sorted(args.runs.iterdir()):
        if (match := NAME.fullmatch(folder.name)) and (folder / "export").is_dir():
            mode = "both" if match["stage"] == "gcpo" else match["stage"]
            jobs.append((folder.name, str(folder / "export"), mode))
    new = {name for name, spec, _ in jobs
           if name not in parts or parts[name]["of"] != weights(presets.resolve("reasoner", spec).spec)}  # fmt: skip
    pairs = held_out_pairs(args.n, SEED) if new else []
    for name, spec, mode in jobs:
        if name in new:
            parts[name] = measure(spec, mode, pairs, args.k)
            print(f"{name}: {right(parts[name], 'half')}", file=sys.stderr, flush=True)
            if args.json:
                args.json.write_text(json.dumps({"n": args.n, "k": args.k, "parts": parts}) + "\n")
    groups: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    order = {name: i for i, name in enumerate([*(f"untrained_{mode}" for mode in UNTRAINED), *STAGES])}
    split = [(*name.split("-"), name) for name, *_ in jobs]
    for size, stage, seed, name in sorted(split, key=lambda s: (-parts[s[3]]["weights"], order[s[1]], s[2])):
        groups.setdefault((size, stage), {})[int(seed[1:])] = parts[name]
    print("\n".join([*lines(groups), "", *compared(groups)]))
    if args.png:
        draw(groups, args.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
