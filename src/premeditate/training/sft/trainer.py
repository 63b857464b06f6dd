"""TRL's `SFTTrainer` for judges: our batches, our record, and checkpoints that are whole or not used.

OUT/checkpoints/checkpoint-120/     as transformers writes it: weights (or adapters), optimiser, scheduler, random states
                premeditate.json    written last: without it, the checkpoint is half written. Step, recipe, hashes
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from premeditate.files import write_atomic
from premeditate.local import SIDECAR
from premeditate.training.errors import TrainingError
from premeditate.training.journal import Journal
from premeditate.training.sft.data import Encoder
from premeditate.training.sft.recipe import Lora, SftRecipe

CHECKPOINTS = "checkpoints"
_NAME = re.compile(r"checkpoint-(\d+)")
_NAMES = {
    "loss": "loss", "grad_norm": "gradient_norm", "learning_rate": "lr", "mean_token_accuracy": "token_accuracy",
    "entropy": "entropy", "num_tokens": "tokens", "epoch": "epoch",
}  # fmt: skip
_LOWER = "start again with a lower optimizer.lr, or a lower optimizer.max_grad_norm"


class Trainer(SFTTrainer):  # type: ignore[misc]
    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """A checkpoint needs none, and the export has its own."""


def build(
    recipe: SftRecipe,
    model: Any,
    encoder: Encoder,
    train: Path,
    held_out: Path | None,
    record: Record,
    *,
    resumed: bool,
    devices: int,
) -> Trainer:
    """The trainer of `recipe`. `train`, `held_out`: Arrow files of lessons. `devices`: processes that train."""
    forward, accumulation = portions(recipe, devices)
    cpu, optimizer = model.device.type == "cpu", recipe.optimizer
    every = {"steps": recipe.steps or -1} if recipe.steps else {"steps": -1}
    args = SFTConfig(
        output_dir=str(Path(recipe.out) / CHECKPOINTS), seed=recipe.seed, data_seed=recipe.seed,
        max_steps=every["steps"], num_train_epochs=recipe.epochs or 1.0, use_cpu=cpu,
        per_device_train_batch_size=forward, per_device_eval_batch_size=forward,
        gradient_accumulation_steps=accumulation, learning_rate=optimizer.lr, lr_scheduler_type=_SCHEDULES[optimizer.schedule],
        warmup_steps=optimizer.warmup, adam_beta1=optimizer.betas[0], adam_beta2=optimizer.betas[1],
        weight_decay=optimizer.weight_decay, max_grad_norm=optimizer.max_grad_norm,
        bf16=recipe.model.dtype == "bfloat16", gradient_checkpointing=recipe.model.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="no" if held_out is None else "steps", eval_steps=recipe.evaluation.every,
        eval_on_start=held_out is not None and not resumed, prediction_loss_only=True,
        save_strategy="steps", save_steps=recipe.checkpoint.every, save_total_limit=None,
        logging_steps=1, logging_nan_inf_filter=False, report_to=[], disable_tqdm=True,
        remove_unused_columns=False, max_length=None, dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_num_workers=0 if cpu else 4, dataloader_pin_memory=not cpu,
    )  # fmt: skip
    args._n_gpu = min(args.n_gpu, 1)  # one process, one device: torchrun starts several
    made = Trainer(
        model=model, args=args, data_collator=encoder, processing_class=encoder.processor,
        train_dataset=Dataset.from_file(str(train)),
        eval_dataset=None if held_out is None else Dataset.from_file(str(held_out)),
        callbacks=[record], peft_config=None if recipe.model.lora is None else _lora(recipe.model.lora, model),
    )  # fmt: skip
    for printing in (PrinterCallback, ProgressCallback):
        made.remove_callback(printing)
    return made


_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def portions(recipe: SftRecipe, devices: int) -> tuple[int, int]:
    """(samples of a forward, forwards of a step) of each device. Raises `TrainingError` for a batch that cannot be cut
    so."""
    size, forward = recipe.batch.size, min(recipe.batch.forward, max(1, recipe.batch.size // devices))
    if size % (devices * forward):
        share, rest = divmod(size, devices)
        near = max(n for n in range(1, forward + 1) if share % n == 0) if share and not rest else None
        mend = (
            f"give batch.forward={near}" if near else f"give batch.size={devices * forward * max(1, share // forward)}"
        )
        raise TrainingError(f"a batch of {size} cannot be cut into forwards of {forward} on {devices} devices", mend)
    return forward, size // (devices * forward)


def _lora(lora: Lora, model: Any) -> Any:
    """Adapters in the language model alone: some picture encoders have layers of the same names."""
    from peft import LoraConfig
    from torch import nn

    from premeditate.errors import ModelError
    from premeditate.local import nearest

    linear = [name for name, part in model.named_modules()
              if isinstance(part, nn.Linear) and "language_model." in name]  # fmt: skip
    for target in lora.targets:
        if not any(name.endswith(f".{target}") for name in linear):
            ends = sorted({name.rsplit(".", 1)[-1] for name in linear})
            raise ModelError(f"the language model has no linear layer {target!r} for LoRA",
                             f"did you mean {nearest(target, ends)}? It has {', '.join(ends)}")  # fmt: skip
    names = "|".join(re.escape(target) for target in lora.targets)
    return LoraConfig(r=lora.rank, lora_alpha=lora.alpha or lora.rank, task_type="CAUSAL_LM",
                      target_modules=rf".*language_model\..*\.({names})")  # fmt: skip


class Record(TrainerCallback):  # type: ignore[misc]
    """Writes figures into the journal and says when a checkpoint is whole. `state`: what a checkpoint belongs to."""

    def __init__(self, journal: Journal | None, keep: int, state: Mapping[str, Any]) -> None:
        self.journal, self.keep, self.state = journal, keep, state
        self._since = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **kwargs: Any) -> None:
        held_out = "eval_loss" in logs
        if not held_out and "loss" not in logs:
            return  # the totals at the end
        prefix, name = ("eval_", "eval/") if held_out else ("", "")
        figures = {f"{name}{new}": float(logs[prefix + old]) for old, new in _NAMES.items() if prefix + old in logs}
        if held_out:
            figures.pop("eval/tokens", None)
            figures["seconds/eval"] = float(logs.get("eval_runtime", math.nan))
        else:
            figures["seconds/update"] = time.perf_counter() - self._since
        if self.journal is not None:
            self.journal.write("eval" if held_out else "step", state.global_step, figures)
        loss = figures["eval/loss" if held_out else "loss"]
        if not math.isfinite(loss) or not math.isfinite(figures.get("gradient_norm", 0.0)):
            raise TrainingError(f"the {'held-out ' * held_out}loss of step {state.global_step} is {loss}", _LOWER)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        row = {"step": state.global_step, **self.state}
        write_atomic(folder / f"checkpoint-{state.global_step}" / SIDECAR, (json.dumps(row, indent=1) + "\n").encode())
        for old in sorted(whole(folder))[: -self.keep]:
            shutil.rmtree(folder / f"checkpoint-{old}", ignore_errors=True)


def whole(folder: Path) -> dict[int, dict[str, Any]]:
    """The checkpoints in `folder` that were written to their end: what each belongs to, by step."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        if match := _NAME.fullmatch(path.name):
            try:
                row = json.loads((path / SIDECAR).read_bytes())
            except (OSError, ValueError):
                continue
            if isinstance(row, dict) and row.get("step") == int(match[1]):
                found[row["step"]] = row
    return found


Say = Callable[[str], None]
