"""Pairs of edits of which the bright one is preferred, and judges of them: one that says what it is told to, and a tiny
one of a real class that had a cold start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from premeditate.datasets.preferences import Pair
from premeditate.prompts import verify_words
from premeditate.reasoners.base import ChatRequest
from premeditate.reasoners.transformers import TransformersReasoner
from premeditate.rewards.panel import Entry, Panel
from premeditate.trace import ChecklistItem
from premeditate.training.distributed import World
from premeditate.training.journal import Journal
from premeditate.training.loop import Parts, Trainer
from premeditate.training.run import TASKS
from premeditate.training.tokens.model import TokenModel, Trace
from premeditate.training.verifier.pairs import Comparison, digest
from premeditate.training.verifier.policy import PairPolicy
from premeditate.training.verifier.recipe import VerifierRecipe
from premeditate.training.verifier.rewards import Ordered, Stated
from support.checklists import GOOD, entries
from support.tiny_vlm import build_vlm

WORDS = verify_words("terse")
ITEMS = (ChecklistItem(question="Is it white?", dimension="follow"),)
MODE: Any = "think"


def grey(level: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, (level,) * 3)


def white_wins(n: int, seed: int = 0) -> list[Pair]:
    """Pairs of a bright and a dark edit, of which the bright one is preferred, now first and now second."""
    found = []
    for i in range(n):
        light, dark = grey(255 - 5 * i), grey(5 * i + seed)
        edits = (light, dark) if i % 2 else (dark, light)
        found.append(Pair(f"p{i}", "make it white", grey(100 + i), *edits, "first" if i % 2 else "second",
                          meta={"checklist": [item.model_dump() for item in ITEMS]}))  # fmt: skip
    return found


def comparisons(n: int) -> list[Comparison]:
    return [Comparison(pair, ITEMS) for pair in white_wins(n)]


def recipe(out: Path | str = "runs/none", base: Path | str = "none", **changes: Any) -> VerifierRecipe:
    values: dict[str, Any] = {
        "out": str(out), "steps": 2, "judging": {"mode": MODE, "max_tokens": 8}, "logging": {"grids": 2},
        "model": {"base": str(base), "lora": None, "dtype": "float32", "device": "cpu"},
        "data": {"train": "support.preferred:white_wins", "train_count": 6, "eval": None},
        "batch": {"groups": 4, "group_size": 6, "forward": 24}, "optimizer": {"lr": 3e-3},
    }  # fmt: skip
    return VerifierRecipe.model_validate({**values, **changes})


class Scripted:
    """Says what `says` makes of a request (None: it cannot take it), in two tokens, with one weight as its network."""

    def __init__(self, says: Callable[[ChatRequest], str | None]) -> None:
        self.says, self.network = says, nn.Linear(1, 1)
        self.reasoner = SimpleNamespace(prompts="terse")
        self.asked: list[ChatRequest] = []

    def write(self, requests: Sequence[ChatRequest], most: int) -> list[Trace | str]:
        self.asked += requests
        texts = [self.says(request) for request in requests]
        return ["too long" if text is None else Trace(request, torch.tensor([1, 2]), text, text != "so")
                for request, text in zip(requests, texts, strict=True)]  # fmt: skip

    def log_probs(self, traces: Sequence[Trace]) -> tuple[Tensor, Tensor]:
        mask = torch.ones(len(traces), 2, dtype=torch.bool)
        return -self.network.weight.square() * mask, mask


def scored(score: float) -> str:
    return WORDS.answer(score, (True,), "so", MODE, ITEMS)


def trainer(
    told: VerifierRecipe, model: Any, train: list[Comparison], held_out: Sequence[Comparison] = (),
    policy: Any = PairPolicy, journal: Journal | None = None,
) -> Trainer:  # fmt: skip
    made = policy(told, model, train, list(held_out))
    parts = Parts(made, Panel([Entry(Stated())]), Panel([Entry(Ordered())]), len(train), len(held_out),
                  {TASKS: digest(train)})  # fmt: skip
    return Trainer(told, parts, World(), Path(told.out), journal)


def taught(folder: Path) -> Path:
    """Puts a tiny judge into `folder` that has learnt to answer, with any score."""
    build_vlm("qwen2_5_vl", folder, prompts="terse")
    reasoner = TransformersReasoner.load(str(folder), device="cpu", dtype="float32")
    tokenizer = reasoner.tokenizer
    answers = [WORDS.answer(score, (True,), "so", MODE, ITEMS) for score in range(1, 10)]
    lessons = [tokenizer(f"{answer}{tokenizer.eos_token}")["input_ids"] for answer in answers]
    # It knows no other words: so a few steps are enough.
    others = set(range(len(tokenizer))) - {token for lesson in lessons for token in lesson}
    reasoner.model.generation_config.suppress_tokens = sorted(others)
    model = TokenModel(reasoner)
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=2e-3)
    several = [ChecklistItem.model_validate(entry) for entry in entries(GOOD)]
    texts = [WORDS.judge("make it white", items, MODE) for items in (ITEMS, several)]
    for step in range(44):
        text = texts[step % 4 == 3]
        requests = [ChatRequest((grey(100 + k), grey(28 * k)), text, temperature=1.0) for k in range(9)]
        taught = [Trace(request, torch.tensor(lessons[(4 * step + 5 * k) % 9]), "", True)
                  for k, request in enumerate(requests)]  # fmt: skip
        values, mask = model.log_probs(taught)
        optimizer.zero_grad()
        (-values.sum() / mask.sum()).backward()
        optimizer.step()
    reasoner.model.save_pretrained(folder)
    return folder


def fresh(judge: Path, frozen: Any = None) -> TokenModel:
    return TokenModel(TransformersReasoner.load(str(judge), device="cpu", dtype="float32"), frozen)
