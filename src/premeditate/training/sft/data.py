"""Judged edits as lessons: what a judge is shown and asked, and the answer it is to give.

The prompt is the judge's own, encoded as a reasoner encodes it; labels stand on the answer and its end of turn alone.
Pictures are read when a batch is made, never before.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from premeditate import images
from premeditate.datasets import judged
from premeditate.datasets.judged import JudgedEdit, JudgedError
from premeditate.errors import ImageError
from premeditate.images import resize_back
from premeditate.prompts.verify import Words
from premeditate.training.sft.recipe import SftRecipe

IGNORED = -100
PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")


@dataclass(frozen=True)
class Lesson:
    """What is asked about two pictures in `folder`, and the answer."""

    id: str
    prompt: str
    completion: str
    source: str
    edit: str
    folder: str


@dataclass(frozen=True)
class Lessons:
    """`left_out`: edits by the reason why they are no lessons. `digest`: SHA-256 of the lessons; pictures are named by
    their content, so theirs is in it. `longest`: tokens."""

    count: int
    left_out: Mapping[str, int]
    digest: str
    longest: int

    def line(self, what: str) -> str:
        """Both in words."""
        left = f"; left out: {_reasons(self.left_out)}" if self.left_out else ""
        return f"{what}: {self.count:,} judged edits, up to {self.longest:,} tokens{left}"


def lesson(edit: JudgedEdit, recipe: SftRecipe, words: Words, folder: Path) -> Lesson | str:
    """The lesson that `edit` is, or the reason why it is none."""
    kept, count, mode = edit.kept, len(edit.principles), recipe.mode
    assert kept.score is not None
    if (kept.accuracy or 0.0) < recipe.min_accuracy:
        return f"judged less than {recipe.min_accuracy:g} right"
    if mode != "verify" and not kept.thought.strip():
        return "without a thought"
    verdicts = edit.gold if recipe.gold_verdicts else kept.verdicts
    completion = words.answer(kept.score, verdicts, kept.thought, mode, edit.principles)
    # What would not be read as that answer must not be taught.
    read = words.parse(completion, count, mode)
    if read.status != "scored" or (mode != "think" and read.verdicts != tuple(verdicts)):
        return "whose answer could not be read back"
    prompt = words.judge(edit.instruction, edit.principles, mode)
    return Lesson(edit.id, prompt, completion, edit.source, edit.edit, str(folder))


class Encoder:
    """Encodes lessons with the processor of a Qwen vision-language model. `limit`: tokens that the model reads."""

    def __init__(self, processor: Any, limit: int | None) -> None:
        self.processor, self.tokenizer, self.limit = processor, processor.tokenizer, limit
        # The template around two pictures and a text: what is added to the pictures' and the text's own tokens.
        small = Image.new("RGB", (64, 64))
        ((around, *_), _) = self._prompts([("", (small, small))])
        self._around = len(around["input_ids"]) - 2 * self._picture_tokens(small.size)

    def answer(self, completion: str) -> list[int]:
        """The tokens of an answer and its end of turn. Control tokens in it are plain words."""
        words = self.tokenizer.encode(completion, add_special_tokens=False, split_special_tokens=True)
        return [*words, self.tokenizer.eos_token_id]

    def length(self, lesson: Lesson) -> int | str:
        """Tokens of a lesson, from the sizes of its pictures alone, or the reason why a model cannot be shown them.
        Raises `JudgedError` for a picture that is missing or none."""
        try:
            size, _ = [_size(lesson, name) for name in (lesson.source, lesson.edit)]
        except images.TooLarge:
            return "with a picture that is too large"
        try:
            pictures = 2 * self._picture_tokens(size)  # a judge shows the edit in the source's size
        except ValueError:  # of the processor: many times wider than high, or the other way round
            return "with a picture of a shape that the model does not read"
        text = self.tokenizer.encode(lesson.prompt, add_special_tokens=False, split_special_tokens=True)
        return self._around + len(text) + pictures + len(self.answer(lesson.completion))

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch, padded on the right. "labels" [B, L]: the answers' tokens, elsewhere -100. Raises `ImageError` for a
        picture that cannot be read any more."""
        asked = [(row["prompt"], _pictures(row)) for row in rows]
        parts, rest = self._prompts(asked)
        found: dict[str, list[Tensor]] = {name: [] for name in (*parts[0], "labels")}
        for part, row in zip(parts, rows, strict=True):
            answer = torch.tensor(self.answer(row["completion"]))
            new = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
            for name, values in part.items():
                found[name].append(torch.cat([values, new.get(name, torch.zeros_like(answer)).to(values.dtype)]))
            ignored = torch.full((len(part["input_ids"]),), IGNORED)
            found["labels"].append(torch.cat([ignored, answer]))
        fill = {"input_ids": self.tokenizer.pad_token_id, "labels": IGNORED}
        padded = {name: pad_sequence(values, batch_first=True, padding_value=fill.get(name, 0))
                  for name, values in found.items()}  # fmt: skip
        return rest | padded

    def _prompts(
        self, asked: Sequence[tuple[str, Sequence[Image.Image]]]
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """The prompts' tokens, one by one and without padding, and the pictures of them all."""
        turns = [[{"role": "user", "content": [*({"type": "image", "image": image} for image in pictures),
                                               {"type": "text", "text": text}]}]
                 for text, pictures in asked]  # fmt: skip
        encoded = self.processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            sanitize_control_tokens=True, processor_kwargs={"padding": True},
        )  # fmt: skip
        masks, own = encoded["attention_mask"].bool(), [name for name in PER_TOKEN if name in encoded]
        parts = [{name: encoded[name][i][mask] for name in own} for i, mask in enumerate(masks)]
        return parts, {name: value for name, value in encoded.items() if name not in own}

    def _picture_tokens(self, size: tuple[int, int]) -> int:
        processor = self.processor.image_processor
        patches = processor.get_number_of_image_patches(size[1], size[0], {})
        return int(patches) // processor.merge_size**2


def collect(folder: Path, recipe: SftRecipe, words: Words, encoder: Encoder, most: int | None, to: Path) -> Lessons:
    """Writes the first `most` lessons of `folder` into the Arrow file `to`, whose rows are mapped and not read at once.

    Raises `JudgedError` for a folder without judged edits, lines that are none, pictures that are missing, and where no
    edit is a lesson.
    """
    from datasets import Features, Value
    from datasets.arrow_writer import ArrowWriter

    digest, left, count, longest = hashlib.sha256(), Counter[str](), 0, 0
    columns = Features({name: Value("large_string") for name in Lesson.__dataclass_fields__})
    to.parent.mkdir(parents=True, exist_ok=True)
    with ArrowWriter(path=str(to), features=columns) as writer:
        for found in _lessons(folder, recipe, words, left):
            tokens = encoder.length(found)
            if isinstance(tokens, str):
                left[tokens] += 1
                continue
            if encoder.limit is not None and tokens > encoder.limit:
                left[f"longer than the {encoder.limit:,} tokens that the model reads"] += 1
                continue
            row = asdict(found)
            writer.write(row)
            digest.update("\0".join(v for k, v in row.items() if k != "folder").encode() + b"\1")
            count, longest = count + 1, max(longest, tokens)
            if count == most:
                break
        if count:
            writer.finalize()
    if not count:
        raise JudgedError(f"{folder} holds nothing to learn from: {_reasons(left)}",
                          "lower min_accuracy, give another mode, or make more: premeditate data rrm")  # fmt: skip
    return Lessons(count, dict(left), digest.hexdigest(), longest)


def _lessons(folder: Path, recipe: SftRecipe, words: Words, left: Counter[str]) -> Iterator[Lesson]:
    for edit in judged.read(folder):
        found = lesson(edit, recipe, words, folder)
        if isinstance(found, Lesson):
            yield found
        else:
            left[found] += 1


def _reasons(left: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {why}" for why, n in left.items())


def _pictures(row: Mapping[str, Any]) -> tuple[Image.Image, Image.Image]:
    source, edit = (judged.picture(Path(row["folder"]), row[name]) for name in ("source", "edit"))
    return source, resize_back(edit, source.size)


def _size(lesson: Lesson, name: str) -> tuple[int, int]:
    try:
        return images.size(Path(lesson.folder) / name)
    except images.TooLarge:
        raise
    except ImageError as error:
        raise JudgedError(f"{lesson.id} in {lesson.folder} cannot be used: {name}: {error.problem}",
                          "bring the whole folder, images included, or make its shard again") from None  # fmt: skip
