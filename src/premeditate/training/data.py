"""What a training run learns from, in which order, and the seeds that go with each place in it.

Every choice is a function of the run's seed and a position (step, group, member), never of what came before, of the
number of devices or of a resume.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from premeditate.attribute import is_attribute, load_attribute
from premeditate.datasets import tasks
from premeditate.datasets.tasks import BadRow, TaskRow, prompt_of
from premeditate.errors import PremeditateError

_SHOWN = 5


class DataError(PremeditateError):
    """Tasks that cannot be trained on."""


def load_rows(spec: str, count: int | None, seed: int) -> list[TaskRow]:
    """The tasks that `spec` names: a folder or file of tasks (`premeditate.datasets.tasks`), of which the first `count`
    are taken (None: all), or "module:function", which is called with (count, seed) and returns at most `count` rows.

    Raises `DataError`, a ValueError with the mend, where there is none, and for rows that are no tasks (a missing
    picture, a prompt that is refused, an id that comes twice): the first of them are listed, and none is left out.
    """
    if count is not None and count < 1:
        raise DataError(f"{count} rows of {spec} are asked for", "ask for at least 1, or null for all of a folder")
    if is_attribute(spec, or_file=True):
        found = called(spec, count, seed, (TaskRow, BadRow))
    else:
        found = list(islice(tasks.rows(Path(spec)), count))
    if not found:
        raise DataError(f"{spec} holds no tasks", "give at least one row")
    seen: set[str] = set()
    bad: list[str] = []
    good: list[TaskRow] = []
    for number, row in enumerate(found, 1):
        problem = row.problem if isinstance(row, BadRow) else _problem(row, number, seen)
        if problem:
            bad.append(problem)
        elif isinstance(row, TaskRow):
            good.append(row)
    if bad:
        more = f" ... and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise DataError(
            f"{len(bad)} of {len(found)} rows of {spec} are no tasks: {' | '.join(bad[:_SHOWN])}{more}",
            "mend these rows or take them out; none is left out silently",
        )
    return good


def called(spec: str, count: int | None, seed: int, kinds: tuple[type, ...]) -> list[Any]:
    """What the function that `spec` names returns for (count, seed): at most `count` rows, each of one of `kinds`.
    Raises `DataError`."""
    if count is None:
        raise DataError(f"{spec} is a function and is not told how many rows to make", "give a count of rows")
    try:
        made = load_attribute(spec)(count, seed)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"the rows of {spec} cannot be loaded ({error})",
            "check module:function, and that Python finds the module (PYTHONPATH)",
        ) from error
    wanted = f"return a list of {kinds[0].__name__}"
    if not isinstance(made, Iterable):
        raise DataError(f"{spec} returned {type(made).__name__}", wanted)
    found = list(made)
    if wrong := next((row for row in found if not isinstance(row, kinds)), None):
        raise DataError(f"{spec} returned a {type(wrong).__name__} among its rows", wanted)
    if len(found) > count:
        raise DataError(f"{spec} returned {len(found)} rows, asked for {count}", "return at most as many as asked for")
    return found


def _problem(row: TaskRow, number: int, seen: set[str]) -> str:
    """Why `row` cannot be trained on, "" where it can."""
    place = f"row {number} ({row.id})"
    if row.id in seen:
        return f"{place}: an earlier row has this id too; give each its own"
    seen.add(row.id)
    if not row.images:
        return f"{place}: it has no picture; give at least one"
    try:
        prompt_of(row)
    except ValueError as error:
        return f"{place}: {error}"
    return ""


def data_hash(rows: Iterable[TaskRow]) -> str:
    """SHA-256 (hex) over the rows in order: ids, prompts, instructions and pixels. It names what a model was trained
    on."""
    found = hashlib.sha256()
    for row in rows:
        parts: list[bytes] = [row.id.encode(), prompt_of(row).encode(), row.instruction.encode()]
        for image in row.images:
            parts += [f"{image.mode} {image.size}".encode(), image.tobytes()]
        found.update(f"{len(parts)};".encode())
        for part in parts:
            found.update(f"{len(part)}:".encode())
            found.update(part)
    return found.hexdigest()


class Order:
    """Which of `n` rows each step trains on: `groups` of them, a function of (seed, step) only.

    The rows are passed through in a new order each time, and every pass holds every row once. A step never holds a row
    twice, also where one pass ends and the next begins inside of it, unless there are fewer rows than groups.
    """

    def __init__(self, n: int, groups: int, seed: int) -> None:
        if n < 1 or groups < 1:
            raise ValueError(f"there are {n} rows for {groups} groups in a step; give at least one of each")
        self.n, self.groups, self.seed = n, groups, seed
        self._known: tuple[int, list[int]] = (-1, [])

    def at(self, step: int) -> list[int]:
        """The rows of `step` (0, 1, ...), as `groups` indices in 0..n-1."""
        if step < 0:
            raise ValueError(f"steps count from 0, not {step}")
        first = step * self.groups
        return [self._pass(place // self.n)[place % self.n] for place in range(first, first + self.groups)]

    def _pass(self, number: int) -> list[int]:
        """The order of pass `number`: a shuffle, in which the rows that the step in progress has had already stand
        behind that step's end."""
        if self._known[0] == number:
            return self._known[1]
        had = number * self.n % self.groups
        order = self._shuffled(number)
        if had and self.n >= self.groups:
            head, before = self.groups - had, set(self._end(number - 1, had))
            fresh = [row for row in order if row not in before][:head]
            taken = set(fresh)
            order = fresh + [row for row in order if row not in taken]
        self._known = (number, order)
        return order

    def _end(self, number: int, count: int) -> list[int]:
        """The last `count` rows of pass `number`."""
        # With so many rows the mend at a pass's beginning never reaches its end: no earlier pass has to be known.
        far = self.n >= 3 * self.groups
        if far:
            return self._shuffled(number)[-count:]
        start = self._known[0] + 1 if self._known[0] <= number else 0
        for earlier in range(start, number + 1):
            self._pass(earlier)
        return self._pass(number)[-count:]

    def _shuffled(self, number: int) -> list[int]:
        order = list(range(self.n))
        random.Random(_digest(self.seed, "order", number)).shuffle(order)
        return order


def sample_seed(seed: int, step: int, group: int, member: int, purpose: str) -> int:
    """A seed in 0..2^63-1 for what is drawn at one place of a run: the same wherever and whenever it is drawn.
    `purpose` ("noise", "window", ...) keeps draws at the same place apart."""
    return _digest(seed, step, group, member, purpose)


def _digest(*parts: Any) -> int:
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
