"""How many micro-world tasks a minute: all of them batched, against one by one, in the same process.

    python bench/throughput.py --n 1000 --json

Both ways run the same engine, strategy and verifier on the same models; one by one means a single task in flight and
batches of one. The models are warm before either is timed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time

from premeditate.api import load_parts
from premeditate.benchmarks.microworld import to_task
from premeditate.engine.memory import MemoryStore
from premeditate.engine.runner import Engine, Limits
from premeditate.engine.strategies import STRATEGIES, Settings
from premeditate.microworld.tasks import MicroTask, sample_tasks

SINGLE = Limits(edits=1, chats=1, samples=1, tasks=1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--n", type=int, default=1000, help="tasks in the batched run (default 1000)")
    options.add_argument("--single", type=int, default=60, help="of these, tasks that are run one by one (default 60)")
    options.add_argument("--strategy", choices=list(STRATEGIES), default="plan")
    options.add_argument("--editor", default="micro")
    options.add_argument("--reasoner", default="micro")
    options.add_argument("--verifier", default="reasoner")
    options.add_argument("--chains", type=int, default=1)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--edits", type=int, default=Limits().edits, help="largest batch for the editor")
    options.add_argument("--chats", type=int, default=Limits().chats, help="largest batch for the reasoner")
    options.add_argument("--samples", type=int, default=Limits().samples, help="largest batch for the verifier")
    options.add_argument("--json", action="store_true", help="print one JSON object")
    args = options.parse_args()
    if args.n < 1 or args.single < 1:
        options.error("--n and --single must be at least 1")

    editor, reasoner, verifier = load_parts(args.editor, args.reasoner, args.verifier)
    settings = Settings(strategy=args.strategy, chains=args.chains, seed=args.seed)
    batched = Limits(edits=args.edits, chats=args.chats, samples=args.samples)

    def seconds(tasks: list[MicroTask], limits: Limits) -> tuple[float, float]:
        """Wall and processor seconds."""
        store = MemoryStore()
        ready = [to_task(task, store) for task in tasks]
        engine = Engine(editor, reasoner, verifier, store, settings, limits=limits)
        wall, cpu = time.perf_counter(), time.process_time()
        traces = asyncio.run(engine.run(ready))
        spent = time.perf_counter() - wall, time.process_time() - cpu
        failed = [trace.error for trace in traces if trace.error]
        if failed:
            raise SystemExit(f"{len(failed)} of {len(tasks)} tasks failed: {failed[0]}")
        return spent

    tasks = list(sample_tasks(args.n, args.seed))
    warm = list(sample_tasks(32, args.seed + 1))
    seconds(warm, batched)
    seconds(warm[:3], SINGLE)
    # Half of the single tasks before and half after, so that a machine that slows down or speeds up favours neither.
    few = tasks[: args.single]
    half = (len(few) + 1) // 2
    before = seconds(few[:half], SINGLE)
    wall, cpu = seconds(tasks, batched)
    after = seconds(few[half:], SINGLE) if few[half:] else (0.0, 0.0)
    alone = (before[0] + after[0]) / len(few)
    result = {
        "n": args.n,
        "strategy": args.strategy,
        "editor": args.editor,
        "reasoner": args.reasoner,
        "verifier": args.verifier,
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "seconds_per_task": round(wall / args.n, 4),
        "one_by_one_tasks": len(few),
        "one_by_one_seconds_per_task": round(alone, 4),
        "one_by_one_cpu_seconds_per_task": round((before[1] + after[1]) / len(few), 4),
        "times_faster": round(alone / (wall / args.n), 2),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"{args.n} tasks batched: {wall:.1f} s, {wall / args.n:.4f} s per task ({cpu:.1f} processor seconds)")
    print(f"one by one ({len(few)} tasks): {alone:.4f} s per task; batched is {result['times_faster']} times faster")


if __name__ == "__main__":
    main()
