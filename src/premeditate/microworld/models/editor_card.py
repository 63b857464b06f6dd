"""The model card of a tiny editor: figures, curve, recipe and data in its README.md, the curve drawn by Pillow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

NAMES = {
    "single": "one step, canonical",
    "two": "two steps, canonical",
    "three": "three steps, canonical",
    "cell": "one step, by cell only",
    "description": "one step, by description only",
    "two-description": "two steps, by description only",
    "held-out": "one step, unseen colour-shape pairs",
}
COLOURS = {"single": (44, 88, 208), "two": (222, 54, 48), "description": (46, 160, 74)}


def evaluations(journal: Path) -> list[tuple[int, dict[str, Any]]]:
    """(samples seen, figures) of every evaluation in a training log."""
    rows = [json.loads(line) for line in journal.read_text().splitlines() if line.startswith("{")]
    return [(row["samples"], row["evaluation"]) for row in rows if "evaluation" in row]


def draw_curve(points: list[tuple[int, dict[str, Any]]], path: Path, base_samples: int | None = None) -> None:
    """Exact share against samples seen: a 720x400 PNG."""
    width, height, left, top, right, bottom = 720, 400, 60, 20, 20, 50
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    most = max(1, *(samples for samples, _ in points))

    def place(samples: float, share: float) -> tuple[float, float]:
        return left + (width - left - right) * samples / most, height - bottom - (height - top - bottom) * share

    for tenth in range(0, 11, 2):
        y = place(0, tenth / 10)[1]
        pen.line([(left, y), (width - right, y)], fill=(225, 225, 225))
        pen.text((20, y - 6), f"{tenth * 10} %", fill="black")
    for quarter in range(5):
        x = place(most * quarter / 4, 0)[0]
        pen.text((x - 18, height - bottom + 8), f"{most * quarter // 4000} k", fill="black")
    pen.text((width // 2 - 60, height - 22), "training samples seen", fill="black")
    if base_samples:
        x = place(base_samples, 0)[0]
        pen.line([(x, top), (x, height - bottom)], fill=(170, 170, 170))
        pen.text((x + 4, top), "editor-base", fill=(120, 120, 120))
    for i, (name, colour) in enumerate(COLOURS.items()):
        line = [place(samples, figures[name]) for samples, figures in points if name in figures]
        if len(line) > 1:
            pen.line(line, fill=colour, width=2)
        pen.text((left + 10, top + 6 + 14 * i), NAMES[name], fill=colour)
    image.quantize(32).save(path, optimize=True)


def _row(label: str, row: dict[str, Any]) -> str:
    return f"| {label} | {row['exact']:.1%} | {row['low']:.1%} - {row['high']:.1%} | {row['n']} |"


def write_card(folder: Path, figures: dict[str, Any], journal: Path) -> None:
    """Writes `README.md` and `curve.png` into a model folder. `figures` is `evaluate_editor`'s result plus `training`;
    `training.notes`, if any, are paragraphs on how this run was not the plain command."""
    training, suites = figures["training"], figures["suites"]
    points = evaluations(journal)
    base = training["done"] < 1
    rows = [json.loads(line) for line in journal.read_text().splitlines() if line.startswith("{")]
    base_samples = next((row["samples"] for row in rows if "base" in row), None)
    if points:
        draw_curve(points, folder / "curve.png", base_samples)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
    title = "Micro-world editor" + (" (base)" if base else "")
    kind = (
        f"\nThis is the **base**: the averaged weights at {training['done']:.0%} of the same run, deliberately"
        " unfinished. It leaves the room that reinforcement learning is to fill.\n"
        if base
        else ""
    )
    recipe = ", ".join(f"{key} {value}" for key, value in training["recipe"].items())
    lines = [
        "---",
        "license: apache-2.0",
        "library_name: diffusers",
        "pipeline_tag: image-to-image",
        "---",
        f"# {title}",
        "",
        "A real `diffusers.FluxKontextPipeline` with tiny configs, trained from random weights on one CPU core to carry"
        " out explicit edits of 64x64 micro-world scenes (4x4 cells, 4 shapes, 8 colours, 2 sizes). It is made for"
        " tests, demonstrations and algorithm research; it knows nothing of real photographs, and no instruction that"
        " needs reasoning.",
        kind,
        "```python",
        "import torch",
        "from diffusers import FluxKontextPipeline",
        "",
        "pipe = FluxKontextPipeline.from_pretrained(folder, torch_dtype=torch.float32)",
        'edit = pipe(image=scene, prompt="paint the red circle at b3 green", height=64, width=64, max_area=64 * 64,',
        "            _auto_resize=False, num_inference_steps=4, guidance_scale=1.0,",
        "            max_sequence_length=pipe.tokenizer_2.model_max_length).images[0]",
        "```",
        "",
        "## Figures",
        "",
        "Exact: all 16 cells hold what they must, sharply, by the exact checker. Held-out seeds (from"
        f" {figures['seed']}), 4 sampling steps, the folder as stored (float16 on disk, float32 in use), 95 % Wilson"
        " intervals. Single steps are balanced over the eight kinds.",
        "",
        "| prompts | exact | 95 % interval | n |",
        "|---|---|---|---|",
        *(_row(NAMES[name], row) for name, row in suites.items()),
        "",
        "| kind of step (one step, canonical) | exact | 95 % interval | n |",
        "|---|---|---|---|",
        *(_row(op, row) for op, row in suites["single"]["kinds"].items()),
        "",
        "![exact share while training](curve.png)",
        "",
        "The curve is the averaged weights on small held-out samples (256 single, 128 of each other), so each point has"
        " a standard error of up to 3-4 points.",
        "",
        "## Training",
        "",
        "`premeditate microworld train editor -o DIR` makes both folders from nothing. Seed"
        f" {training['seed']}; autoencoder {training['vae_cpu_seconds']:.0f} CPU seconds, transformer and text encoders"
        f" {training['cpu_seconds']:.0f} CPU seconds ({training['steps']} steps of {training['batch']} samples) of one"
        " thread.",
        "",
        *(line for note in training.get("notes", ["One run, one seed."]) for line in (note, "")),
        f"Recipe: {recipe}.",
        "",
        "Data: procedural only. Scenes of 2-8 things; prompts of one to three explicit steps of eight kinds, 55 %"
        " naming things by description and cell, 15 % by cell, 30 % by description. No training scene holds a purple"
        " star, cyan triangle, yellow square or gray triangle (the autoencoder has seen them, the editor has not)."
        " Loss: rectified flow with changed cells weighted, and auxiliary classification heads that are not part of"
        " the folder.",
        "",
        "## Limits",
        "",
        "- Only the micro world's explicit step language, in lower case; other words are spelled letter by letter and"
        " mean nothing to it.",
        "- Prompts are cut after 40 tokens. The pipeline must be called at 64x64 with the arguments above.",
        f"- {size:.2f} MB on disk.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines))
