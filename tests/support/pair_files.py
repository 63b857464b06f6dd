"""Files of pairs as they are published, and their pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from premeditate.datasets.preferences import Pair, read


def painted(folder: Path) -> Path:
    """With six pictures of one colour each; a.png and e.png are the same."""
    for name, colour in (("src", "white"), ("a", "red"), ("b", "green"), ("c", "blue"), ("d", "black"), ("e", "red")):
        Image.new("RGB", (8, 8), colour).save(folder / f"{name}.png")
    return folder


def write(folder: Path, rows: Sequence[Any], *, lines: bool = True) -> Path:
    path = folder / ("rows.jsonl" if lines else "rows.json")
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return path


def pairs_of(path: Path, **options: Any) -> list[Pair]:
    found = list(read(path, **{"mix": None, **options}))
    assert all(isinstance(one, Pair) for one in found), found
    return found  # type: ignore[return-value]


def colours(pair: Pair) -> tuple[Any, Any]:
    return pair.first.getpixel((0, 0)), pair.second.getpixel((0, 0))


RED, GREEN = (255, 0, 0), (0, 128, 0)
EDITREWARD = {
    "prompt": "make it red", "choice_dist": None, "confidence": None, "path_src": "src.png", "path1": "a.png",
    "path2": "b.png", "model1": "MagicBrush", "model2": "Pix2PixZero", "model1_dim1_score": 4, "model2_dim1_score": 2,
    "model1_overall_score": 0.1, "model2_overall_score": 0.9,
}  # fmt: skip
RM_BENCH = {"prompt": "x", "path_src": "src.png", "paths_generated": ["a.png", "b.png", "c.png"]}
ROW = {"instruction": "x", "source_image": "src.png", "candidate_1": "a.png", "candidate_2": "b.png"}
EDITSCORE = {
    "key": ["k1", "k2"], "instruction": "x", "input_image": "src.png", "output_images": ["a.png", "b.png"],
    "task_type": "subject-add", "dimension": "consistency",
}  # fmt: skip


GREYS = ("#ff0000", "#c00000", "#800000", "#400000")


def reddened(folder: Path) -> Path:
    """With four more, r to u, each less red than the one before."""
    for name, colour in zip("rstu", GREYS, strict=True):
        Image.new("RGB", (8, 8), colour).save(folder / f"{name}.png")
    return folder


def bench(*names: str, ranking: str = "A>B>C>D") -> dict[str, Any]:
    told = ranking[: 2 * len(names) - 1] if ranking == "A>B>C>D" else ranking
    return {"prompt": "redder", "path_src": "src.png", "paths_generated": [f"{n}.png" for n in names],
            "human_vote": {"ranking": told}}  # fmt: skip


VOTE = {"instruct_prompt": "redder", "source_image": "src.png"}


def vote(left: str, right: str, vote_type: str) -> dict[str, Any]:
    return {**VOTE, "left_output_image": f"{left}.png", "right_output_image": f"{right}.png", "vote_type": vote_type}
