"""What shapes the data, written beside it, so that a folder never holds a mixture."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pydantic import ConfigDict, ValidationError

from premeditate.address import shown
from premeditate.datasets.judged import SHARDS
from premeditate.errors import PremeditateError
from premeditate.files import write_atomic
from premeditate.synthesis.errors import SynthesisError
from premeditate.trace import Record

FILE = "settings.json"
Form = Literal["joint", "apart"]
FORMS: tuple[Form, ...] = get_args(Form)
VERSION = 1
"""Raised when the same settings would give other data."""


class JudgeSpec(NamedTuple):
    """`name`: as it stands in the data, without a key that an address may hold."""

    form: Form
    spec: str

    @classmethod
    def parse(cls, text: str) -> JudgeSpec:
        """ "apart:SPEC", "joint:SPEC" or SPEC, which is joint. Raises ValueError."""
        for form in FORMS:
            if text.startswith(f"{form}:"):
                spec = text.removeprefix(f"{form}:").strip()
                if not spec:
                    raise PremeditateError(f"the judge {text!r} names no reasoner", f"write {form}:SPEC")
                return cls(form, spec)
        return cls("joint", text)

    @property
    def name(self) -> str:
        return f"{self.form}:{shown(self.spec)}"


class Settings(Record):
    """`digest`: of the tasks, what they say included. The names of models are as they were given, without keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = VERSION
    tasks: str
    digest: str
    count: int | None
    seed: int
    shard_size: int
    editors: tuple[str, ...]
    edits_per_editor: int
    judges: tuple[str, ...]
    temperatures: tuple[float, ...]
    reasoner: str | None
    verifier: str
    min_accuracy: float

    def check(self) -> Settings:
        """Itself. Raises ValueError for settings that make no sense."""
        for what, values in (("editor", self.editors), ("judge", self.judges), ("temperature", self.temperatures)):
            if not values:
                raise PremeditateError(f"there is no {what}", f"give at least one --{what}")
            for i, value in enumerate(values):
                if value in values[:i]:
                    raise PremeditateError(f"the {what} {value} is given twice", "give each once")
        for t in self.temperatures:
            if not 0 <= t <= 10:
                raise PremeditateError(f"the temperature is {t}", "give 0 to 10")
        if not 0 <= self.min_accuracy <= 1:
            raise PremeditateError(f"--min-accuracy is {self.min_accuracy}", "give a share, 0 to 1")
        return self

    def adopt(self, folder: Path) -> None:
        """Writes the settings into `folder`, or finds the same there. Raises `SynthesisError` as `compare`."""
        if not self.compare(folder):
            write_atomic(folder / FILE, (json.dumps(self.model_dump(mode="json"), indent=1) + "\n").encode())

    def compare(self, folder: Path) -> bool:
        """Whether `folder` has these settings; those of a folder without shards hold nobody to anything. Raises
        `SynthesisError` for others, and says which differ."""
        shards = (folder / SHARDS).is_dir() and any((folder / SHARDS).glob("*.jsonl"))
        if not shards:
            return False
        if not (folder / FILE).is_file():
            raise SynthesisError(f"{folder} holds shards and no {FILE}", "restore it, or give another folder")
        there = read(folder)
        differ = [
            f"{name} is {_short(theirs)} there and {_short(ours)} here"
            for name, ours in self.model_dump(mode="json").items()
            if (theirs := there.get(name)) != ours
        ]
        if differ:
            raise SynthesisError(
                f"{folder} was made with other settings: {'; '.join(differ)}",
                "give the same options again, or another folder",
            )
        return True


def read(folder: Path) -> dict[str, Any]:
    """The settings in `folder`, as they were written. Raises `SynthesisError`."""
    path = folder / FILE
    try:
        found = json.loads(path.read_bytes())
        Settings.model_validate({**found, "version": VERSION})
    except (OSError, ValueError, TypeError, ValidationError) as error:
        raise SynthesisError(
            f"{path} cannot be read ({type(error).__name__})", "restore it, or begin in another folder"
        ) from None
    return dict(found)


def seed_of(*parts: object) -> int:
    """A seed in 0..2^31-1 for what is drawn at one place: the same wherever and in whatever order it is drawn."""
    return int(key_of(*parts)[:8], 16) >> 1


def key_of(*parts: object) -> str:
    """A name for one place that no other has (64 hexadecimal digits)."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "replace")).hexdigest()


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
