"""The pipeline: shard after shard, each there whole or not at all.

    FOLDER/settings.json         what shapes the data
    FOLDER/shards/00000.jsonl    judged edits (`premeditate.datasets.judged`)
    FOLDER/counts/00000.json     what happened on the way to that shard; written before it
    FOLDER/images/..             pictures, by content
    FOLDER/datasheet.json, .md   what all of it comes to

Everything about a shard depends on the settings and its number: which process made it, when, and what it had made
before, shows nowhere. So a killed run goes on, and folders made in parts are merged by copying.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from premeditate.datasets.judged import SHARDS
from premeditate.files import write_atomic
from premeditate.store import versions
from premeditate.synthesis.errors import SynthesisError
from premeditate.synthesis.parts import Parts
from premeditate.synthesis.settings import FILE, Settings
from premeditate.synthesis.shard import Counts, Maker, Say
from premeditate.synthesis.source import Source

COUNTS = "counts"
Made = Callable[[int, Counts], None]


class Part(NamedTuple):
    """The `number`-th (from 1) of `of` machines makes every `of`-th shard."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """ "2/4". Raises ValueError."""
        number, slash, of = text.partition("/")
        if not (slash and number.isascii() and number.isdigit() and of.isascii() and of.isdigit()
                and 1 <= int(number) <= int(of)):  # fmt: skip
            raise SynthesisError(f"--part is {text!r}", "write I/N, say 1/4 to 4/4 on four machines")
        return cls(int(number), int(of))

    def has(self, shard: int) -> bool:
        return shard % self.of == self.number - 1


def shard_path(folder: Path, number: int) -> Path:
    return folder / SHARDS / f"{number:05d}.jsonl"


def counts_path(folder: Path, number: int) -> Path:
    return folder / COUNTS / f"{number:05d}.json"


def begin(folder: Path, settings: Settings, part: Part, shards: int, *, resume: bool) -> list[int]:
    """The shards that this part still has to make. Raises `SynthesisError` for a folder with other settings or
    without any, and where there are shards of this part already and nobody said `resume`."""
    if (folder / SHARDS).is_dir() and any((folder / SHARDS).iterdir()) and not (folder / FILE).is_file():
        raise SynthesisError(f"{folder} holds shards and no {FILE}", "give another folder")
    mine = [number for number in range(shards) if part.has(number)]
    there = [number for number in mine if shard_path(folder, number).is_file()]
    if there and not resume:
        raise SynthesisError(f"{folder} holds {len(there)} of these {len(mine)} shards already",
                             "add --resume to make the others, or give another folder")  # fmt: skip
    settings.adopt(folder)
    return sorted(set(mine) - set(there))


async def make(
    source: Source, parts: Parts, settings: Settings, folder: Path, missing: list[int], *, say: Say | None = None,
    made: Made | None = None,
) -> None:  # fmt: skip
    """Makes the `missing` shards (see `begin`), and writes the datasheet after each. Raises `DeadPart` where a model
    failed with everything; whole shards stay."""
    wanted = set(missing)
    maker = Maker(parts, settings, folder, say)
    try:
        if wanted:
            await parts.prepare()
        for number, rows in source.portions(settings.shard_size, wanted.__contains__):
            edits, counts = await maker.make(rows)
            lines = "".join(edit.model_dump_json() + "\n" for edit in edits)
            told = {"shard": number, **counts.to_json(), "models": parts.names(), "versions": versions()}
            write_atomic(counts_path(folder, number), (json.dumps(told, ensure_ascii=False, indent=1) + "\n").encode())
            write_atomic(shard_path(folder, number), lines.encode())
            if made is not None:
                made(number, counts)
    finally:
        await parts.aclose()
