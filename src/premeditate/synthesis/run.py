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

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from premeditate.datasets.judged import SHARDS
from premeditate.datasets.tasks import BadRow, TaskRow
from premeditate.files import write_atomic
from premeditate.store import versions
from premeditate.synthesis.datasheet import COUNTS, Sheet
from premeditate.synthesis.errors import SynthesisError
from premeditate.synthesis.parts import Parts
from premeditate.synthesis.settings import Settings
from premeditate.synthesis.shard import Counts, Maker, Say
from premeditate.synthesis.source import Source

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


def whole(folder: Path) -> int:
    """How many shards are there, whoever made them."""
    return sum(path.stem.isdigit() for path in (folder / SHARDS).glob("*.jsonl"))


def begin(folder: Path, settings: Settings, part: Part, shards: int, *, resume: bool) -> list[int]:
    """The shards that this part still has to make; writes nothing. Raises `SynthesisError` for a folder with other
    settings, and where there are shards of this part already and nobody said `resume`."""
    settings.compare(folder)
    mine = [number for number in range(shards) if part.has(number)]
    there = [number for number in mine if shard_path(folder, number).is_file()]
    if there and not resume:
        raise SynthesisError(f"{folder} holds {len(there)} of these {len(mine)} shards already",
                             "add --resume to make the others, or give another folder")  # fmt: skip
    return sorted(set(mine) - set(there))


async def make(
    source: Source, parts: Parts, settings: Settings, folder: Path, missing: list[int], *, at_once: int = 1,
    say: Say | None = None, made: Made | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Makes the `missing` shards (see `begin`), up to `at_once` side by side, writes the datasheet after each, and
    returns it. Raises `DeadPart` where a model failed with everything; whole shards stay."""
    maker = Maker(parts, settings, folder, say, begun=settings.compare(folder))
    sheet = Sheet(folder, settings, source.shards(settings.shard_size))
    found: dict[str, Any] | None = None

    async def one(number: int, rows: Sequence[TaskRow | BadRow]) -> None:
        nonlocal found
        edits, counts = await maker.make(rows)
        settings.adopt(folder)  # each time: another part may have begun with others
        told = {"shard": number, **counts.to_json(), "models": parts.names(), "versions": versions()}
        write_atomic(counts_path(folder, number), (json.dumps(told, ensure_ascii=False, indent=1) + "\n").encode())
        write_atomic(shard_path(folder, number), "".join(e.model_dump_json() + "\n" for e in edits).encode())
        found = sheet.write()
        if made is not None:
            made(number, counts)

    work: set[asyncio.Task[None]] = set()
    try:
        if missing:
            await parts.prepare()
        portions = source.portions(settings.shard_size, set(missing).__contains__)
        # Pictures are decoded on another thread, so that calls in flight are looked after meanwhile.
        while (portion := await asyncio.to_thread(next, portions, None)) is not None:
            work.add(asyncio.create_task(one(*portion)))
            while len(work) >= at_once:
                work = await _some(work)
        while work:
            work = await _some(work)
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await parts.aclose()
    return found if found is not None else sheet.write()


async def _some(work: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Waits for one of them and returns the others. Raises what it raises."""
    done, rest = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return rest
