"""TRL's `SFTTrainer` for judges: our batches, and our record of what it does."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState
from trl import SFTConfig, SFTTrainer

from premeditate.training.errors import TrainingError
from premeditate.training.journal import Journal
from premeditate.training.lora import lora_config
from premeditate.training.sft import checkpoints
from premeditate.training.sft.data import Encoder
from premeditate.training.sft.recipe import SftRecipe, portions
from premeditate.training.tokens.base import LANGUAGE

_NAMES = {
    "loss": "loss", "grad_norm": "gradient_norm", "learning_rate": "lr", "mean_token_accuracy": "token_accuracy",
    "entropy": "entropy", "epoch": "epoch",
}  # fmt: skip
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
_LOWER = "start again with a lower optimizer.lr, or a lower optimizer.max_grad_norm"
WORKERS = 4


class Trainer(SFTTrainer):
    """Held-out figures are means over the tokens of all answers. TRL's are means over batches, which change with the
    size of a batch."""

    _sums: Tensor | float = 0.0

    def run(self, checkpoint: Path | None) -> None:
        """Trains to the last step, from `checkpoint` on. (`train` makes a step more of a run that was done.)"""
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            if state.global_step >= state.max_steps:
                self._load_from_checkpoint(str(checkpoint))
                self.state = state
                return
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            found = model(**inputs, use_cache=False, fused_lm_head=True)
        rows = [-found.log_probs, found.is_top1, found.entropy, found.label_mask]  # all 0 where no label stands
        sums = torch.stack([row.double().sum(1) for row in rows], 1)
        self._sums = self._sums + self.accelerator.gather_for_metrics(sums).sum(0)
        return sums[:, 0].sum() / sums[:, -1].sum(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "eval_loss" in logs:
            assert isinstance(self._sums, Tensor)
            loss, right, entropy, count = self._sums.tolist()
            logs |= {"eval_loss": loss / count, "eval_mean_token_accuracy": right / count,
                     "eval_entropy": entropy / count}  # fmt: skip
            self._sums = 0.0
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """A checkpoint needs none, and the export has its own."""


class Record(TrainerCallback):
    """Writes figures into the journal and says when a checkpoint is whole. `state`: what a checkpoint belongs to."""

    def __init__(self, journal: Journal | None, keep: int, state: Mapping[str, Any]) -> None:
        self.journal, self.keep, self.state = journal, keep, state
        self._since = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **kwargs: Any) -> None:
        """Raises `TrainingError` for a loss or a gradient that is not finite."""
        if "eval_loss" in logs:
            figures = {
                f"eval/{new}": float(logs[f"eval_{old}"]) for old, new in _NAMES.items() if f"eval_{old}" in logs
            }
            self._write("eval", state, figures | {"seconds/eval": float(logs.get("eval_runtime", math.nan))})
        elif "loss" in logs:  # else the totals at the end
            figures = {new: float(logs[old]) for old, new in _NAMES.items() if old in logs}
            self._write("step", state, figures | {"seconds/update": time.perf_counter() - self._since})

    def _write(self, kind: str, state: Any, figures: Mapping[str, float]) -> None:
        if self.journal is not None:
            self.journal.write(kind, state.global_step, figures)
        for name in ("loss", "eval/loss", "gradient_norm"):
            if not math.isfinite(figures.get(name, 0.0)):
                raise TrainingError(f"step {state.global_step}: {name} is {figures[name]}", _LOWER)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            checkpoints.finish(Path(args.output_dir), state.global_step, self.state, self.keep)


def build(
    recipe: SftRecipe, model: Any, encoder: Encoder, train: Path, held_out: Path | None, record: Record, *,
    resumed: bool, devices: int,
) -> Trainer:  # fmt: skip
    """The trainer of `recipe`. `train`, `held_out`: Arrow files of lessons. `devices`: processes that train."""
    forward, accumulation = portions(recipe.batch, devices)
    optimizer, device = recipe.optimizer, model.device.type
    args = SFTConfig(
        output_dir=str(Path(recipe.out) / checkpoints.CHECKPOINTS), seed=recipe.seed, data_seed=recipe.seed,
        max_steps=recipe.steps or -1, num_train_epochs=recipe.epochs or 1.0, use_cpu=device == "cpu",
        per_device_train_batch_size=forward, per_device_eval_batch_size=forward,
        gradient_accumulation_steps=accumulation, learning_rate=optimizer.lr,
        lr_scheduler_type=_SCHEDULES[optimizer.schedule], warmup_steps=optimizer.warmup,
        adam_beta1=optimizer.betas[0], adam_beta2=optimizer.betas[1], weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm, bf16=recipe.model.dtype == "bfloat16",
        gradient_checkpointing=recipe.model.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="no" if held_out is None else "steps", eval_steps=recipe.evaluation.every,
        eval_on_start=held_out is not None and not resumed, prediction_loss_only=True,
        save_strategy="steps", save_steps=recipe.checkpoint.every, save_total_limit=None,
        logging_steps=1, logging_nan_inf_filter=False, report_to=[], disable_tqdm=True,
        remove_unused_columns=False, max_length=None, dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_num_workers=WORKERS if device == "cuda" else 0, dataloader_pin_memory=device == "cuda",
    )  # fmt: skip
    args._n_gpu = min(args.n_gpu, 1)  # one process, one device: torchrun starts several
    lora = recipe.model.lora
    adapters = None if lora is None else lora_config(model, lora, within=LANGUAGE, task_type="CAUSAL_LM")
    made = Trainer(
        model=model, args=args, data_collator=encoder, processing_class=encoder.processor,
        train_dataset=Dataset.from_file(str(train)),
        eval_dataset=None if held_out is None else Dataset.from_file(str(held_out)),
        callbacks=[record], peft_config=adapters,
    )  # fmt: skip
    # Some models say that they cannot: but the loss is TRL's. A step's loss is then the mean over the tokens of all its
    # answers, and not of forwards that hold more or fewer.
    made.model_accepts_loss_kwargs = True
    for printing in (PrinterCallback, ProgressCallback):
        made.remove_callback(printing)
    return made
