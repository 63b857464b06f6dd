"""Items per second of the local judge: questions that share their pictures in one pass, against one call per item.

    OMP_NUM_THREADS=1 python bench/verifier.py [--quick] [--json] [--repeats 5]

A Qwen3-VL with random weights (four layers of width 128), fp32, and a checklist of 10 items about two pictures of 224
and of 448 px, of which each takes 49 and 196 tokens at the 32 px per token of the real models. All ways ask
`ChecklistVerifier`, which reads label probabilities, and are run in turn in one process, on one thread; figures are
process CPU seconds, the median over the repeats. Between the two stands one batch of the 10 items in which every item
brings its own pictures. Exits with 1 where a figure is missed.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from figures import Figure, conclude, options, timed
from PIL import Image

from premeditate.microworld.models.reasoner_build import CHAT_TEMPLATE, build_tokenizer
from premeditate.prompts import get
from premeditate.reasoners.transformers import TransformersReasoner
from premeditate.rewards.base import Sample
from premeditate.rewards.checklist import ChecklistVerifier
from premeditate.rewards.checklists.pool import Pool
from premeditate.trace import Checklist, ChecklistItem, Dimension, Task

SIZES = (224, 448)
COUNTS: dict[Dimension, int] = {"follow": 4, "keep": 4, "quality": 2}
ONE_BY_ONE, BATCH, SHARED = "one call per item", "one batch, pictures not shared", "shared prefix"
FASTER, EQUAL = 4.0, 1e-4


def questions() -> list[ChecklistItem]:
    """All questions of the package's examples."""
    pool = Pool.load().exemplars
    return [ChecklistItem(question=q, dimension=d) for e in pool for d in COUNTS for q in getattr(e, d)]


def checklist() -> Checklist:
    """Ten of them: 4 follow, 4 keep, 2 quality."""
    every = questions()
    return Checklist(items=tuple(i for d, n in COUNTS.items() for i in [q for q in every if q.dimension == d][:n]))


def build(folder: Path, seed: int = 0) -> Path:
    """The model's folder: patches of 16 px, merged two by two, and a tokenizer for the words of the prompts."""
    prompts = get("general")
    # The labels are one token each, as in the real models.
    tokenizer = build_tokenizer([prompts.answer(item.question) for item in questions()] + ["yes", "no"] * 1000)
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in
           ("image_pad", "video_pad", "vision_start", "vision_end")}  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.Qwen3VLForConditionalGeneration(transformers.Qwen3VLConfig(
        text_config={
            "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 32, "vocab_size": len(tokenizer), "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
            "max_position_embeddings": 4096,
            "rope_parameters": {"mrope_section": [6, 5, 5], "rope_type": "default", "rope_theta": 1e4},
        },
        vision_config={
            "depth": 3, "hidden_size": 96, "intermediate_size": 288, "num_heads": 4, "out_hidden_size": 128,
            "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "deepstack_visual_indexes": [1],
            "num_position_embeddings": 256,
        },
        **{f"{name}_token_id": token for name, token in
           zip(("image", "video", "vision_start", "vision_end"), ids.values(), strict=True)},
    ))  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # else all pictures and texts look the same to it
    model.save_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    transformers.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 32 * 32, "longest_edge": 1024 * 1024}, patch_size=16, merge_size=2, temporal_patch_size=2
    ).save_pretrained(folder)
    return folder


def sample(size: int) -> Sample:
    """Two different pictures, and the ten items."""
    rng = np.random.default_rng(size)
    small = rng.integers(0, 256, (2, 14, 14, 3), dtype=np.uint8)
    source, edit = (Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC) for p in small)
    return Sample(Task(id=str(size), images=(), instruction="put a glass next to the plate"), source, edit, checklist())


def ways(folder: Path, sample: Sample) -> dict[str, Callable[[], list[float]]]:
    """Each gives p(yes) of the ten items."""
    reasoner = TransformersReasoner.load(str(folder), device="cpu", dtype="float32", max_batch=16)
    apart = TransformersReasoner(reasoner.model, reasoner.processor, max_batch=16)
    apart._shares = False
    assert sample.checklist is not None
    single = [replace(sample, checklist=Checklist(items=(item,))) for item in sample.checklist.items]

    def ask(judge: ChecklistVerifier, calls: Sequence[Sample]) -> list[float]:
        async def run() -> list[float]:
            found = [verdict for call in calls for verdict in await judge.verify([call])]
            return [answer.p_yes for verdict in found for answer in verdict.answers if answer.p_yes is not None]

        said = asyncio.run(run())
        assert len(said) == sum(COUNTS.values()), "an item was not answered"
        return said

    return {
        ONE_BY_ONE: lambda: ask(ChecklistVerifier(reasoner), single),
        BATCH: lambda: ask(ChecklistVerifier(apart), [sample]),
        SHARED: lambda: ask(ChecklistVerifier(reasoner), [sample]),
    }


def main() -> int:
    args = options(__doc__)
    transformers.logging.disable_progress_bar()
    say: Callable[[str], None] = (lambda line: None) if args.json else print
    seconds: dict[int, dict[str, list[float]]] = {}
    figures: list[Figure] = []
    rates: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = build(Path(name))
        for size in SIZES:
            every = ways(folder, sample(size))
            said: dict[str, Any] = {way: run() for way, run in every.items()}  # warms up, too
            seconds[size] = timed(every, args.repeats)
            median = {way: statistics.median(found) for way, found in seconds[size].items()}
            rates[size] = {way: len(said[way]) / value for way, value in median.items()}
            for way, rate in rates[size].items():
                say(f"{size} px  {rate:7.1f} items/s  {median[ONE_BY_ONE] / median[way]:5.2f} x  {way}")
            values = np.array([said[ONE_BY_ONE], said[BATCH], said[SHARED]])
            say(f"{size} px  p(yes) from {values[0].min():.3f} to {values[0].max():.3f}")
            figures += [
                Figure(f"{size} px: items/s of the shared prefix, times those of one call per item",
                       median[ONE_BY_ONE] / median[SHARED], FASTER),
                Figure(f"{size} px: largest difference of p(yes)", float(abs(values[1:] - values[0]).max()), EQUAL,
                       least=False),
            ]  # fmt: skip
    return conclude(figures, args, items_per_second=rates, seconds=seconds)


if __name__ == "__main__":
    sys.exit(main())
