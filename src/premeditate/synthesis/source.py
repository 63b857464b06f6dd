"""The tasks that data is made of, a shard at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from premeditate.datasets import tasks
from premeditate.datasets.tasks import BadRow, TaskRow
from premeditate.rewards.verified import given
from premeditate.trace import Checklist


def brought(row: TaskRow) -> Checklist | None:
    """The principles that a task brings along: "unparsable" where they are none, None where there are none."""
    found = given(row.meta)
    return None if found is not None and found.status == "scored" and not found.items else found


class Source:
    """`total` tasks; `digest`: SHA-256 of what they say."""

    def __init__(self, rows: Iterable[TaskRow | BadRow], total: int, digest: str) -> None:
        self.total, self.digest = total, digest
        self._rows = rows

    @classmethod
    def of(cls, rows: list[TaskRow]) -> Source:
        """Rows in hand."""
        found = hashlib.sha256()
        for row in rows:
            said = json.dumps([row.id, row.instruction, row.meta], sort_keys=True, default=str)
            found.update(said.encode("utf-8", "replace"))
            for image in row.images:
                found.update(f"{image.mode} {image.size}".encode() + image.tobytes())
        return cls(rows, len(rows), found.hexdigest())

    @classmethod
    def read(cls, path: Path, count: int | None) -> Source:
        """The first `count` rows of a user's list (None: all), of which a shard's pictures are in memory at a time. The
        digest is of the list, not of the pictures that it names. Raises ValueError as `premeditate.datasets.tasks`."""
        total = tasks.count(path)
        if count is not None:
            total = min(total, count)
        return cls(islice(tasks.rows(path), total), total, _digest(path.expanduser()))

    def shards(self, size: int) -> int:
        return -(-self.total // size)

    def size_of(self, shards: Iterable[int], size: int) -> int:
        """The tasks in some shards."""
        return sum(min(size, self.total - number * size) for number in shards)

    def portions(self, size: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[TaskRow | BadRow]]]:
        """(number, rows) of each shard that is wanted, in order. May be asked for once."""
        rows = iter(self._rows)
        for number in range(self.shards(size)):
            if wanted(number):
                yield number, list(islice(rows, size))
            else:
                for _ in islice(rows, size):
                    pass


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    lists = [path] if path.is_file() else [path / name for name in (tasks.FILE, tasks.RISE) if (path / name).is_file()]
    for file in lists[:1] or sorted(path.glob("*.txt")):
        found.update(f"{file.name}\0".encode("utf-8", "replace") + file.read_bytes())
    return found.hexdigest()
