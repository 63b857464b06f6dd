"""The event file of a run: one JSON line per event, appended by one process, read by any number.

A line is whole or it does not count: what a killed writer left behind the last newline is passed over by readers, and
removed by the next writer (or kept, where the event is whole and only its newline is missing).
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import weakref
from array import array
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from premeditate.errors import StoreError
from premeditate.files import write_error
from premeditate.trace import SCHEMA_VERSION, Event, Record

_HEAD = re.compile(rb'\{"trace":"([A-Za-z0-9][A-Za-z0-9._-]{0,127})",')
_CHUNK = 1 << 23  # bytes read at once while the file is indexed
_DAMAGED = "restore the file from a backup, or delete that line"


class Line(Record):
    """One line of the event file: the trace it belongs to, when it was written (seconds since 1970), the event."""

    trace: str
    at: float
    event: Event


def check_version(version: Any, path: Path) -> None:
    """`StoreError` if a run at `path` was written by a newer schema than this one reads."""
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} was written by a newer Premeditate (schema {version}, this one reads up to {SCHEMA_VERSION})",
            "upgrade: pip install -U premeditate",
        )


class EventLog:
    """Index, reader and writer of one event file. Not thread-safe by itself: its owner holds a lock around each call.

    The index notes where each trace's lines lie without parsing them, and looks only at what was added since.
    """

    def __init__(self, path: Path, *, sync: bool) -> None:
        self.path = path
        self._sync = sync
        self._writer: Writer | None = None
        self._forget()

    def _forget(self) -> None:
        # trace id -> offset, length, offset, length, ... of its lines, in as few bytes as a long run wants
        self._spans: dict[str, array[int]] = {}
        self._scanned = 0  # bytes covered by the spans: up to and with the last newline
        self._lines = 0
        self._tail: tuple[str, bytes] | None = None  # a whole event that lacks only its newline

    def refresh(self) -> None:
        """Index what was added. Raises `StoreError` if the file cannot be read or holds a line of no trace."""
        try:
            file = open(self.path, "rb")  # noqa: SIM115 (the with stands below, outside the try)
        except FileNotFoundError:
            self._forget()
            return
        except OSError as error:
            raise StoreError(f"cannot read {self.path}: {error.strerror}", "check its permissions") from error
        with file:
            if os.fstat(file.fileno()).st_size < self._scanned:  # another file took its place
                self._forget()
            file.seek(self._scanned)
            rest = b""
            while chunk := file.read(_CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if (head := _HEAD.match(line)) is None:
                        raise StoreError(f"line {self._lines + 1} of {self.path} is damaged", _DAMAGED)
                    name = head.group(1).decode()
                    if (spans := self._spans.get(name)) is None:
                        spans = self._spans[name] = array("Q")
                    spans.extend((self._scanned, len(line)))
                    self._scanned += len(line) + 1
                    self._lines += 1
        head = _HEAD.match(rest) if _is_whole(rest) else None
        self._tail = (head.group(1).decode(), rest) if head else None

    def ids(self) -> list[str]:
        """Ids of all traces, first written first, as of the last `refresh`."""
        tail = [self._tail[0]] if self._tail and self._tail[0] not in self._spans else []
        return [*self._spans, *tail]

    def __contains__(self, trace_id: str) -> bool:
        return trace_id in self._spans or (self._tail is not None and self._tail[0] == trace_id)

    def read(self, trace_id: str) -> list[Line]:
        """The trace's lines, oldest first, as of the last `refresh`. Raises `StoreError` for a damaged one."""
        raw: list[bytes] = []
        if spans := self._spans.get(trace_id):
            try:
                with open(self.path, "rb") as file:
                    for offset, length in zip(spans[::2], spans[1::2], strict=True):
                        file.seek(offset)
                        raw.append(file.read(length))
            except OSError as error:
                raise StoreError(f"cannot read {self.path}: {error.strerror}", "check its permissions") from error
        if self._tail and self._tail[0] == trace_id:
            raw.append(self._tail[1])
        return [self._parse(trace_id, line) for line in raw]

    def _parse(self, trace_id: str, raw: bytes) -> Line:
        try:
            line = Line.model_validate_json(raw)
        except ValidationError as error:
            try:
                check_version(json.loads(raw)["event"].get("version"), self.path)
            except StoreError:
                raise
            except (ValueError, LookupError, TypeError, AttributeError):
                pass  # not even JSON: damaged, as said below
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise StoreError(
                f"an event of trace {trace_id} in {self.path} is damaged ({where}: {first['msg']})", _DAMAGED
            ) from error
        check_version(getattr(line.event, "version", None), self.path)
        return line

    def open_writer(self) -> Writer:
        """Claim the file for this process; then `refresh` sees a file that ends with a whole line."""
        if self._writer is None:
            self._writer = Writer.of(self.path, sync=self._sync)
        return self._writer

    def close(self) -> None:
        """Let go of the claim (once every log of this process on the same file has)."""
        self._writer = None


def _is_whole(rest: bytes) -> bool:
    # An object cut short is never valid JSON, so valid means that only the newline is missing.
    try:
        return bool(rest) and isinstance(json.loads(rest), dict)
    except ValueError:
        return False


class Writer:
    """The one writer of an event file, shared by all stores of this process that write the same run."""

    _open: weakref.WeakValueDictionary[str, Writer] = weakref.WeakValueDictionary()
    _opening = threading.Lock()

    @classmethod
    def of(cls, path: Path, *, sync: bool) -> Writer:
        """This process's writer of `path`. Raises `StoreError` if another process holds it, else `WriteError`."""
        key = os.path.realpath(path)
        with cls._opening:
            writer = cls._open.get(key)
            if writer is None:
                writer = cls._open[key] = cls(path)
            writer.sync = writer.sync or sync
            return writer

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sync = False
        self.lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            claim = os.open(path.parent / "lock", os.O_RDWR | os.O_CREAT, 0o666)
            # The system frees the claim when the process ends in whatever way, so no stale lock stays behind.
            weakref.finalize(self, os.close, claim)
            _claim(claim, path.parent)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            weakref.finalize(self, os.close, self._file)
            self._mend()
        except OSError as error:
            raise write_error(path, error) from error

    def _mend(self) -> None:
        """Make the file end with a whole line: finish one that lacks its newline, cut off half of one."""
        size = os.fstat(self._file).st_size
        start, rest = size, b""
        while start > 0 and b"\n" not in rest:
            step = min(start, 1 << 16)
            start -= step
            os.lseek(self._file, start, os.SEEK_SET)
            rest = os.read(self._file, step) + rest
        rest = rest[rest.rfind(b"\n") + 1 :]
        if _is_whole(rest):
            self.write(b"\n")
        elif rest:
            os.ftruncate(self._file, size - len(rest))

    def write(self, data: bytes) -> None:
        """Append all of `data`, or nothing and raise `WriteError`."""
        with self.lock:
            before = os.fstat(self._file).st_size
            try:
                done = 0
                while done < len(data):
                    done += os.write(self._file, data[done:])
                if self.sync:
                    os.fsync(self._file)
            except OSError as error:
                os.ftruncate(self._file, before)
                raise write_error(self.path, error) from error


def _claim(handle: int, run: Path) -> None:
    busy = StoreError(f"another process is writing the run at {run}", "wait for it to end, or choose another folder")
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise busy from error
    else:
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise busy from error
