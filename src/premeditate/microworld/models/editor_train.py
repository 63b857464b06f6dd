"""Trains the tiny editor from nothing: rectified flow on the target's latents, given the source's latents and a prompt.

What makes it learn in about an hour of one core: one token per cell; noise levels near 1 (the answer is almost
determined by source and prompt); changed cells weigh most; and auxiliary heads that name every target cell's shape,
colour and size from the last hidden state, and that name the cell and the step which each word of the prompt belongs
to (both thrown away afterwards). Targets are composed from a table of cell latents,
sources come from a pool of really encoded scenes, which is refreshed all the time.
"""

from __future__ import annotations

import copy
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from premeditate.microworld.models.common import load_checkpoint, save_checkpoint
from premeditate.microworld.models.editor_build import MAX_TOKENS, EditorParts, build_editor, save_editor
from premeditate.microworld.models.editor_data import binding
from premeditate.microworld.models.editor_latents import Pool, attributes, cell_table, encode_codes
from premeditate.microworld.models.vae_train import train_vae
from premeditate.microworld.scene import CELLS, Scene

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class EditorRecipe:
    """Everything that decides a run. Shares and fractions in 0-1, times in CPU seconds of this process."""

    batch: int = 64
    lr: float = 1.5e-3
    warmup: int = 200
    decay_from: float = 0.6
    base_at: float = 0.17
    ema: float = 0.998
    weight_changed: float = 8.0
    weight_object: float = 2.0
    auxiliary: float = 0.5
    binding: float = 0.5
    single_start: float = 0.9
    single_end: float = 0.35
    curriculum: float = 0.25
    pool: int = 16384
    refresh: int = 8
    table_rounds: int = 60
    full_noise: float = 0.3
    vae_seconds: float = 520.0
    bf16: bool = True
    compile: bool = True


class Trainer:
    """One step at a time; all state that a resumed run needs is in `state()`."""

    def __init__(self, parts: EditorParts, recipe: EditorRecipe, seed: int) -> None:
        import torch

        self.parts, self.recipe = parts, recipe
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.table = cell_table(parts.vae, rounds=recipe.table_rounds)
        self.pool = Pool(parts.vae, self.rng, recipe.pool, recipe.refresh)
        self.labels = torch.from_numpy(attributes())
        self.places = torch.arange(CELLS)
        width = parts.transformer.config.num_attention_heads * parts.transformer.config.attention_head_dim
        self.heads = torch.nn.Linear(width, 5 + 9 + 3)
        self.binder = torch.nn.Linear(parts.text_encoder_2.config.d_model, CELLS + 3)
        self.modules = torch.nn.ModuleDict({**parts.trained(), "heads": self.heads, "binder": self.binder})
        self.ema = copy.deepcopy(self.modules).requires_grad_(False)
        self._accelerate()
        self.optimizer = torch.optim.AdamW(
            self.modules.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        self.hidden: list[Any] = []
        parts.transformer.norm_out.register_forward_hook(lambda _m, _i, out: self.hidden.append(out))
        grid = torch.zeros(4, 4, 3)
        grid[..., 1], grid[..., 2] = torch.arange(4)[:, None], torch.arange(4)[None]
        ids = grid.reshape(CELLS, 3)
        self.image_ids = torch.cat([ids, ids + torch.tensor([1.0, 0, 0])])
        self.text_ids = torch.zeros(MAX_TOKENS, 3)
        self.step = 0
        self.seconds = 0.0

    def _accelerate(self) -> None:
        """Compiles the blocks being trained where a C++ compiler is found: bfloat16 products, plain attention and fused
        element-wise work double the speed on a CPU that has them. The averaged copy stays as it is."""
        import shutil

        transformer = self.parts.transformer
        transformer.set_attention_backend("_native_math")
        if self.recipe.compile and (shutil.which("g++") or shutil.which("c++")):
            for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
                block.compile()

    def tokens(self, prompts: list[str]) -> tuple[Any, Any]:
        """Padded ids for T5 and CLIP, exactly as the pipeline makes them."""
        two, one = self.parts.tokenizer_2, self.parts.tokenizer
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return (
            two(prompts, max_length=MAX_TOKENS, **options).input_ids,
            one(prompts, max_length=one.model_max_length, **options).input_ids,
        )

    def loss(self, single: float) -> tuple[Any, dict[str, float]]:
        import torch
        from torch.nn import functional as F

        recipe, parts = self.recipe, self.parts
        examples, source = self.pool.draw(recipe.batch, single)
        after = torch.tensor([e.target.codes for e in examples])
        before = torch.tensor([e.source.codes for e in examples])
        target = self.table[self.places, after]
        ids_2, ids = self.tokens([e.prompt for e in examples])
        # Noise levels: a share at exactly 1, where sampling begins, the rest logit-normal around 0.82.
        u = torch.sigmoid(torch.randn(recipe.batch, generator=self.generator) * 1.2 + 1.5)
        u = torch.where(torch.rand(recipe.batch, generator=self.generator) < recipe.full_noise, torch.ones(()), u)
        noise = torch.randn(target.shape, generator=self.generator)
        level = u[:, None, None]
        noisy = (1 - level) * target + level * noise
        self.hidden.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
            words = parts.text_encoder_2(ids_2)[0]
            velocity = parts.transformer(
                hidden_states=torch.cat([noisy, source], 1),
                timestep=u,
                encoder_hidden_states=words,
                pooled_projections=parts.text_encoder(ids).pooler_output,
                txt_ids=self.text_ids,
                img_ids=self.image_ids,
                return_dict=False,
            )[0][:, :CELLS].float()
        changed, occupied = before != after, (before > 0) | (after > 0)
        weight = torch.where(changed, recipe.weight_changed, torch.where(occupied, recipe.weight_object, 1.0))
        weight = weight / weight.mean()
        error = (velocity - (noise - target)).square().mean(-1)
        flow = (weight * error).mean()
        logits = self.heads(self.hidden[0][:, :CELLS].float())
        labels = self.labels[after]
        named = sum(
            (weight * F.cross_entropy(part.permute(0, 2, 1), labels[..., i], reduction="none")).mean()
            for i, part in enumerate(logits.split((5, 9, 3), -1))
        )
        bound = torch.full((*ids_2.shape, 2), -100)
        for row, example in zip(bound, examples, strict=True):
            labels_of = torch.tensor(binding(example.prompt)[:MAX_TOKENS])
            row[: len(labels_of)] = labels_of
        where, which = self.binder(words.float()).split((CELLS, 3), -1)
        tied = sum(
            F.cross_entropy(part.flatten(0, 1), bound[..., i].flatten()) for i, part in enumerate((where, which))
        )
        guesses = [part.argmax(-1) for part in logits.detach().split((5, 9, 3), -1)]
        right = torch.stack([guess == labels[..., i] for i, guess in enumerate(guesses)])
        figures = {
            "flow": float(flow.detach()),
            "named": float(named.detach()),
            "tied": float(tied.detach()),
            "changed_error": float(error.detach()[changed].mean()),
            "changed_named": float(right.all(0)[changed].float().mean()),
        }
        return flow + recipe.auxiliary * named + recipe.binding * tied, figures

    def update(self, done: float) -> dict[str, float]:
        """One optimisation step at `done` (0-1) of the run."""
        import torch

        recipe = self.recipe
        rate = min(1.0, (self.step + 1) / recipe.warmup)
        if done > recipe.decay_from:
            rate *= max(0.01, (1 - done) / (1 - recipe.decay_from))
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr * rate
        ramp = min(1.0, done / recipe.curriculum)
        loss, figures = self.loss(recipe.single_start + (recipe.single_end - recipe.single_start) * ramp)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        figures["grad"] = float(torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0))
        self.optimizer.step()
        self.step += 1
        decay = min(recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.modules.parameters()), 1 - decay)
        return {**figures, "lr": recipe.lr * rate}

    def averaged(self) -> EditorParts:
        """The parts with averaged weights (shared, not copied), for evaluation and saving."""
        e, p = self.ema, self.parts
        return EditorParts(e["transformer"], e["text_encoder"], e["text_encoder_2"], p.vae, p.tokenizer, p.tokenizer_2)

    def state(self) -> dict[str, Any]:
        version, internal, gauss = self.rng.getstate()
        return {
            "modules": self.modules.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": [version, list(internal), gauss],
            "generator": self.generator.get_state(),
            "scenes": [list(s.codes) for s in self.pool.scenes],
            "next": self.pool.next,
            "step": self.step,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        version, internal, gauss = state["rng"]
        self.rng.setstate((version, tuple(internal), gauss))
        self.generator.set_state(state["generator"])
        self.pool.scenes = [Scene.from_codes(codes) for codes in state["scenes"]]
        self.pool.latents = encode_codes(self.pool.vae, np.array(state["scenes"]))
        self.pool.next, self.step, self.seconds = state["next"], state["step"], state["seconds"]


def _base_row(journal: Path) -> dict[str, Any]:
    """The log row that says when the base was saved."""
    rows = (json.loads(line) for line in journal.read_text().splitlines() if line.startswith("{"))
    return next(row for row in rows if "base" in row)


def _autoencoder(work: Path, recipe: EditorRecipe, seed: int, log: Log) -> Any:
    """The trained autoencoder of this run, from `work` where it is finished."""
    from diffusers import AutoencoderKL

    folder = work / "vae"
    if not (folder / "config.json").exists():
        vae = train_vae(seconds=recipe.vae_seconds, seed=seed, log=log)
        vae.save_pretrained(work / "vae.part")
        (work / "vae.part").rename(folder)
    return AutoencoderKL.from_pretrained(folder).eval().requires_grad_(False)


def train_editor(
    out: Path,
    *,
    seconds: float = 5000.0,
    steps: int | None = None,
    seed: int = 0,
    resume: bool = True,
    log: Log | None = None,
    recipe: EditorRecipe | None = None,
    evaluate_every: float = 300.0,
    watch: int = 128,
    final_n: int = 1000,
    threads: int = 1,
) -> dict[str, Any]:
    """Trains the tiny editor from nothing and writes its pipeline folder to `out` and an early one to `out`-base.

    `seconds`: CPU time of this process, the autoencoder's included; or `steps` of the transformer, which makes the run
    a function of the seed (up to the autoencoder, whose budget is time, unless it is finished). Checkpoints, the JSONL
    log and the autoencoder live in `out`.work; every `evaluate_every` CPU seconds `watch` held-out examples (twice as
    many single steps) are edited, and `final_n` at the end; with `resume` a run continues from there. Returns the
    final held-out figures (also in `out`/figures.json). Raises ValueError for a budget that leaves nothing to train.
    """
    import torch

    from premeditate.microworld.models.editor_card import write_card
    from premeditate.microworld.models.editor_eval import evaluate_editor, run_editor, suite, summary

    torch.set_num_threads(threads)
    out, recipe = Path(out), recipe or EditorRecipe()
    budget = seconds - recipe.vae_seconds
    if steps is None and budget <= 0:
        raise ValueError(f"seconds must exceed the autoencoder's {recipe.vae_seconds:.0f}, not {seconds:.0f}")
    work, base = out.with_name(out.name + ".work"), out.with_name(out.name + "-base")
    work.mkdir(parents=True, exist_ok=True)
    journal, checkpoint = work / "log.jsonl", work / "checkpoint.pt"
    if not resume:
        journal.unlink(missing_ok=True)
        checkpoint.unlink(missing_ok=True)

    def note(row: dict[str, Any]) -> None:
        with journal.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if log is not None:
            log(row)

    vae = _autoencoder(work, recipe, seed, note)
    trainer = Trainer(build_editor(vae, seed), recipe, seed)
    if resume and checkpoint.exists():
        trainer.restore(load_checkpoint(checkpoint))
        note({"part": "editor", "step": trainer.step, "resumed": True})
    watched = {name: suite(name, watch * (2 if name == "single" else 1)) for name in ("single", "two", "description")}
    pipe = trainer.averaged().pipeline()

    def evaluate(done: float) -> None:
        figures = {name: summary(part, run_editor(pipe, part)) for name, part in watched.items()}
        kinds = {op: row["exact"] for op, row in figures["single"]["kinds"].items()}
        row = {name: part["exact"] for name, part in figures.items()}
        cells = {key: figures["single"][key] for key in ("changed_cells", "kept_cells")}
        note({**head(done), "evaluation": {**row, **cells, "kinds": kinds}})

    def head(done: float) -> dict[str, Any]:
        return {
            "part": "editor",
            "step": trainer.step,
            "samples": trainer.step * recipe.batch,
            "cpu_seconds": round(trainer.seconds, 1),
            "done": round(done, 4),
        }

    begin, before = time.process_time(), trainer.seconds
    evaluated = saved = trainer.seconds
    sums: dict[str, float] = {}
    while True:
        trainer.seconds = before + time.process_time() - begin
        done = trainer.step / steps if steps else trainer.seconds / budget
        if done >= 1:
            break
        for key, value in trainer.update(done).items():
            if math.isfinite(value):
                sums[key] = sums.get(key, 0.0) + value / 100
        if trainer.step % 100 == 0:
            note({**head(done), **{key: round(value, 5) for key, value in sums.items()}})
            sums = {}
        if not (base / "premeditate.json").exists() and done >= recipe.base_at:
            save_editor(trainer.averaged(), base)
            note({**head(done), "base": str(base)})
        if trainer.seconds - evaluated > evaluate_every:
            evaluated = trainer.seconds
            evaluate(done)
        if trainer.seconds - saved > 120:
            saved = trainer.seconds
            save_checkpoint(checkpoint, trainer.state())
            save_editor(trainer.averaged(), work / "latest")
    save_checkpoint(checkpoint, trainer.state())
    size = save_editor(trainer.averaged(), out)
    final: dict[str, Any] = {}
    for name, folder in (("editor", out), ("editor-base", base)):
        figures = evaluate_editor(folder, final_n)
        at = _base_row(journal) if folder == base else head(1.0)
        figures["training"] = {
            "seed": seed,
            "steps": at["step"],
            "batch": recipe.batch,
            "cpu_seconds": at["cpu_seconds"],
            "vae_cpu_seconds": recipe.vae_seconds,
            "done": at["done"],
            "recipe": asdict(recipe),
        }
        (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
        write_card(folder, figures, journal)
        final[name] = figures
    shares = {name: {key: row["exact"] for key, row in f["suites"].items()} for name, f in final.items()}
    note({"part": "final", "bytes": size, **shares})
    return final
