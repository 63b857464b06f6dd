"""A run on disk: an append-only file of events and a folder of images named by their content.

    RUN/run.json                    schema, when it was created, settings, versions of the libraries
    RUN/events.jsonl                one line per event: {"trace": id, "at": seconds since 1970, "event": {...}}
    RUN/images/ab/abcd...png        an image, named by the SHA-256 of its bytes
    RUN/lock                        held by the one process that writes

Events are only ever appended, each of them on the disk before `append` returns, so a run killed at any moment is a
shorter run. Any number of readers may look on while one process writes; within that process any number of traces,
tasks and threads may write.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from premeditate import images
from premeditate.errors import StoreError
from premeditate.eventlog import EventLog, Line, check_version
from premeditate.files import write_atomic
from premeditate.trace import SCHEMA_VERSION, Event, ImageRef, Record, Started, Trace

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LIBRARIES = ("premeditate", "torch", "diffusers", "transformers", "pillow", "numpy")
_PLAIN = "keep to plain JSON values: lists (no tuples), text keys, finite numbers, valid Unicode"


class Manifest(Record):
    """What `run.json` holds."""

    schema_version: int = SCHEMA_VERSION
    created: str
    settings: dict[str, Any] = {}
    versions: dict[str, str] = {}


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that shape a result; one that is not installed is left out."""
    import platform
    from importlib import metadata

    from premeditate import __version__

    found = {"python": platform.python_version(), "premeditate": __version__}
    for library in _LIBRARIES[1:]:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_id(trace_id: str) -> str:
    """`trace_id` if it is 1-128 of `A-Z a-z 0-9 . _ -` and starts with a letter or digit; `StoreError` otherwise."""
    if not _ID.fullmatch(trace_id):
        raise StoreError(
            f"{trace_id[:80]!r} is not a trace id",
            "use 1 to 128 letters, digits, dots, dashes or underscores, a letter or digit first",
        )
    return trace_id


def _json(record: Record, what: str) -> bytes:
    """`record` as JSON that is proven to read back equal: what cannot be stored is refused now, not found out later."""
    try:
        data = record.model_dump_json().encode()
        same = type(record).model_validate_json(data) == record
    except ValueError as error:
        raise StoreError(f"{what} cannot be stored ({error})", _PLAIN) from error
    if not same:
        raise StoreError(f"{what} would change when read back", _PLAIN)
    return data


class RunStore:
    """A run for writing and reading. The folder is made by the first write; `RunStore.open` wants it to exist.

    `settings` go into the manifest of a new run (an existing run keeps its own). `sync` False leaves it to the
    operating system when bytes reach the disk: faster, safe against a kill, not against a power cut.
    Use it in a `with`, or call `close`, so that another process may write next.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, settings: Mapping[str, Any] | None = None, sync: bool = True
    ) -> None:
        self.path = Path(path).expanduser()
        self._sync = sync
        self._settings = dict(settings or {})
        self._guard = threading.RLock()
        self._log = EventLog(self.path / "events.jsonl", sync=sync)
        try:
            if self.path.exists() and not self.path.is_dir():
                raise StoreError(f"{self.path} is a file, not a run", "give the folder of a run, or a new folder")
            if self.path.exists() and not self._is_run() and any(self._strangers()):
                raise StoreError(
                    f"{self.path} is a folder of something else, not a run",
                    "give the folder of a run (it holds events.jsonl), or a new or empty folder",
                )
        except OSError as error:
            raise StoreError(f"cannot read {self.path}: {error.strerror}", "check its permissions") from error
        _ = self.manifest  # a run of a newer version is refused before anything is read or added

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunStore:
        """An existing run. Raises `StoreError` where there is none."""
        store = cls(path)
        if not store._is_run():
            raise StoreError(f"there is no run at {store.path}", "give the folder of a run: it holds events.jsonl")
        return store

    def _is_run(self) -> bool:
        return (self.path / "run.json").is_file() or (self.path / "events.jsonl").is_file()

    def _strangers(self) -> Iterator[Path]:
        own = ("lock", "images")
        return (p for p in self.path.iterdir() if p.name not in own and not p.name.startswith("."))

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def manifest(self) -> Manifest | None:
        """The run's manifest, None before the first write. Raises `StoreError` if it is damaged or too new."""
        path = self.path / "run.json"
        try:
            record = json.loads(path.read_bytes())
            check_version(record.get("schema_version"), self.path)
            return Manifest.model_validate(record)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}", "check its permissions") from error
        except StoreError:
            raise
        except (ValueError, AttributeError) as error:
            raise StoreError(
                f"{path} is damaged", "delete it (events and images are kept, the next write makes a new one)"
            ) from error

    def traces(self) -> list[str]:
        """Ids of all traces, in the order in which they were started."""
        with self._guard:
            self._log.refresh()
            return self._log.ids()

    def trace(self, trace_id: str) -> Trace:
        """The trace as far as it was written. Raises `StoreError` for an unknown id or a damaged event."""
        lines = self.events(trace_id)
        first = lines[0].event
        if not isinstance(first, Started):
            raise StoreError(
                f"trace {trace_id} in {self.path} has lost its beginning", "restore events.jsonl from a backup"
            )
        try:
            trace = Trace.start(first)
            for line in lines[1:]:
                trace = trace.apply(line.event)
        except ValueError as error:
            raise StoreError(
                f"the events of trace {trace_id} in {self.path} do not follow from each other ({error})",
                "restore events.jsonl from a backup",
            ) from error
        return trace

    def events(self, trace_id: str) -> list[Line]:
        """The trace's events, oldest first, each with the second at which it was written; raises like `trace`."""
        check_id(trace_id)
        with self._guard:
            self._log.refresh()
            if trace_id not in self._log:
                raise StoreError(f"there is no trace {trace_id} in {self.path}", "`RunStore.traces()` lists them")
            return self._log.read(trace_id)

    def __iter__(self) -> Iterator[Trace]:
        """All traces, in the order in which they were started."""
        for trace_id in self.traces():
            yield self.trace(trace_id)

    def image_path(self, ref: ImageRef) -> Path:
        """Where the image's file lies, whether or not it is there."""
        if not re.fullmatch(r"[0-9a-f]{64}", ref.sha256):
            raise StoreError(f"{ref.sha256[:80]!r} is not an image name", "an image is named by its SHA-256")
        return self.path / "images" / ref.sha256[:2] / f"{ref.sha256}.png"

    def get_bytes(self, ref: ImageRef) -> bytes:
        """The PNG bytes behind `ref`. Raises `StoreError` if they are missing or are not what was stored."""
        path = self.image_path(ref)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(
                f"image {path} cannot be read ({error.strerror})",
                "restore the run's images from a backup, or run the edit again",
            ) from error
        if hashlib.sha256(data).hexdigest() != ref.sha256:
            raise StoreError(
                f"image {path} is damaged: its bytes do not match its name",
                "restore it from a backup, or run the edit again",
            )
        return data

    def get_image(self, ref: ImageRef) -> Image.Image:
        """The RGB image behind `ref`; raises like `get_bytes`."""
        image = images.load(self.get_bytes(ref), images.UNLIMITED)
        if image.size != (ref.width, ref.height):
            raise StoreError(
                f"image {ref.sha256[:12]} has {image.width} x {image.height} pixels, its record says "
                f"{ref.width} x {ref.height}",
                "the record was changed by hand; run the edit again",
            )
        return image

    # -- writing -------------------------------------------------------------------------------------------------

    def put_image(self, image: Image.Image) -> ImageRef:
        """Store `image` as RGB (transparency on white) and return its name; the same pixels are stored once."""
        data = images.encode(image, compress_level=3)
        ref = ImageRef(sha256=hashlib.sha256(data).hexdigest(), width=image.width, height=image.height)
        path = self.image_path(ref)
        self._prepare()
        # A power cut may leave an empty file behind a finished rename: only a file of the right size counts as there.
        if not path.is_file() or path.stat().st_size != len(data):
            write_atomic(path, data, sync=self._sync)
        return ref

    def append(self, trace_id: str, event: Event) -> None:
        """Add `event` to the trace; it is on the disk when this returns.

        A trace's first event is `Started` with its own id, and only the first. On any error nothing was added:
        `StoreError` for an event out of order, one that JSON cannot hold unchanged, or a run that another process is
        writing; `WriteError` where the disk is full or the place may not be written to.
        """
        check_id(trace_id)
        opening = isinstance(event, Started)
        if isinstance(event, Started) and event.trace_id != trace_id:
            raise StoreError(
                f"the started event of trace {event.trace_id[:80]} was given for {trace_id}",
                "append it under its own id",
            )
        line = Line(trace=trace_id, at=round(time.time(), 3), event=event)
        data = _json(line, f"the {event.type} event of trace {trace_id}") + b"\n"
        with self._guard:
            self._prepare()
            writer = self._log.open_writer()
            with writer.lock:
                self._log.refresh()
                if opening and trace_id in self._log:
                    raise StoreError(f"trace {trace_id} was already started", "use a new trace id")
                if not opening and trace_id not in self._log:
                    raise StoreError(f"trace {trace_id} was not started", "append its started event first")
                writer.write(data)

    def close(self) -> None:
        """Let another process write. Reading goes on working, and the next write claims the run again."""
        with self._guard:
            self._log.close()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self) -> None:
        """Write the manifest of a new run."""
        path = self.path / "run.json"
        if path.is_file():
            return
        created = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = Manifest(created=created, settings=self._settings, versions=versions())
        write_atomic(path, _json(manifest, "the run's settings") + b"\n", sync=self._sync)
