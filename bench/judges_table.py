"""Checklist against interval scores, both from the same model: a table of pairwise accuracy and of noise.

    python bench/judges_table.py [--reasoners micro micro-base] [--n 80] [--seeds 0 1 2] [--repeats 2]
                                 [--json docs/results/verifier-judges.json] [--png docs/results/verifier-judges.png]

Pairs are of the micro world and the exact checker says which edit is better (`premeditate.microworld.pairs`); a seed is
another set of `--n` pairs. A checklist's score is the mean of follow, keep and quality, an interval score the published
sqrt(SC PQ) / 10; both lie in [0, 1]. The checklist is written once per task, greedily, and is the same for all ways;
what that takes is told apart.
Sampled ways are asked `--repeats` times with other seeds: accuracy is that of the first time, the variance is that
between the times. Intervals are 95 %: Wilson's over all seeds' pairs, for variances a bootstrap over pairs.

Two rows show what is left to reach: the checklist with the right questions and answers, and the interval scores that
the model was taught to give (10 less 3 for each wrong cell, 10 less 3 for each that is not sharp), by the checker.

Where two ways are compared, it is on the pairs that both scored, with the judge's ties wrong and with ties half.

With --json, every score is kept there until all are measured, so that a run that was cut off goes on; then the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from premeditate import presets
from premeditate.benchmarks.reward_models.pairwise import Accuracy, accuracy, label
from premeditate.benchmarks.reward_models.repeats import spread
from premeditate.benchmarks.reward_models.run import evaluate
from premeditate.benchmarks.reward_models.seeds import APART
from premeditate.microworld.checker import decode_arrays
from premeditate.microworld.pairs import micro_pairs
from premeditate.microworld.verifier import ExactVerifier
from premeditate.prompts.terse import Terse
from premeditate.reasoners.base import ChatRequest, Completion, Reasoner
from premeditate.rewards.base import Reward, Sample
from premeditate.rewards.checklist import ChecklistVerifier
from premeditate.rewards.checklists.builder import ChecklistBuilder, Subject
from premeditate.rewards.judges.viescore import VIEScore
from premeditate.rewards.verified import VerifiedReward
from premeditate.stats import Rate
from premeditate.trace import Verdict

DRAWS = 2_000
"""Of a bootstrap."""


class Sampled:
    """A reasoner whose greedy answers in words are sampled instead, each request with noise of its own. (The judges'
    own votes have the same seeds for all questions and edits, so their noise is alike.)"""

    def __init__(self, reasoner: Reasoner, temperature: float, seed: int) -> None:
        self.reasoner, self.temperature, self.seed = reasoner, temperature, seed
        self.name, self.prompts = reasoner.name, reasoner.prompts

    async def chat(self, requests: Sequence[ChatRequest]) -> Sequence[Completion]:
        return await self.reasoner.chat([replace(r, temperature=self.temperature, seed=self._of(r)) for r in requests])

    def _of(self, request: ChatRequest) -> int:
        parts = [f"{self.seed} {request.text}".encode(), *(image.tobytes() for image in request.images)]
        return int.from_bytes(hashlib.sha256(b"\0".join(parts)).digest()[:4], "big") >> 1


class Planned:
    """A reasoner that criticises an edit knowing its own plan, as the loop has it, and not the bare instruction."""

    def __init__(self, reasoner: Reasoner) -> None:
        self.reasoner, self.name, self.prompts = reasoner, reasoner.name, reasoner.prompts

    async def chat(self, requests: Sequence[ChatRequest]) -> Sequence[Completion]:
        """Every request is `VIEScore`'s: "critique : INSTRUCTION | prompt : INSTRUCTION"."""
        terse = Terse()
        told = [r.text.removeprefix("critique : ").split(" | prompt : ")[0] for r in requests]
        asked = [replace(r, images=r.images[:1], text=terse.plan(t)) for r, t in zip(requests, told, strict=True)]
        plans = [terse.parse_plan(done.text).steps for done in await self.reasoner.chat(asked)]
        texts = [terse.critique(t, plan or [t]) for t, plan in zip(told, plans, strict=True)]
        return await self.reasoner.chat([replace(r, text=text) for r, text in zip(requests, texts, strict=True)])


class ExactInterval:
    """The interval score that the tiny reasoner was taught to give, without a mistake."""

    name, dimensions = "interval without mistakes", ("overall",)

    async def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        codes, sharp, _ = decode_arrays(np.stack([np.asarray(s.edit.convert("RGB")) for s in samples]))
        target = np.array([s.task.meta["microworld"]["target"] for s in samples])
        parts = [np.maximum(0, 10 - 3 * bad.sum(1)) for bad in (sharp & (codes != target), ~sharp)]
        scores = np.sqrt(parts[0] * parts[1]) / 10
        return [Verdict(status="scored", scores={"overall": float(x)}, verifier=self.name) for x in scores]


class Weighted:
    """A checklist reward that hands on the mean p(yes) of a dimension instead of its share of yes."""

    def __init__(self, reward: Reward) -> None:
        self.reward, self.name, self.dimensions = reward, f"{reward.name}, p(yes)", reward.dimensions

    async def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        return [v.model_copy(update={"scores": v.weighted}) for v in await self.reward.score(samples)]


@dataclass(frozen=True)
class Way:
    """`make(seed)`: the reward. A way without samples says the same each time and is asked once."""

    name: str
    make: Callable[[int], Reward]
    sampled: bool = True


def ways(reasoner: Any, builder: ChecklistBuilder, votes: int, temperature: float) -> list[Way]:
    def checklist(verifier: ChecklistVerifier) -> VerifiedReward:
        return VerifiedReward(verifier, builder=builder)

    at: dict[str, Any] = {"temperature": temperature}
    return [
        Way("checklist without mistakes", lambda seed: VerifiedReward(ExactVerifier()), sampled=False),
        Way("interval without mistakes", lambda seed: ExactInterval(), sampled=False),
        Way("interval, greedy", lambda seed: VIEScore(reasoner), sampled=False),
        Way("interval, greedy, told its own plan", lambda seed: VIEScore(Planned(reasoner)), sampled=False),
        Way("checklist, label probabilities", lambda seed: checklist(ChecklistVerifier(reasoner)), sampled=False),
        Way("checklist, mean p(yes)", lambda seed: Weighted(checklist(ChecklistVerifier(reasoner))), sampled=False),
        Way("interval, 1 sample", lambda seed: VIEScore(Sampled(reasoner, temperature, seed))),
        Way("checklist, 1 sample", lambda seed: checklist(
            ChecklistVerifier(Sampled(reasoner, temperature, seed), probabilities=False))),
        Way(f"interval, mean of {votes}", lambda seed: VIEScore(reasoner, k=votes, seed=seed, **at)),
        Way(f"checklist, {votes} votes", lambda seed: checklist(
            ChecklistVerifier(reasoner, k=votes, seed=seed, probabilities=False, **at))),
    ]  # fmt: skip


def compared_ways(votes: int) -> list[tuple[str, str]]:
    told = "checklist, label probabilities"
    return [
        ("interval, greedy", told),
        ("interval, greedy, told its own plan", told),
        ("interval, 1 sample", "checklist, 1 sample"),
        (f"interval, mean of {votes}", f"checklist, {votes} votes"),
    ]


def write(builder: ChecklistBuilder, n: int, seed: int) -> float:
    """Has the checklists of the pairs written, which the builder then knows. CPU seconds."""
    start = time.process_time()
    asyncio.run(builder.write([Subject((pair.source,), pair.instruction) for pair in micro_pairs(n, seed)]))
    return time.process_time() - start


def measure(way: Way, n: int, seed: int, repeats: int) -> dict[str, Any]:
    """One way on one set of pairs. `scores` [R][n][2]."""
    pairs = micro_pairs(n, seed)
    start = time.process_time()
    found: dict[str, Any] = {"preference": [p.preference for p in pairs], "scores": [], "statuses": {}}
    for repeat in range(repeats if way.sampled else 1):
        checker = ExactVerifier() if repeat == 0 else None
        report = evaluate(way.make(APART * repeat), pairs, checker=checker, data="micro")
        found["scores"].append([row.scores[0] for row in report.rows])
        for status, count in report.statuses.items():
            found["statuses"][status] = found["statuses"].get(status, 0) + count
        if report.agreement:
            found["answers"] = report.agreement["all"].to_json()
    found["cpu_seconds"] = time.process_time() - start
    return found


def right(parts: Sequence[dict[str, Any]], ties: Any = "wrong") -> Accuracy:
    """Of the first repeat."""
    said = [label(*pair) for part in parts for pair in part["scores"][0]]
    return accuracy(said, [p for part in parts for p in part["preference"]], ties)


def noise(parts: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Variance of an edit's score between repeats, its interval, and the share of all variance about the edits."""
    if len(parts[0]["scores"]) < 2:
        return None
    scores = np.concatenate([np.array(part["scores"], dtype=np.float64) for part in parts], axis=1)  # [R, pairs, 2]
    rng = np.random.default_rng(0)
    variance = _variance(scores)
    drawn = [np.nanmean(variance[rng.integers(0, len(variance), len(variance))]) for _ in range(DRAWS)]
    told = spread(scores.reshape(len(scores), -1))
    changed = scores[0] != scores[1]
    both = ~np.isnan(scores[:2]).any(0)
    return {**told.to_json(), "low": float(np.quantile(drawn, 0.025)), "high": float(np.quantile(drawn, 0.975)),
            "changed": float(changed[both].mean())}  # fmt: skip


def _variance(scores: Any) -> Any:
    """Over repeats, NaN for an edit with fewer than two scores."""
    there = ~np.isnan(scores)
    count = there.sum(0)
    mean = np.where(there, scores, 0).sum(0) / np.maximum(count, 1)
    squares = np.where(there, (scores - mean) ** 2, 0).sum(0)
    return np.where(count > 1, squares / np.maximum(count - 1, 1), np.nan)


def against(interval: Sequence[dict[str, Any]], checklist: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy of the checklist less that of the interval scores, on the pairs that both scored. `half`: the same with
    a judge's tie counted as 1/2."""
    gains: list[tuple[float, float]] = []
    for one, other in zip(interval, checklist, strict=True):
        for a, b, truth in zip(one["scores"][0], other["scores"][0], one["preference"], strict=True):
            said = label(*a), label(*b)
            if None not in said:
                halves = [0.5 if x == "tie" else float(x == truth) for x in said]
                gains.append(((said[1] == truth) - (said[0] == truth), halves[1] - halves[0]))
    values, rng = np.array(gains, dtype=np.float64), np.random.default_rng(0)
    drawn = [values[rng.integers(0, len(values), len(values))].mean(0) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    wrong, half = ({"difference": float(values[:, i].mean()), "low": float(low[i]), "high": float(high[i])}
                   for i in range(2))  # fmt: skip
    return {**wrong, "n": len(values), "half": half}


def draw(figures: dict[str, Any], path: Path) -> None:
    """Accuracy (ties half) and variance over repeats of each way of the first reasoner."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in figures if figures[name]["half"]["value"] is not None][::-1]
    figure, (left, right_) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    colours = ["C0" if name.startswith("checklist") else "C1" for name in names]
    for y, (name, colour) in enumerate(zip(names, colours, strict=True)):
        half, noisy = figures[name]["half"], figures[name]["noise"]
        left.plot([100 * half["low"], 100 * half["high"]], [y, y], color=colour)
        left.plot(100 * half["value"], y, "o", color=colour)
        if noisy:
            right_.plot([noisy["low"], noisy["high"]], [y, y], color=colour)
            right_.plot(noisy["variance"], y, "o", color=colour)
        else:
            right_.plot(0, y, "|", color=colour)
    left.set_yticks(range(len(names)), names)
    left.axvline(50, color="grey", linewidth=0.8, linestyle=":")
    left.set_xlabel("pairwise accuracy (ties half), %")
    right_.set_xlabel("variance of an edit's score over repeats")
    for axes in (left, right_):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def summary(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = right(parts)
    counts: dict[str, int] = {}
    for part in parts:
        for status, count in part["statuses"].items():
            counts[status] = counts.get(status, 0) + count
    return {
        "accuracy": found.to_json(), "half": right(parts, "half").to_json(), "seeds": [right([p]).value for p in parts],
        "statuses": counts, "noise": noise(parts), "cpu_seconds": sum(p["cpu_seconds"] for p in parts),
        "answers": Rate(sum(p["answers"]["agree"]["k"] for p in parts), sum(p["answers"]["agree"]["n"] for p in parts)
                        ).to_json() if "answers" in parts[0] else None,
    }  # fmt: skip


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def points(one: dict[str, Any]) -> str:
    return f"{100 * one['difference']:+.1f} [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"


def line(name: str, found: dict[str, Any]) -> str:
    acc, half, spoken = found["accuracy"], found["half"], found["noise"]
    cells = [
        name,
        f"**{percent(acc['value'])}** [{percent(acc['low'])}, {percent(acc['high'])}]",
        ", ".join(map(percent, found["seeds"])),
        percent(half["value"]),
        percent(acc["ties"] / max(1, acc["n"])),
        percent(acc["coverage"]),
        *((f"{spoken['variance']:.4f} [{spoken['low']:.4f}, {spoken['high']:.4f}]", percent(spoken["changed"]),
           f"{spoken['reliability']:.3f}") if spoken else ("0", "0", "1")),
        f"{found['cpu_seconds']:.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def table(figures: dict[str, dict[str, Any]]) -> str:
    """Markdown. `figures[reasoner][way]`: a summary."""
    lines = []
    for spec, found in figures.items():
        pairs = next(iter(found.values()))["accuracy"]["asked"]
        lines += [
            f"`{spec}`, {pairs} pairs:", "",
            "| judge | accuracy, % | each seed | ties half | judge ties, % | coverage, % | variance over repeats "
            "| edits whose score changed, % | reliability | CPU s |",
            "|---" * 10 + "|",
            *(line(name, one) for name, one in found.items()), "",
        ]  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--reasoners", nargs="+", default=["micro", "micro-base"], help="SPECs that both judges use")
    options.add_argument("--n", type=int, default=80, help="pairs of each seed")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--repeats", type=int, default=2, help="of each sampled way")
    options.add_argument("--votes", type=int, default=3)
    options.add_argument("--temperature", type=float, default=0.7)
    options.add_argument("--json", type=Path, help="keep the figures there")
    options.add_argument("--png", type=Path, help="draw those of the first reasoner")
    args = options.parse_args()
    if args.n < 1 or args.repeats < 2:
        options.error("give at least one pair and two repeats")

    import torch

    torch.set_num_threads(1)
    settings = {k: getattr(args, k) for k in ("n", "seeds", "repeats", "votes", "temperature")}
    kept = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    if kept and kept["settings"] != settings:
        options.error(f"{args.json} holds figures of other settings ({kept['settings']}); name another file")
    parts: dict[str, Any] = kept.get("parts", {})
    figures: dict[str, dict[str, Any]] = {}
    compared: dict[str, dict[str, Any]] = {}
    writing: dict[str, float] = {}
    for spec in args.reasoners:
        mine: dict[str, list[dict[str, Any]]] = {}
        reasoner: Any = presets.load_reasoner(spec)
        builder = ChecklistBuilder(reasoner)
        writing[spec] = sum(write(builder, args.n, seed) for seed in args.seeds)
        for way in ways(reasoner, builder, args.votes, args.temperature):
            for seed in args.seeds:
                key = f"{spec} / {way.name} / {seed}"
                if key not in parts:
                    parts[key] = measure(way, args.n, seed, args.repeats)
                    print(f"{key}: {right([parts[key]])}", file=sys.stderr, flush=True)
                    if args.json:
                        args.json.write_text(json.dumps({"settings": settings, "parts": parts}) + "\n")
            mine[way.name] = [parts[f"{spec} / {way.name} / {seed}"] for seed in args.seeds]
            figures.setdefault(spec, {})[way.name] = summary(mine[way.name])
        compared[spec] = {f"{b} - {a}": against(mine[a], mine[b]) for a, b in compared_ways(args.votes)}
    if args.json:
        done = {"settings": settings, "figures": figures, "compared": compared, "cpu_seconds_of_writing": writing}
        args.json.write_text(json.dumps(done, indent=1) + "\n")
    print(table(figures))
    for spec, found in compared.items():
        print(f"`{spec}`, writing the checklists: {writing[spec]:.0f} CPU s\n")
        print("| checklist - interval, points | ties wrong | ties half | pairs |\n|---|---|---|---|")
        for name, one in found.items():
            print(f"| {name} | {points(one)} | {points(one['half'])} | {one['n']} |")
        print()
    if args.png:
        draw(figures[args.reasoners[0]], args.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
