"""How good a reasoner is: greedy, batched, on held-out scenes, with 95 % Wilson intervals, per family."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from premeditate.microworld import checker
from premeditate.microworld.families import Family
from premeditate.microworld.language import PlanError, execute, parse_plan
from premeditate.microworld.models.reasoner_batch import Encoder
from premeditate.microworld.models.reasoner_build import load_folder
from premeditate.microworld.models.reasoner_data import PROMPTS, Branch, Item, look_item, think_item
from premeditate.microworld.models.reasoner_fast import GRID, pixel_values
from premeditate.microworld.scene import CELL_NAMES
from premeditate.microworld.tasks import MicroTask, Split, sample_task
from premeditate.stats import wilson


def inputs(prompts: Sequence[str], pictures: Sequence[np.ndarray], encoder: Encoder) -> dict[str, torch.Tensor]:
    """What the stock model's `generate` take, padded left. `pictures`: uint8 [n, 64, 64, 3] per prompt."""
    rows = [encoder.request(p, len(i)) for p, i in zip(prompts, pictures, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([[encoder.pad] * (width - len(r)) + r for r in rows])
    seen = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    images = torch.from_numpy(np.concatenate(list(pictures)))
    return {
        "input_ids": ids,
        "attention_mask": seen,
        "mm_token_type_ids": (ids == encoder.image).long(),
        "pixel_values": pixel_values(images),
        "image_grid_thw": torch.tensor([[1, GRID, GRID]] * len(images)),
    }


@torch.no_grad()
def generate(
    model: Any,
    encoder: Encoder,
    prompts: Sequence[str],
    pictures: Sequence[np.ndarray],
    batch: int = 128,
    max_tokens: int = 112,
    temperature: float = 0.0,
) -> list[str]:
    """Greedy answers (above `temperature` 0 sampled ones), in order. Requests of similar length share a batch."""
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].split()))
    out = [""] * len(prompts)
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        given = inputs([prompts[i] for i in part], [pictures[i] for i in part], encoder)
        ids = model.generate(**given, max_new_tokens=max_tokens, **sampling)[:, given["input_ids"].shape[1] :]
        for i, text in zip(part, encoder.tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            out[i] = text.strip()
    return out


@torch.no_grad()
def p_yes(
    model: Any, encoder: Encoder, prompts: Sequence[str], pictures: Sequence[np.ndarray], batch: int = 256
) -> np.ndarray:
    """The probability of yes against no, [n]."""
    out = []
    for start in range(0, len(prompts), batch):
        given = inputs(prompts[start : start + batch], pictures[start : start + batch], encoder)
        logits = model(**given, logits_to_keep=1).logits[:, -1]
        out.append(logits[:, [encoder.labels["yes"], encoder.labels["no"]]].softmax(-1)[:, 0])
    return torch.cat(out).numpy()


def plan_right(task: MicroTask, text: str) -> bool:
    """The written plan, carried out, leads to the target."""
    try:
        return execute(task.source, parse_plan(" then ".join(PROMPTS.parse_plan(text).steps))) == task.target
    except PlanError:
        return False


def checklist_right(task: MicroTask, text: str) -> bool:
    written = PROMPTS.parse_checklist(text)
    return written.status == "scored" and checker.same_checklist(written.items, task.checklist)


def cells_named(problem: str) -> list[str]:
    return [word for word in problem.split() if word in CELL_NAMES]


def finds_wrong_cell(branch: Branch, text: str) -> bool:
    """The critique is not satisfied, and the cell that it names first is truly wrong."""
    said = PROMPTS.parse_critique(text)
    wrong = {CELL_NAMES[i] for i, code in enumerate(branch.marks or ()) if code >= 0}
    named = cells_named(said.problem)
    return said.status == "scored" and not said.satisfied and bool(named) and named[0] in wrong


def names_only_wrong_cells(branch: Branch, text: str) -> bool:
    """As `finds_wrong_cell`, and so is every other cell that it names."""
    wrong = {CELL_NAMES[i] for i, code in enumerate(branch.marks or ()) if code >= 0}
    return finds_wrong_cell(branch, text) and set(cells_named(PROMPTS.parse_critique(text).problem)) <= wrong


def same_cells(branch: Branch, text: str) -> bool:
    """The critique names exactly the cells (at most two) that the true one names: none for a good edit."""
    said, right = PROMPTS.parse_critique(text), PROMPTS.parse_critique(branch.answer)
    same = said.satisfied == right.satisfied and set(cells_named(said.problem)) == set(cells_named(right.problem))
    return said.status == "scored" and same


def _rate(right: int, n: int) -> dict[str, Any]:
    low, high = wilson(right, n) if n else (0.0, 1.0)
    return {"n": n, "right": right, "rate": right / max(n, 1), "low": low, "high": high}


def _look_tasks(
    n: int, seed: int, split: Split, filter_image: Callable[[np.ndarray], np.ndarray] | None
) -> tuple[list[MicroTask], list[Item]]:
    tasks = [sample_task(50_000 + seed * 100_000 + i, split) for i in range(n)]
    rng = random.Random(f"looks/{seed}/{split}")
    return tasks, [look_item(t, rng, filter_image) for t in tasks]


def evaluate_model(
    model: Any,
    encoder: Encoder,
    n: int = 1000,
    seed: int = 0,
    *,
    split: Split = "test",
    skills: Sequence[str] = ("plan", "checklist", "answer", "critique"),
    families: Sequence[Family] = (),
    filter_image: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, Any]:
    """`n` tasks per skill. With `families`, plans and checklists are drawn from these in turn."""
    result: dict[str, Any] = {"n": n, "seed": seed, "split": split}
    tasks = [
        sample_task(seed * 100_000 + i, split, family=families[i % len(families)] if families else None)
        for i in range(n)
    ]
    items = [think_item(t, random.Random(i), clean=True) for i, t in enumerate(tasks)]
    for number, (skill, judge) in enumerate((("plan", plan_right), ("checklist", checklist_right))):
        if skill not in skills:
            continue
        asked: list[Branch] = [i.branches[number] for i in items]
        texts = generate(model, encoder, [b.prompt for b in asked], [i.images for i in items])
        good = [judge(t, text) for t, text in zip(tasks, texts, strict=True)]
        per: dict[str, list[bool]] = defaultdict(list)
        for task, ok in zip(tasks, good, strict=True):
            per[f"{task.kind}/{task.family}"].append(ok)
        result[skill] = _rate(sum(good), n)
        result[f"{skill}_by_family"] = {k: _rate(sum(v), len(v)) for k, v in sorted(per.items())}
        if skill == "plan":
            result["plan_in_the_same_words"] = _rate(sum(b.answer == t for b, t in zip(asked, texts, strict=True)), n)
    if "answer" in skills or "critique" in skills:
        _, looks = _look_tasks(n, seed, split, filter_image)
    if "answer" in skills:
        pairs = [(b, i.images) for i in looks for b in i.branches if b.skill == "answer"]
        yes = p_yes(model, encoder, [b.prompt for b, _ in pairs], [i for _, i in pairs]) > 0.5
        table: dict[tuple[str, str], list[bool]] = defaultdict(list)
        for (branch, _), said in zip(pairs, yes, strict=True):
            table[branch.dimension, branch.answer].append(bool(said) == (branch.answer == "yes"))
        result["answer"] = _rate(sum(map(sum, table.values())), len(pairs))
        halves = [[ok for (_, a), v in table.items() if a == label for ok in v] for label in ("yes", "no")]
        result["answer"]["balanced"] = sum(sum(h) / max(len(h), 1) for h in halves) / 2
        result["answer_by_dimension"] = {f"{d}/{a}": _rate(sum(v), len(v)) for (d, a), v in sorted(table.items())}
    if "critique" in skills:
        asked = [i.branches[-1] for i in looks]
        texts = generate(model, encoder, [b.prompt for b in asked], [i.images for i in looks])
        bad = [not b.answer.startswith("good") for b in asked]
        finds = [finds_wrong_cell(b, t) for b, t in zip(asked, texts, strict=True)]
        only = [names_only_wrong_cells(b, t) for b, t in zip(asked, texts, strict=True)]
        cell = [same_cells(b, t) for b, t in zip(asked, texts, strict=True)]
        same = [
            PROMPTS.parse_critique(b.answer).problem == PROMPTS.parse_critique(t).problem
            for b, t in zip(asked, texts, strict=True)
        ]
        refined = [
            PROMPTS.parse_critique(b.answer).prompt == PROMPTS.parse_critique(t).prompt
            for b, t in zip(asked, texts, strict=True)
        ]
        result["critique"] = _rate(sum(c for c, b in zip(finds, bad, strict=True) if b), sum(bad))
        result["critique_names_only_wrong"] = _rate(sum(c for c, b in zip(only, bad, strict=True) if b), sum(bad))
        result["critique_names_exactly"] = _rate(sum(c for c, b in zip(cell, bad, strict=True) if b), sum(bad))
        result["critique_accepts_good"] = _rate(sum(c for c, b in zip(cell, bad, strict=True) if not b), n - sum(bad))
        result["critique_same_problem"] = _rate(sum(same), n)
        result["critique_refined_prompt"] = _rate(sum(refined), n)
    return result


def evaluate_reasoner(folder: Path | str, n: int = 1000, seed: int = 0, split: Split = "test") -> dict[str, Any]:
    """The four skills of the reasoner in `folder`, `n` tasks each: rates with Wilson 95 % intervals, per family and
    per checklist dimension. Raises ValueError where there is no reasoner."""
    model, tokenizer = load_folder(Path(folder))
    return evaluate_model(model, Encoder(tokenizer), n, seed, split=split)
