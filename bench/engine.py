"""The engine against backends of fixed latency on loopback: is the hardware behind it busy, and nothing wasted?

    python bench/engine.py            every figure, about 10 minutes
    python bench/engine.py --quick    the same with fewer calls, ends within 50 s
    python bench/engine.py --json     one JSON object (with either)

Prints a table; the last line sums up, and the exit status is 1 where a figure is missed. Engine and adapters are the
real ones over HTTP (`premeditate.editors.openai_images`, `premeditate.reasoners.openai_chat`); the backends
(`backends.py`) run in another process. Wall-clock figures are of scheduling, with latencies that dwarf this process's
own work; `overhead` is the process's CPU time, one thread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

from backends import SIDE, Backend, running
from PIL import Image

from premeditate.editors.openai_images import OpenAIImagesEditor
from premeditate.engine.memory import MemoryStore, Store
from premeditate.engine.pool import Policy
from premeditate.engine.runner import Engine
from premeditate.engine.strategies import Settings
from premeditate.engine.walk import lasting
from premeditate.reasoners.base import ChatRequest
from premeditate.reasoners.openai_chat import OpenAIChatReasoner
from premeditate.store import RunStore
from premeditate.trace import Task, Trace


def tasks(store: Store, n: int) -> Iterator[Task]:
    ref = store.put_image(Image.new("RGB", (SIDE, SIDE), "white"))
    for i in range(n):
        yield Task(id=f"t{i:05d}", images=(ref,), instruction=f"change number {i}")


def engine(editors: list[str], critic: str, store: Store, settings: Settings, policy: Policy) -> Engine:
    ends: Any = [OpenAIImagesEditor(f"{u}/v1", dialect="vllm-omni", model="stand-in", size=SIDE) for u in editors]
    critics: Any = [OpenAIChatReasoner(f"{critic}/v1", model="stand-in")]
    return Engine(ends, critics, None, store, settings, policy=policy)


def timed(run: Engine, store: Store, n: int) -> tuple[list[Trace], float]:
    async def main() -> tuple[list[Trace], float]:
        for model in (run.editor, run.reasoner):
            await model.prepare()  # what a server honours is asked once per server, not once per edit
        began = time.perf_counter()
        traces = await run.run(tasks(store, n))
        return traces, time.perf_counter() - began

    return asyncio.run(main())


CRITIC = Backend("critic", lanes=64)
DIRECT = Settings(strategy="direct")


def think(rounds: int) -> Settings:
    """As EditThinker runs: the first edit is made with the instruction as it is."""
    return Settings(strategy="think-while-edit", max_rounds=rounds, first="instruction")


Row = dict[str, Any]


def row(name: str, figure: float, target: str, reached: bool, **more: Any) -> Row:
    return {"name": name, "figure": round(figure, 3), "target": target, "reached": bool(reached), **more}


def ratio(name: str, editors: list[Backend], rate: float, n: int, most: float, extra: Callable[[float], float]) -> Row:
    """`rate`: edits per second of all backends together; `extra(n)`: the ideal seconds where that is not constant."""
    with running(*editors, CRITIC) as backends:
        store = MemoryStore()
        traces, wall = timed(engine(backends.urls[:-1], backends.urls[-1], store, DIRECT, Policy()), store, n)
        ideal = extra(n) if extra(n) else n / rate
        done = sum(trace.finished and not trace.error for trace in traces)
        executed = [s["executed"] for s in backends.stats()[:-1]]
    reached = wall <= most * ideal and done == n
    return row(name, wall / ideal, f"<= {most}", reached, wall=wall, ideal=ideal, lost=n - done, executed=executed)


def dispatch(quick: bool) -> Iterator[Row]:
    """1. Four endpoints of capacity 1; one of them four times slower; one that dies half-way."""
    n, seconds = (80, 0.2) if quick else (320, 0.5)
    four = [Backend(f"editor {i}", seconds) for i in range(4)]
    silent = [Backend(f"editor {i}", seconds, says=False) for i in range(4)]
    none = lambda n: 0.0  # noqa: E731
    yield ratio("4 equal endpoints", four, 4 / seconds, n, 1.05, none)
    yield ratio("4 equal, capacity learnt", silent, 4 / seconds, n, 1.05, none)
    slow = [*four[:3], Backend("slow", 4 * seconds)]
    yield ratio("one 4x slower", slow, 3.25 / seconds, n, 1.10, none)
    dies = n // 8
    mortal = [*four[:3], Backend("mortal", seconds, dies_after=dies)]
    yield ratio("one dies half-way", mortal, 0, n, 1.10, lambda n: dies * seconds + (n - 4 * dies) * seconds / 3)


def overload(quick: bool) -> Iterator[Row]:
    """2. 64 tasks x 2 rounds at once, capacity 4: sent together, they would wait longer than the time-out."""
    seconds, timeout = (0.2, 2.0) if quick else (0.5, 5.0)
    n, needed = 64, 128
    with running(Backend("editor", seconds, lanes=4, keys=False), CRITIC) as backends:
        store = MemoryStore()
        run = engine([backends.urls[0]], backends.urls[1], store, think(2), Policy(timeout=timeout))
        traces, wall = timed(run, store, n)
        executed = backends.stats()[0]["executed"]
    right = all(t.finished and not t.error and len(t.chains[0].rounds) == 2 for t in traces)
    yield row("overload: edits run / needed", executed / needed, "== 1", executed == needed and right, wall=wall)
    rate = needed * seconds / 4 / wall
    yield row("overload: throughput / capacity", rate, ">= 0.95", rate >= 0.95)


def overlap(quick: bool) -> Iterator[Row]:
    """3. A critic that takes 0.8 of the editor's time, 64 tasks x 4 rounds."""
    seconds, lanes = (0.26, 6) if quick else (0.5, 8)
    critic = Backend("critic", 0.8 * seconds, lanes)
    with running(Backend("editor", seconds, lanes), critic) as backends:
        store = MemoryStore()
        _, wall = timed(engine([backends.urls[0]], backends.urls[1], store, think(4), Policy()), store, 64)
        stats = backends.stats()[0]
    busy = stats["busy"] / (lanes * wall)
    yield row("busier backend utilised", busy, ">= 0.95", busy >= 0.95, wall=wall, edits=stats["executed"])


def peer(quick: bool) -> Iterator[Row]:
    """EditThinker's own case: 64 tasks x 5 rounds, 4 endpoints with 2 GPUs each, an edit in 1 s, a critique in 0.3 s.
    Its driver, which sends every second call to the same endpoint, took 65.3 s where 40 s are ideal."""
    if quick:
        return
    editors = [Backend(f"editor {i}", 1.0, lanes=2) for i in range(4)]
    with running(*editors, Backend("critic", 0.3, lanes=64)) as backends:
        store = MemoryStore()
        _, wall = timed(engine(backends.urls[:4], backends.urls[4], store, think(5), Policy()), store, 64)
        executed = sum(s["executed"] for s in backends.stats()[:4])
    yield row("EditThinker's case: wall / ideal", wall / 40, "<= 1.05", wall <= 42 and executed == 320, wall=wall)


def overhead(quick: bool) -> Iterator[Row]:
    """4. Backends without latency: rounds per CPU second of this process, and its memory over many tasks."""
    from premeditate.editors.callable import CallableEditor
    from premeditate.reasoners.callable import CallableReasoner

    white = Image.new("RGB", (SIDE, SIDE), "white")
    said = json.dumps({"problem": "p", "semantic": 5, "quality": 5, "satisfied": False, "base": "original",
                       "steps": ["again"]})  # fmt: skip

    async def edit(image: Image.Image, prompt: str) -> Image.Image:
        return white

    async def chat(request: ChatRequest) -> str:
        return said

    def memory() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    n, first = (600, 100) if quick else (10_000, 1_000)
    with tempfile.TemporaryDirectory() as folder, RunStore(Path(folder) / "run", sync=False) as store:
        run = Engine(CallableEditor(edit), CallableReasoner(chat), None, store, think(2))

        async def main() -> tuple[float, int, int]:
            began, seen, early = time.process_time(), 0, 0
            async for _ in run.stream(tasks(store, n)):
                seen += 1
                if seen == first:
                    early = memory()
            return time.process_time() - began, early, memory()

        spent, early, late = asyncio.run(main())
    rate = 2 * n / spent
    yield row("own overhead, rounds/s, in process", rate, ">= 200", rate >= 200, tasks=n, cpu_seconds=spent)
    grown = (late - early) / 2**20
    limit = 32.0
    yield row(f"memory grown, tasks {first} to {n}, MiB", grown, f"<= {limit:g}", grown <= limit)
    rounds = 100 if quick else 2000
    with running(Backend("editor", lanes=64), CRITIC) as backends:
        memory_store = MemoryStore()
        over = engine([backends.urls[0]], backends.urls[1], memory_store, think(2), Policy())
        began = time.process_time()
        timed(over, memory_store, rounds // 2)
        rate = rounds / (time.process_time() - began)
    yield row("own overhead, rounds/s, over HTTP", rate, "-", True, note="an edit and a critique over HTTP a round")


def one_run(run: Path, editor: str, critic: str, n: int) -> None:
    """What is killed: a run that goes on where it was cut off."""
    with RunStore(run, sync=False) as store:
        settings = Settings(strategy="best-of-n+think-while-edit", max_rounds=3, chains=2)
        job = engine([editor], critic, store, settings, Policy())
        asyncio.run(job.run(tasks(store, n)))


def killed(quick: bool) -> Iterator[Row]:
    """5. Runs that are killed (SIGKILL) at random moments until they end, against one that is not."""
    runs, n = (1, 6) if quick else (100, 6)
    rounds_needed = n * 2 * 3
    rng, kills = random.Random(0), 0
    lost = doubled = different = wasted = 0
    with tempfile.TemporaryDirectory() as folder:
        expected: list[dict[str, Any]] = []
        for i in range(-1, runs):
            with running(Backend("editor", 0.04, lanes=4), Backend("critic", 0.02, lanes=8)) as backends:
                place = Path(folder) / f"run{i}"
                command = [sys.executable, __file__, "--one-run", str(place), *backends.urls, str(n)]
                while True:
                    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                    try:
                        # The first run, which shows what is right, is left alone. Starting takes a second or so.
                        if i >= 0:
                            until_it_writes(place, process)
                        process.wait(None if i < 0 else rng.uniform(0.0, 0.5))
                    except subprocess.TimeoutExpired:
                        process.send_signal(signal.SIGKILL)
                        kills += 1
                    _, words = process.communicate()
                    if process.returncode == 0:
                        break
                    if process.returncode != -signal.SIGKILL:
                        raise SystemExit(f"the run failed by itself: {words.decode()[-500:]}")
                executed = backends.stats()[0]["executed"]
            traces = [lasting(t) for t in RunStore.open(place)]
            traces.sort(key=lambda t: str(t["id"]))
            if i < 0:
                expected = traces
                continue
            have = sum(len(chain["rounds"]) for t in traces for chain in t["chains"])
            lost += max(0, rounds_needed - have)
            doubled += max(0, have - rounds_needed)
            different += traces != expected
            wasted += executed - rounds_needed
    good = not (lost or doubled or different or wasted)
    yield row("killed runs: rounds lost + doubled", lost + doubled, "== 0", good, runs=runs, kills=kills,
              traces_that_differ=different, edits_made_twice=wasted)  # fmt: skip


def until_it_writes(place: Path, process: subprocess.Popen[bytes]) -> None:
    """Returns when the run has written something or has ended, so that kills fall on work and not on imports."""
    events, begun = place / "events.jsonl", time.time()
    before = events.stat().st_size if events.exists() else 0
    while time.time() - begun < 30 and process.poll() is None:
        if events.exists() and events.stat().st_size > before:
            break
        time.sleep(0.005)


def storm(quick: bool) -> Iterator[Row]:
    """6. A tenth each of 429, 500, hang, reset and garbage, from every backend."""
    n = 16 if quick else 400
    faults = dict.fromkeys(("429", "500", "hang", "reset", "garbage"), 0.1)
    editors = [Backend(f"editor {i}", 0.02, lanes=8, faults=faults, seed=i) for i in range(2)]
    # The storm begins when the critic was asked what it honours.
    critic = Backend("critic", 0.02, lanes=16, faults=faults, calm=10, seed=9)
    with running(*editors, critic) as backends:
        store = MemoryStore()
        policy = Policy(timeout=0.5, attempts=8, timeouts=3, failures=8, cool=0.2, backoff=0.02)
        traces, wall = timed(engine(backends.urls[:2], backends.urls[2], store, think(2), policy), store, n)
    status = Counter(trace.status for trace in traces)
    # A critic that could not be had must never count as satisfied, and an edit that failed never as made.
    wrong = [
        t for t in traces
        for chain in t.chains for past in chain.rounds
        if past.critique is not None and past.critique.status != "scored" and past.critique.satisfied
    ]  # fmt: skip
    ended = sum(t.finished and (t.selection is not None) != bool(t.error) for t in traces)
    unheard = sum(p.critique is not None and p.critique.status == "unavailable"
                  for t in traces for c in t.chains for p in c.rounds)  # fmt: skip
    good = len(traces) == n == ended and not wrong
    yield row("fault storm: tasks with a right status", ended / n, "== 1", good, tasks=n, wall=wall,
              status=dict(status), critiques_unavailable=unheard)  # fmt: skip


PARTS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "dispatch": dispatch, "overload": overload, "overlap": overlap, "peer": peer, "overhead": overhead,
    "killed": killed, "storm": storm,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=PARTS, nargs="*", default=list(PARTS))
    parser.add_argument("--one-run", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_run:
        place, editor, critic, n = options.one_run
        one_run(Path(place), editor, critic, int(n))
        return 0
    rows: list[Row] = []
    for name in options.only:
        for found in PARTS[name](options.quick):
            rows.append(found)
            if not options.json:
                more = {k: v for k, v in found.items() if k not in ("name", "figure", "target", "reached")}
                words = ", ".join(f"{k} {round(v, 2) if isinstance(v, float) else v}" for k, v in more.items())
                mark = "ok" if found["reached"] else "MISSED"
                print(f"{found['name']:<42} {found['figure']:>9} {found['target']:>8}  {mark:<7} {words}", flush=True)
    missed = [found["name"] for found in rows if not found["reached"]]
    if options.json:
        print(json.dumps({"quick": options.quick, "rows": rows, "missed": missed}))
    else:
        print(f"{len(rows) - len(missed)} of {len(rows)} figures reached" + (f"; missed: {missed}" if missed else ""))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
