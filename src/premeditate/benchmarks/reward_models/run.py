"""Asks a reward about pairs of edits; what it said becomes a `Report`: how often it prefers what people (or the exact
checker) prefer."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from PIL import Image

from premeditate.attribute import is_attribute, load_attribute
from premeditate.benchmarks.reward_models.pairwise import TIES
from premeditate.benchmarks.reward_models.protocols import Four, four_label
from premeditate.benchmarks.reward_models.report import Report
from premeditate.benchmarks.reward_models.row import Row
from premeditate.datasets.preferences import LABEL, BadPair, Pair, PairsError, read
from premeditate.reasoners.base import close
from premeditate.rewards.base import Reward, Sample, Verifier
from premeditate.rewards.panel import Entry, Panel
from premeditate.trace import Checklist, Task, Verdict

__all__ = ["PAIRS", "TIES", "Report", "Row", "check_score", "evaluate", "is_made", "load_pairs"]

PAIRS = {"micro": "premeditate.microworld.pairs:micro_pairs"}
"""Pairs that are made: "module:function", called with (n, seed)."""
Key = tuple[str, ...]


def load_pairs(
    data: str, n: int | None, seed: int = 0, *, root: Path | None = None, format: str | None = None
) -> Iterable[Pair | BadPair]:
    """At most `n` pairs of `data`: a name in `PAIRS`, "module:function", or a file (`premeditate.datasets.preferences`,
    where `seed` decides which pairs are turned round; of a comparison of several edits come all pairs or none, but for
    the first, which comes whole). Raises `PairsError`."""
    if not is_made(data):
        return _whole(read(Path(data), root=root, format=format, mix=seed), n)
    told = ["root"] * (root is not None) + ["format"] * (format is not None)
    if told:
        raise PairsError(f"the pairs {data} are made, and take no {' and no '.join(told)}", "leave that out")
    try:
        make = load_attribute(PAIRS.get(data, data))
    except (ImportError, AttributeError) as error:
        raise PairsError(f"the pairs {data} cannot be loaded ({error})", "check module:function") from error
    made: Iterable[Pair | BadPair] = make(1000 if n is None else n, seed)
    return made


def _whole(pairs: Iterable[Pair | BadPair], n: int | None) -> Iterator[Pair | BadPair]:
    """The first `n`, without the group that they would cut."""
    count = 0
    for _, numbered in groupby(enumerate(pairs), lambda item: item[1].group or item[0]):
        part = [pair for _, pair in numbered]
        if n is not None and count and count + len(part) > n:
            return
        yield from part
        count += len(part)


def is_made(data: str) -> bool:
    """Whether `data` is a name in `PAIRS` or "module:function", and no file."""
    return data in PAIRS or is_attribute(data, or_file=True)


def check_score(score: str | Mapping[str, str] | None, dimensions: Iterable[str], *, whole: bool = True) -> None:
    """Raises ValueError where a mapping from dimensions of pairs says nothing of one of `dimensions`, and, where these
    are the `whole` of them, for one that no pair has."""
    have = set(dimensions)
    if score is None or isinstance(score, str) or not have:
        return
    if "" in have and "" not in score:
        raise ValueError("the pairs do not say what they are about; give one score for all: --score NAME")
    if lacking := sorted(have - set(score)):
        raise ValueError(
            f"some pairs are about {lacking[0]!r}, and nothing says which score they compare; "
            f"add --score {lacking[0]}=NAME"
        )
    if whole and (unknown := sorted(set(score) - have)):
        raise ValueError(f"no pair is about {unknown[0]!r}; they are about {', '.join(sorted(have))}")


def evaluate(
    reward: Reward | Callable[[int], Reward], pairs: Iterable[Pair | BadPair], *,
    score: str | Mapping[str, str] | None = None, repeats: int = 1, batch: int = 32, timeout: float = 600.0,
    checker: Verifier | None = None, data: str = "", on_pair: Callable[[int], None] | None = None,
) -> Report:  # fmt: skip
    """Has the edits of all pairs scored, `batch` pairs at a time; an edit that is in several pairs, once.

    `reward`: or what makes the one of each repeat (0, 1, ...), say with other seeds: a judge that samples with the same
    ones every time says the same again, and shows no noise. `score`: which of the reward's dimensions is compared; a
    mapping says it for every dimension of the pairs ({"consistency": "C"}); None: the mean of all, missing where one
    is. `repeats`: every edit is scored so often, with the pairs turned round in every other one. `timeout`: seconds for
    a call. `checker`: answers the same questions as the judge where that answers any, to be compared with. `on_pair`:
    told how many pairs were done.

    Raises `ModelError`, ValueError for a dimension that there is not, for one of the pairs of which `score` says
    nothing and for less than one repeat, and what the reward raises against its contract (`RewardError`).
    """
    if repeats < 1 or batch < 1:
        raise ValueError(f"{repeats} repeats in batches of {batch} cannot be; give at least 1 of each")
    score = score or None
    judge = _Turns([reward] if isinstance(reward, Reward) else [reward(repeat) for repeat in range(repeats)])
    for wanted in [score] if isinstance(score, str) else (score or {}).values():
        if wanted not in judge.dimensions:
            raise ValueError(f"the reward has no dimension {wanted!r}; it has {', '.join(judge.dimensions)}")
    if isinstance(pairs, Sequence):
        check_score(score, [one.dimension for one in pairs if isinstance(one, Pair)])
    asker = _Asker(judge, score, repeats, timeout, checker)
    start = time.perf_counter()
    rows: list[Row] = []
    bad: list[BadPair] = []
    every = iter(pairs)
    with asker.panel:
        while part := list(islice(every, batch)):
            bad += [one for one in part if isinstance(one, BadPair)]
            good = [one for one in part if isinstance(one, Pair)]
            check_score(score, [one.dimension for one in good], whole=False)
            rows += asker.rows(good)
            if on_pair is not None:
                on_pair(len(part))
    settings = {"reward": judge.name, "data": data, "score": score or "mean of " + ", ".join(judge.dimensions),
                "repeats": repeats, "reseeded": judge.differ}  # fmt: skip
    spent = time.perf_counter() - start
    return Report(settings, tuple(rows), tuple(bad), tuple(asker.answers), spent, asker.reasons)


class _Turns:
    """The rewards of all repeats as one, so that what they share stays in one thread. `turn`: whose it is."""

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self.rewards, self.turn = rewards, 0
        self.name, self.dimensions = rewards[0].name, tuple(rewards[0].dimensions)
        if any(tuple(one.dimensions) != self.dimensions for one in rewards):
            raise ValueError("the rewards of the repeats have different dimensions; make the same one with other seeds")
        self.differ = any(one is not rewards[0] for one in rewards)
        self.groupwise, self.concurrent, self.parallel, self.max_batch = (
            getattr(rewards[0], name, None) for name in ("groupwise", "concurrent", "parallel", "max_batch")
        )

    def score(self, samples: Sequence[Sample]) -> Coroutine[Any, Any, Sequence[Verdict]]:
        return self.rewards[self.turn % len(self.rewards)].score(samples)

    async def aclose(self) -> None:
        for one in {id(reward): reward for reward in self.rewards}.values():
            await close(one)


class _Asker:
    def __init__(self, reward: _Turns, score: Any, repeats: int, timeout: float, checker: Verifier | None) -> None:
        self.reward, self.panel = reward, Panel([Entry(reward, timeout=timeout)])
        self.score, self.repeats, self.checker = score, repeats, checker
        self.groupwise = bool(reward.groupwise)
        self.known: list[dict[Key, Verdict]] = [{} for _ in range(repeats)]
        self.numbers: dict[Key, int] = {}
        self.pairs = 0
        self.answers: list[tuple[Verdict, Verdict]] = []
        self.reasons: Counter[str] = Counter()

    def rows(self, pairs: Sequence[Pair]) -> list[Row]:
        places = range(self.pairs, self.pairs + len(pairs))
        self.pairs += len(pairs)
        keys = [self._keys(pair, str(place)) for pair, place in zip(pairs, places, strict=True)]
        for pair in keys:
            for key in pair:
                self.numbers.setdefault(key, len(self.numbers))
        found = [self._said(pairs, keys, places, repeat) for repeat in range(self.repeats)]
        return [
            Row(p.id, p.kind, p.dimension, p.group, p.preference,
                tuple((self._value(said[i][0], p), self._value(said[i][1], p)) for said in found),
                tuple((said[i][0].status, said[i][1].status) for said in found),
                (self.numbers[keys[i][0]], self.numbers[keys[i][1]]), p.names,
                hashlib.sha256(f"{p.instruction}\0{_digest(p.source)}".encode()).hexdigest()[:16], _four(p))
            for i, p in enumerate(pairs)
        ]  # fmt: skip

    def _said(
        self, pairs: Sequence[Pair], keys: Sequence[tuple[Key, Key]], places: Sequence[int], repeat: int
    ) -> list[tuple[Verdict, Verdict]]:
        """The verdicts on both edits of each pair. Kept without the answers."""
        known = self.known[repeat]
        wanted: dict[Key, Sample] = {}
        for pair, named, place in zip(pairs, keys, places, strict=True):
            shown = list(zip(named, (pair.first, pair.second), strict=True))
            for key, edit in shown[::-1] if repeat % 2 else shown:
                if key not in known and key not in wanted:
                    meta = {key: value for key, value in pair.meta.items() if key != LABEL}  # no judge is told
                    task = Task(id=pair.group or pair.id, images=(), instruction=pair.instruction, meta=meta)
                    # Ids need not be unique, and what is of one group is judged together.
                    wanted[key] = Sample(task, pair.source, edit, group=f"{pair.id}#{place}")
        self.reward.turn = repeat
        verdicts = [row[0] for row in self.panel.score(list(wanted.values())).verdicts]
        if repeat == 0:
            self._compare(list(wanted.values()), verdicts)
        for key, verdict in zip(wanted, verdicts, strict=True):
            known[key] = verdict.model_copy(update={"answers": ()})
            if verdict.status != "scored":
                self.reasons[" ".join((verdict.reason or verdict.status).split())[:200]] += 1
        return [(known[one], known[other]) for one, other in keys]

    def _keys(self, pair: Pair, place: str) -> tuple[Key, Key]:
        """What the two edits are known by. Published names are not unique, so that the pictures belong to them; of an
        edit that is judged beside another one, the scores hold for that pair only."""
        if self.groupwise or not all(pair.names):
            return (place, "first"), (place, "second")
        told = pair.instruction, _digest(pair.source)
        return (pair.names[0], *told, _digest(pair.first)), (pair.names[1], *told, _digest(pair.second))

    def _compare(self, samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> None:
        """The checker's answers to the questions that the judge answered."""
        import asyncio

        asked = [(s, v) for s, v in zip(samples, verdicts, strict=True) if v.answers]
        if self.checker is None or not asked:
            return
        again = [
            # Without the task's own truth: the checker is to answer the judge's questions, not the right ones.
            Sample(s.task.model_copy(update={"meta": {}}), s.source, s.edit, _checklist(v))
            for s, v in asked
        ]
        for (_, verdict), truth in zip(asked, asyncio.run(_verify(self.checker, again)), strict=True):
            if len(truth.answers) == len(verdict.answers):
                self.answers.append((verdict, truth))

    def _value(self, verdict: Verdict, pair: Pair) -> float | None:
        wanted = self.score[pair.dimension] if isinstance(self.score, Mapping) else self.score
        if wanted is not None:
            return verdict.scores.get(wanted)
        dimensions = self.reward.dimensions
        if any(dimension not in verdict.scores for dimension in dimensions):
            return None
        return sum(verdict.scores[d] for d in dimensions) / len(dimensions)


def _four(pair: Pair) -> Four | None:
    """What people said of a pair, where they told good ties from bad ones."""
    found = four_label(str(pair.meta.get(LABEL, "")))
    if pair.preference != "tie":  # the pair may have been turned round
        return None if found is None else "A>B" if pair.preference == "first" else "B>A"
    return found if found in ("A=B=Good", "A=B=Bad") else None


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()


def _checklist(verdict: Verdict) -> Checklist:
    return Checklist(items=tuple(answer.item for answer in verdict.answers))


async def _verify(checker: Verifier, samples: Sequence[Sample]) -> Sequence[Verdict]:
    return await checker.verify(samples)
