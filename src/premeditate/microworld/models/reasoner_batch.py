"""Items to tensors: one sequence per item, with its questions as branches behind a shared picture prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from premeditate.microworld.models.reasoner_data import Item
from premeditate.microworld.scene import CELLS, COLOURS, GRID, SHAPES, SIZES

WEIGHTS = {"plan": 1.0, "checklist": 0.8, "answer": 8.0, "critique": 0.8, "problem": 3.0}
"""Loss weight of one token, per skill: an answer has one token that matters, a checklist has many easy ones.
"problem": of a critique, what comes before the scores."""


def factors(codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Content codes 0..64 -> shape 0..4, colour 0..8, size 0..2, where 0 is empty."""
    full = codes > 0
    rest = (codes - 1).clamp(min=0)
    colours, sizes = len(COLOURS), len(SIZES)
    zero = torch.zeros_like(codes)
    return (
        torch.where(full, 1 + rest // (colours * sizes), zero),
        torch.where(full, 1 + rest // sizes % colours, zero),
        torch.where(full, 1 + rest % sizes, zero),
    )


FACTOR_SIZES = (1 + len(SHAPES), 1 + len(COLOURS), 1 + len(SIZES))


class Encoder:
    """Text to ids as the tokenizer gives them, cached by word (its pre-tokenizer never joins words), and the chat
    template's pieces."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self._cache = tokenizer, dict[str, list[int]]()
        one = tokenizer.convert_tokens_to_ids
        self.image, self.end, self.pad = one("<|image_pad|>"), one("<|im_end|>"), one("<|endoftext|>")
        self.start = [one("<|im_start|>"), *tokenizer.encode("user\n")]
        self.picture = [one("<|vision_start|>"), *[self.image] * CELLS, one("<|vision_end|>")]
        self.turn = [self.end, *tokenizer.encode("\n"), one("<|im_start|>"), *tokenizer.encode("assistant\n")]
        self.labels = {word: tokenizer.encode(word)[0] for word in ("yes", "no")}

    def words(self, text: str) -> list[int]:
        out: list[int] = []
        for number, word in enumerate(text.split(" ")):
            key = word if number == 0 else " " + word
            if key not in self._cache:
                self._cache[key] = self.tokenizer.encode(key)
            out += self._cache[key]
        return out

    def prefix(self, pictures: int) -> tuple[list[int], list[list[int]], int]:
        """Ids, positions [3][T] (time, row, column) and the next position."""
        ids = self.start + self.picture * pictures
        at, where = len(self.start), [[i] * 3 for i in range(len(self.start))]
        for _ in range(pictures):
            where.append([at] * 3)
            where += [[at + 1, at + 1 + c // GRID, at + 1 + c % GRID] for c in range(CELLS)]
            where.append([at + 1 + GRID] * 3)
            at += 2 + GRID
        return ids, [list(axis) for axis in zip(*where, strict=True)], at

    def request(self, prompt: str, pictures: int) -> list[int]:
        """The whole prompt of one question, as the chat template writes it."""
        return self.prefix(pictures)[0] + self.words(prompt) + self.turn


@dataclass
class Batch:
    """ids, labels (-100: no loss), weights [B, T]; positions [3, B, T]; mask bool [B, 1, T, T]; pictures uint8
    [B * n, 64, 64, 3]; codes, sharp [B * n, 16]; turn_at [Q, 2]: (row, token) of each marked question's last prompt
    token, marks [Q, 16]; asked_at [A, 2] and shows [A] likewise for questions about one cell."""

    ids: Tensor
    labels: Tensor
    weights: Tensor
    positions: Tensor
    mask: Tensor
    pictures: Tensor
    codes: Tensor
    sharp: Tensor
    turn_at: Tensor
    marks: Tensor
    asked_at: Tensor
    shows: Tensor


def collate(items: Sequence[Item], encoder: Encoder) -> Batch:
    """Items with the same number of pictures."""
    pictures = len(items[0].images)
    prefix, where, at = encoder.prefix(pictures)
    rows, turn_at, marks, asked_at, shows = [], [], [], [], []
    for number, item in enumerate(items):
        ids, labels, weights = list(prefix), [-100] * len(prefix), [0.0] * len(prefix)
        places, branch = list(where[0]), [0] * len(prefix)
        for name, part in enumerate(item.branches, 1):
            ask = encoder.words(part.prompt) + encoder.turn
            say = [*encoder.words(part.answer), encoder.end]
            if part.marks is not None:
                turn_at.append((number, len(ids) + len(ask) - 1))
                marks.append(part.marks)
            if part.shows >= 0:
                asked_at.append((number, len(ids) + len(ask) - 1))
                shows.append(part.shows)
            ids += ask + say
            hoped = [-100] * (len(ask) - 1)
            if part.foresee is not None:
                lead, last, right = part.foresee
                start, read, due = len(encoder.words(lead)), encoder.words(" " + last), encoder.words(" " + right)
                same = next((k for k, (a, b) in enumerate(zip(read, due, strict=False)) if a != b), len(read))
                for k, word in enumerate(due[: same + 1]):
                    hoped[start - 1 + k] = word
            labels += [*hoped, *say, -100]
            scale = WEIGHTS[part.skill]
            first = [scale] * len(say) if part.skill != "answer" else [scale, 0.1]
            if part.skill == "critique":
                words = len(encoder.words(part.answer.split(" |")[0]))
                first[:words] = [WEIGHTS["problem"]] * words
            weights += [float(h >= 0) for h in hoped] + first + [0.0]
            places += range(at, at + len(ask) + len(say))
            branch += [name] * (len(ask) + len(say))
        rows.append((ids, labels, weights, places, branch))
    width = -(-max(len(r[0]) for r in rows) // 8) * 8

    def stack(column: int, fill: float, kind: Any) -> Tensor:
        table = np.full((len(rows), width), fill, kind)
        for number, row in enumerate(rows):
            table[number, : len(row[column])] = row[column]
        return torch.from_numpy(table)

    ids, labels, weights = stack(0, encoder.pad, np.int64), stack(1, -100, np.int64), stack(2, 0, np.float32)
    places, branch = stack(3, 0, np.int64), stack(4, -1, np.int64)
    positions = places.expand(3, -1, -1).clone()
    positions[:, :, : len(prefix)] = torch.tensor(where)[:, None]
    same = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
    mask = same & torch.ones(width, width, dtype=torch.bool).tril()
    return Batch(
        ids,
        labels,
        weights,
        positions,
        mask[:, None],
        torch.from_numpy(np.concatenate([i.images for i in items])),
        torch.from_numpy(np.concatenate([i.codes for i in items])).long(),
        torch.from_numpy(np.concatenate([i.sharp for i in items])),
        torch.tensor(turn_at).reshape(-1, 2),
        torch.tensor(marks).reshape(-1, CELLS),
        torch.tensor(asked_at, dtype=torch.long).reshape(-1, 2),
        torch.tensor(shows, dtype=torch.long),
    )
