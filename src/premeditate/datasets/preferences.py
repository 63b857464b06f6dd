"""Pairs of edits of which people prefer one: for training judges and for testing them.

`read` takes what is published as it is, as JSON (a list) or JSON lines, pictures as paths:

    editreward         TIGER-Lab/EditReward's training data: {prompt, path_src, path1, path2, tie_case, ...}; path1 is
                       the preferred one
    editreward-bench   its benchmark: {prompt, path_src, paths_generated: [2-4], human_vote: {ranking: "C>A>B"}}; or
                       the rows of TIGER-Lab/EditReward-Bench: {id, instruction, source_image, candidate_1,
                       candidate_2, ranking: "A>C", comparison_type: "AvsC", ...}. Every two of a group are a pair.
    genai-bench        TIGER-Lab/GenAI-Bench, image_edition: {instruct_prompt, source_image, left_output_image,
                       right_output_image, vote_type}
    editscore-bench    EditScore/EditReward-Bench: {key: [2], instruction, input_image, output_images: [2], task_type,
                       dimension}; the first is the winner

Two things are taken from elsewhere and not from the rows: the scores per dimension that EditReward's rows hold
disagree with the preference about as often as not, so `path1` alone says who won; and as a winner that always comes
first can be guessed, `mix` puts it second in half of the pairs.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageChops

from premeditate import images
from premeditate.errors import PremeditateError, check_instruction, printable

Preference = Literal["first", "second", "tie"]
SWAPPED: Mapping[Preference, Preference] = {"first": "second", "second": "first", "tie": "tie"}
Row = Mapping[str, Any]
Four = Literal["A>B", "B>A", "A=B=Good", "A=B=Bad"]
VOTES: Mapping[str, Four] = {
    "leftvote": "A>B", "rightvote": "B>A", "tievote": "A=B=Good", "bothgood_vote": "A=B=Good",
    "bothbad_vote": "A=B=Bad",
}  # fmt: skip
"""How GenAI-Bench writes people's votes, and its own labels for them."""
LABEL = "label"
"""Where `Pair.meta` holds what people said in words, before the pair was turned round."""


class PairsError(PremeditateError):
    """A file of pairs that cannot be read."""


@dataclass(frozen=True)
class Pair:
    """Two edits of one task (RGB), and which is preferred. `kind`: of task. `dimension`: what the preference is about,
    "" for the edit as a whole. `group`: names the pairs of one comparison of several edits. `names`: of the two edits;
    one that is in several pairs has the same name in all of them."""

    id: str
    instruction: str
    source: Image.Image
    first: Image.Image
    second: Image.Image
    preference: Preference
    kind: str = ""
    dimension: str = ""
    group: str = ""
    names: tuple[str, str] = ("", "")
    meta: dict[str, Any] = field(default_factory=dict)

    def swapped(self) -> Pair:
        """The same pair the other way round."""
        return Pair(self.id, self.instruction, self.source, self.second, self.first, SWAPPED[self.preference],
                    self.kind, self.dimension, self.group, self.names[::-1], self.meta)  # fmt: skip


@dataclass(frozen=True)
class BadPair:
    """A row that is no pair, and why."""

    id: str
    problem: str
    group: str = ""


@dataclass(frozen=True)
class PairPaths:
    """A pair before its pictures are read: paths, `root` being their folder."""

    id: str
    instruction: str
    source: str
    edits: tuple[str, str]
    preference: Preference
    kind: str = ""
    dimension: str = ""
    group: str = ""
    names: tuple[str, str] = ("", "")
    meta: dict[str, Any] = field(default_factory=dict)
    root: Path = Path()

    def open(self) -> Pair | BadPair:
        """The pair itself; a `BadPair` for a picture that cannot be read, and for two that are equal."""
        try:
            text = instruction_of(self)
            source, first, second = (_load(name, self.root) for name in (self.source, *self.edits))
        except (PremeditateError, TypeError) as error:
            return BadPair(self.id, f"{self.id}: {error}", self.group)
        if same(first, second):
            return BadPair(self.id, f"{self.id}: the two edits are the same picture", self.group)
        return Pair(self.id, text, source, first, second, self.preference, self.kind, self.dimension, self.group,
                    self.names, self.meta)  # fmt: skip


def instruction_of(pair: Pair | PairPaths) -> str:
    """The instruction, cleaned. Raises ValueError for one that is refused, and for what is no text."""
    if not isinstance(pair.instruction, str):
        raise PairsError("its instruction is no text", "give what the editor was told")
    return check_instruction(pair.instruction)


def listed(path: Path, *, root: Path | None = None, format: str | None = None) -> Iterator[PairPaths | BadPair]:
    """The pairs of a file without their pictures, one by one, in its order. `root`: the folder of the pictures;
    default: the file's. `format`: one of `FORMATS`; default: told by the rows. A row that is no pair comes as a
    `BadPair`. Raises
    `PairsError` for a file that cannot be read at all."""
    if format is not None and format not in FORMATS:
        raise PairsError(f"there is no format {format!r}", f"there are {', '.join(FORMATS)}")
    base = path.parent if root is None else root
    for number, row in enumerate(_rows(path), 1):
        for found in _pairs(row, f"{path.name}:{number}", format):
            yield found if isinstance(found, BadPair) else replace(found, root=base)


def read(
    path: Path, *, root: Path | None = None, format: str | None = None, mix: int | None = 0
) -> Iterator[Pair | BadPair]:
    """As `listed`, with their pictures. `mix`: a seed; None: nothing is put in another order.

    A picture that cannot be read and a pair of equal pictures come as a `BadPair` too, in their place.
    """
    for found in listed(path, root=root, format=format):
        pair = found if isinstance(found, BadPair) else found.open()
        if mix is not None and isinstance(pair, Pair) and random.Random(f"{mix}/{pair.id}").random() < 0.5:
            pair = pair.swapped()
        yield pair


def _rows(path: Path) -> Iterator[Any]:
    """The rows of a JSON list or of JSON lines; a line that is no JSON comes as None."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise PairsError(
            f"cannot read {path}: {why}", "check the path; parquet must be exported to JSON lines"
        ) from error
    if text.lstrip()[:1] == "[":
        try:
            yield from json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PairsError(f"{path} is no JSON ({error})", "copy or download it again") from None
        return
    found = False
    for line in text.split("\n"):
        if line.strip():
            found = True
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield None
    if not found:
        raise PairsError(f"{path} is empty", "give a file of pairs")


def _pairs(row: Any, place: str, format: str | None) -> Iterator[PairPaths | BadPair]:
    if not isinstance(row, dict):
        yield BadPair(place, f"{place} is no JSON object")
        return
    name = format or next(
        (name for name, (keys, _) in FORMATS.items() if any(set(k) <= row.keys() for k in keys)), None
    )
    if name is None:
        yield BadPair(place, f"{place} is a row of no format that is known ({', '.join(sorted(row)[:8])})")
        return
    group = _group(row, place) if name == "editreward-bench" else ""
    try:
        yield from FORMATS[name][1](row, place)
    except KeyError as error:
        yield BadPair(place, f"{place} has no {error.args[0]}", group)
    except (ValueError, TypeError, IndexError, RecursionError) as error:
        yield BadPair(place, f"{place}: {printable(str(error))[:200]}", group)


def _editreward(row: Row, place: str) -> Iterator[PairPaths]:
    tie = row.get("tie_case") not in (None, False, 0, "", "false", "False")
    meta = {key: value for key, value in row.items() if key not in ("prompt", "path_src", "path1", "path2")}
    yield PairPaths(place, row["prompt"], row["path_src"], (row["path1"], row["path2"]), "tie" if tie else "first",
                 names=(f"{place}/1", f"{place}/2"), meta=meta)  # fmt: skip


def _group(row: Row, place: str) -> str:
    """Names the comparison that a row of editreward-bench is about. The number of its edits comes first, so that it is
    known even where some of its pairs cannot be read."""
    if "paths_generated" in row:
        paths = row["paths_generated"]
        return f"{len(paths)}pair/{place}" if isinstance(paths, list) else place
    return f"{row.get('dataset') or ''}/{str(row.get('id', place)).split('_')[0]}".lstrip("/")


def _label(said: str, kept: bool = True) -> dict[str, Any]:
    """What people said of two edits in so many words: a tie may be good or bad."""
    return {LABEL: said} if kept else {}


def _editreward_bench(row: Row, place: str) -> Iterator[PairPaths]:
    if "paths_generated" not in row:
        yield _editreward_row(row, place)
        return
    paths, ranking = row["paths_generated"], str(row["human_vote"]["ranking"])
    letters = [chr(ord("A") + k) for k in range(len(paths))]
    if not 2 <= len(paths) <= 26 or not isinstance(paths, list):
        raise ValueError(f"there are {len(paths)} edits, not 2 or more")
    if set(ranking) & set("ABCDEFGHIJKLMNOPQRSTUVWXYZ") < set(letters):
        raise ValueError(f"the ranking {ranking!r} does not name every one of {', '.join(letters)}")
    for i, j in combinations(range(len(paths)), 2):
        yield PairPaths(
            f"{place}/{letters[i]}vs{letters[j]}", row["prompt"], row["path_src"], (paths[i], paths[j]),
            _ranked(ranking, letters[i], letters[j]), group=_group(row, place), kind=f"{len(paths)}pair",
            names=(f"{place}/{letters[i]}", f"{place}/{letters[j]}"), meta=_label(ranking, len(paths) == 2),
        )  # fmt: skip


def _editreward_row(row: Row, place: str) -> PairPaths:
    group, ranking = _group(row, place), str(row["ranking"])
    one, _, other = str(row.get("comparison_type") or "AvsB").partition("vs")
    return PairPaths(
        str(row["id"]), row["instruction"], row["source_image"], (row["candidate_1"], row["candidate_2"]),
        _ranked(ranking, one, other), kind=str(row.get("dataset") or ""), group=group,
        names=(f"{group}/{one}", f"{group}/{other}"), meta=_label(ranking, row.get("dataset") in (None, "", "2pair")),
    )  # fmt: skip


def _ranked(ranking: str, one: str, other: str) -> Preference:
    """Who of two is preferred by "C>A=B", "A<B", "A=B=Good". Raises ValueError where that does not say it."""
    parts = [part.strip() for part in re.split(r"([><=])", ranking.strip().strip("[]"))]
    names, signs = parts[::2], parts[1::2]
    signs = signs[: len(names) - 1 - (names[-1] in ("Good", "Bad"))]
    names = names[: len(signs) + 1]
    contradicts = sorted({">", "<"} & set(signs)) == ["<", ">"] or len(set(names)) < len(names)
    if contradicts or one not in names or other not in names or one == other:
        raise ValueError(f"the ranking {ranking!r} does not say which of {one} and {other} is better")
    i, j = names.index(one), names.index(other)
    between = signs[min(i, j) : max(i, j)]
    if set(between) == {"="}:
        return "tie"
    ahead = i < j
    return "first" if ahead == (">" in between) else "second"


def _editscore_bench(row: Row, place: str) -> Iterator[PairPaths]:
    edits, key = row["output_images"], row["key"]
    if len(edits) != 2 or len(key) != 2 or isinstance(edits, str) or isinstance(key, str):
        raise ValueError("output_images and key are not two each")
    yield PairPaths(
        f"{place}/{row['dimension']}", row["instruction"], row["input_image"], (edits[0], edits[1]), "first",
        kind=str(row["task_type"]), dimension=str(row["dimension"]), names=(str(key[0]), str(key[1])),
    )  # fmt: skip


def _genai_bench(row: Row, place: str) -> Iterator[PairPaths]:
    edits, vote = (row["left_output_image"], row["right_output_image"]), row["vote_type"]
    if vote not in VOTES:
        raise ValueError(f"the vote {str(vote)[:80]!r} is none of {', '.join(VOTES)}")
    yield PairPaths(place, row["instruct_prompt"], row["source_image"], edits, _ranked(VOTES[vote], "A", "B"),
                    names=(f"{place}/left", f"{place}/right"), meta=_label(VOTES[vote]))  # fmt: skip


Reader = Callable[[Row, str], Iterator[PairPaths]]
FORMATS: dict[str, tuple[tuple[tuple[str, ...], ...], Reader]] = {
    "editreward": ((("path_src", "path1", "path2"),), _editreward),
    "editreward-bench": (
        (("paths_generated", "human_vote"), ("candidate_1", "candidate_2", "ranking")),
        _editreward_bench,
    ),
    "genai-bench": ((("left_output_image", "right_output_image", "vote_type"),), _genai_bench),
    "editscore-bench": ((("output_images", "input_image", "key"),), _editscore_bench),
}
"""Each format's telling columns (one of these sets), and what reads a row of it."""


def _load(name: Any, root: Path) -> Image.Image:
    if isinstance(name, dict):  # a picture column as `datasets` writes it to JSON
        name = name.get("path")
    if not isinstance(name, str) or not name:
        raise PairsError("a picture is no path", "export the pictures to files, and name these in the rows")
    if "://" in name or name.startswith("data:"):
        raise PairsError(f"{name[:80]} is an address, and none is fetched", "download it, and give the file")
    return images.load(root / name)


def same(one: Image.Image, other: Image.Image) -> bool:
    """Whether two RGB pictures have the same size and pixels."""
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None
