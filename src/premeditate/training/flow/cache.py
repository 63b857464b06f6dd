"""Encodings on disk: what the text encoders and the autoencoder make of each task, computed once.

A folder holds shards of `SHARD` tasks, safetensors files that are named by what they hold: the adapter's identity
(settings, library versions, encoder weights) and the tasks' prompts and pixels. So runs share what they have in common,
whatever else differs; a run that was killed goes on after its last whole shard; and a shard of anything else is never
read by mistake. Tensors are kept as the encoders made them and read where they are needed, memory-mapped.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from premeditate.datasets.tasks import TaskRow, prompt_of
from premeditate.errors import ModelError
from premeditate.files import write_atomic
from premeditate.training.data import DataError
from premeditate.training.flow.adapters.base import FlowAdapter

SHARD = 64
FORMAT = 1
"""Raised when what a shard holds changes."""
_SHOWN = 5

Say = Callable[[str], None]


class EncodingCache(Sequence[Mapping[str, Tensor]]):
    """The encodings of `rows`, by index. `open` makes one."""

    def __init__(self, shards: Sequence[_Shard], count: int) -> None:
        self._shards, self._count = shards, count

    @classmethod
    def open(
        cls,
        folder: Path,
        adapter: FlowAdapter,
        rows: Sequence[TaskRow],
        *,
        say: Say | None = None,
        part: tuple[int, int] = (0, 1),
        wait: Callable[[], None] = lambda: None,
    ) -> EncodingCache:
        """The cache of these tasks in `folder`, which is made if missing. What is not there yet is encoded now; every
        shard is read once and compared with its checksum. `say` gets notices and progress, a line each. `part` (k, n):
        n processes share this work, and `wait` for each other.

        Raises `DataError` for tasks that the adapter cannot encode, and `WriteError`.
        """
        build(folder, adapter, rows, say=say, part=part)
        wait()
        return cls([shard for _, _, shard in _plan(folder, adapter, rows)], len(rows))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        """The encoding of task `index`, read when its parts are; of a slice, a list."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"there are {self._count} encodings, not one at {index}")
        shard, place = divmod(index % self._count, SHARD)
        return _Parts(self._shards[shard], place)


def build(
    folder: Path,
    adapter: FlowAdapter,
    rows: Sequence[TaskRow],
    *,
    say: Say | None = None,
    part: tuple[int, int] = (0, 1),
) -> None:
    """Encodes the tasks that `folder` does not hold yet. `part` (k, n): only every n-th shard from the k-th on, where n
    processes share the work. Errors as for `EncodingCache.open`."""
    tell = say or (lambda line: None)
    missing = []
    for number, some, shard in _plan(folder, adapter, rows):
        if number % part[1] != part[0]:
            continue
        if problem := shard.problem():
            if shard.path.exists():
                tell(f"the cached encodings {shard.path} are {problem}: made again")
            missing.append((some, shard))
    _check(adapter, [row for some, _ in missing for row in some])
    total, done = sum(len(some) for some, _ in missing), 0
    for some, shard in missing:
        shard.write([_encoded(adapter, row) for row in some])
        done += len(some)
        tell(f"encoded {done} of {total} tasks")


def _plan(
    folder: Path, adapter: FlowAdapter, rows: Sequence[TaskRow]
) -> Iterator[tuple[int, Sequence[TaskRow], _Shard]]:
    """Every shard: its number, its tasks and its file."""
    identity = json.dumps([FORMAT, adapter.identity()], sort_keys=True).encode()
    for number, start in enumerate(range(0, len(rows), SHARD)):
        some = rows[start : start + SHARD]
        found = hashlib.sha256(identity)
        for row in some:
            found.update(_digest(row))
        yield number, some, _Shard(folder, found.hexdigest(), len(some))


def _digest(row: TaskRow) -> bytes:
    found = hashlib.sha256(json.dumps([prompt_of(row), [(i.mode, i.size) for i in row.images]]).encode())
    for image in row.images:
        found.update(image.tobytes())
    return found.digest()


def _encoded(adapter: FlowAdapter, row: TaskRow) -> Mapping[str, Tensor]:
    try:
        return adapter.encode(row.images, prompt_of(row))
    except ModelError:
        raise
    except ValueError as error:  # what cannot be seen before the text is encoded
        raise DataError(f"the task {row.id} cannot be encoded: {error}", "") from error


def _check(adapter: FlowAdapter, rows: Sequence[TaskRow]) -> None:
    bad = []
    for row in rows:
        try:
            adapter.check(row.images, prompt_of(row))
        except ValueError as error:
            bad.append(f"{row.id}: {error}")
    if bad:
        more = f" ... and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise DataError(
            f"{len(bad)} tasks cannot be encoded: {' | '.join(bad[:_SHOWN])}{more}", "mend these tasks or take them out"
        )


class _Shard:
    """A file of encodings. `fingerprint`: of what it must hold, hexadecimal."""

    def __init__(self, folder: Path, fingerprint: str, count: int) -> None:
        self.path = folder / f"{fingerprint[:24]}.safetensors"
        self.fingerprint, self.count = fingerprint, count
        self._file: Any = None
        self._names: dict[int, list[str]] = {}

    def problem(self) -> str:
        """Why the file cannot be used, "" where it can. Reads all of it."""
        from safetensors import SafetensorError

        if not self.path.is_file():
            return "missing"
        try:
            said = self.file.metadata() or {}
            if said.get("fingerprint") != self.fingerprint:
                return "of something else"
            tensors = {name: self.file.get_tensor(name) for name in self.file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            return f"damaged ({error})"
        finally:
            self.close()
        return "" if said.get("checksum") == _checksum(tensors) else "damaged (the checksum differs)"

    def write(self, encodings: Sequence[Mapping[str, Tensor]]) -> None:
        from safetensors.torch import save

        tensors = {f"{i}.{name}": part for i, e in enumerate(encodings) for name, part in e.items()}
        said = {"format": "pt", "fingerprint": self.fingerprint, "checksum": _checksum(tensors)}
        write_atomic(self.path, save(tensors, said))

    @property
    def file(self) -> Any:
        if self._file is None:
            from safetensors import safe_open

            self._file = safe_open(self.path, framework="pt")
        return self._file

    def names(self, place: int) -> list[str]:
        if not self._names:
            for key in self.file.keys():  # noqa: SIM118
                number, _, name = key.partition(".")
                self._names.setdefault(int(number), []).append(name)
        return self._names[place]

    def close(self) -> None:
        self._file = None


class _Parts(Mapping[str, Tensor]):
    """One task's encoding in a shard."""

    def __init__(self, shard: _Shard, place: int) -> None:
        self._shard, self._place = shard, place

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._shard.names(self._place):
            raise KeyError(name)
        return self._shard.file.get_tensor(f"{self._place}.{name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._shard.names(self._place))

    def __len__(self) -> int:
        return len(self._shard.names(self._place))


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of all bytes in the order of the names: it finds damage, not forgery."""
    import torch

    found = 0
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].contiguous().view(torch.uint8).numpy(), found)
    return f"{found:08x}"
