"""Any transformers vision-language model that `AutoModelForImageTextToText` loads, from a folder or from the hub."""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from premeditate.errors import ModelError
from premeditate.local import (
    Job,
    Stopped,
    Worker,
    check_options,
    load_failure,
    pick_device,
    pick_dtype,
    quiet,
    read_sidecar,
)
from premeditate.prompts.base import defuse
from premeditate.qwen_processor import FAMILIES, load_processor
from premeditate.reasoners import labels as scoring
from premeditate.reasoners.base import ChatRequest, Completion

if TYPE_CHECKING:
    from torch import Tensor

SIDECAR_OPTIONS = ("prompts", "max_batch", "max_pixels")
OPTIONS = (*SIDECAR_OPTIONS, "name", "device", "dtype", "revision")
SMALL = 100_000_000
VISION_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "audio_token_id")


class TransformersReasoner:
    """Chats with a transformers vision-language model. `prompts`: the prompt set it speaks. `max_batch`: rows per pass,
    by default 64 for a model of less than a hundred million parameters and 8 for larger ones.

    Pictures come first and the text after them, as one user turn. Control tokens in the text are encoded as plain text
    (Qwen) or broken up (other families, whose processors count placeholders in the text before they encode it), so
    nothing that a user or a model wrote can open a turn or claim to be a picture. Vision tokens are never generated.
    A request's text depends on its own seed and temperature and not on its batch (up to the rounding of matrix
    products). A request that fails gets an `error`; the others of its batch go on.
    """

    def __init__(
        self, model: Any, processor: Any, *, name: str = "", prompts: str = "general", max_batch: int | None = None
    ) -> None:
        if max_batch is None:
            max_batch = 64 if sum(p.numel() for p in model.parameters()) < SMALL else 8
        if not isinstance(max_batch, int) or max_batch < 1:
            raise ModelError(f"the reasoner option max_batch is {max_batch!r}", "give a whole number of at least 1")
        if "sanitize_control_tokens" not in inspect.signature(processor.apply_chat_template).parameters:
            raise ModelError("this version of transformers cannot encode control tokens as text",
                             "pip install -U 'transformers>=5.23'")  # fmt: skip
        self.model, self.processor, self.tokenizer = model.eval(), processor, processor.tokenizer
        self.name, self.prompts, self.max_batch = name or type(model).__name__, prompts, max_batch
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        config = model.config
        self._limit = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.banned = vision_tokens(config)
        self._shares = config.model_type in scoring.SHARED and hasattr(processor, "pixels_once")
        self._marks = config.model_type in FAMILIES
        self._controls = _controls(processor)
        self._worker = Worker(f"reasoner-{self.name}")

    @classmethod
    def load(cls, spec: str, **options: Any) -> TransformersReasoner:
        """From a folder or a hub id `org/name`. `options`: the constructor's, and `device` ("cpu", "cuda", ...; default
        the best there is), `dtype` (default: float32 on a CPU, else bfloat16), `revision` (hub), `max_pixels` (larger
        pictures are reduced to this many; Qwen models). Defaults come from the folder's `premeditate.json`.

        Only safetensors are read and no code that comes with a model is run. Raises `ModelError`.
        """
        check_options(options, OPTIONS, "a transformers reasoner")
        local = Path(spec).is_dir()
        sidecar = read_sidecar(Path(spec), SIDECAR_OPTIONS) if local else {}
        settings = {**sidecar, **{k: v for k, v in options.items() if v is not None}}
        device = pick_device(settings.pop("device", None))
        dtype = pick_dtype(settings.pop("dtype", None), device)
        revision, pixels = settings.pop("revision", None), settings.pop("max_pixels", None)
        hub = {"local_files_only": True} if local else {"revision": revision}
        with quiet("transformers", loading=True):
            import transformers

            try:
                kind = transformers.AutoConfig.from_pretrained(spec, trust_remote_code=False, **hub).model_type
                processor = _processor(spec, kind, hub)
                model = transformers.AutoModelForImageTextToText.from_pretrained(
                    spec, dtype=dtype, use_safetensors=True, trust_remote_code=False, **hub
                ).to(device)
            except ModelError:
                raise
            except Exception as error:
                raise load_failure(spec, error) from error
        if pixels is not None:
            size = getattr(processor.image_processor, "size", None) or {}
            if not isinstance(pixels, int) or pixels < 1 or "longest_edge" not in size:
                raise ModelError(f"max_pixels is {pixels!r}", "give a whole number, and only for a Qwen-VL model")
            size["longest_edge"] = pixels
            size["shortest_edge"] = min(size["shortest_edge"], pixels)
        return cls(model, processor, **{"name": spec, **settings})

    async def chat(self, requests: Sequence[ChatRequest]) -> list[Completion]:
        """One completion per request, in order. When cancelled, the work stops at the next token."""

        def work(job: Job) -> list[Completion]:
            import torch

            with quiet("transformers"), torch.inference_mode():
                return self._chat(list(requests), job)

        return await self._worker.run(work)

    def _chat(self, requests: list[ChatRequest], job: Job) -> list[Completion]:
        # Like goes with like: little padding, and one processor call serves a batch.
        order = sorted(range(len(requests)), key=lambda i: self._likeness(requests[i]))
        results: dict[int, Completion] = {}
        for batch in self._batches(requests, order):
            work = self._score if requests[batch[0]].labels else self._write
            done = self._attempt(work, [requests[i] for i in batch], job)
            results.update(zip(batch, done, strict=True))
        return [results[i] for i in range(len(requests))]

    @staticmethod
    def _likeness(request: ChatRequest) -> tuple[Any, ...]:
        return request.labels, len(request.images), 0 if request.labels else request.max_tokens, len(request.text)

    def _batches(self, requests: list[ChatRequest], order: list[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        for i in order:
            # Scoring cuts its own batches: it wants to see all questions about the same pictures together.
            full = len(batch) >= self.max_batch and not requests[i].labels
            if batch and (full or self._likeness(requests[i])[:2] != self._likeness(requests[batch[0]])[:2]):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _attempt(
        self, work: Callable[[list[ChatRequest], Job], list[Completion]], requests: list[ChatRequest], job: Job
    ) -> list[Completion]:
        """A batch that fails is tried again one by one, so that only the guilty request gets an error."""
        start = time.perf_counter()
        try:
            job.check()
            done = work(requests, job)
        except Stopped:
            raise
        except Exception as error:
            if len(requests) > 1:
                return [completion for request in requests for completion in self._attempt(work, [request], job)]
            return [Completion(seconds=time.perf_counter() - start, error=f"{type(error).__name__}: {error}")]
        share = (time.perf_counter() - start) / len(requests)
        return [replace(completion, seconds=share) for completion in done]

    def encode(self, requests: Sequence[ChatRequest], *, once: bool = False) -> dict[str, Tensor]:
        """The processor's tensors, left-padded. `once`: a picture object that returns is turned into pixels once."""
        turns = [[{"role": "user", "content": [*({"type": "image", "image": image} for image in request.images),
                                               {"type": "text", "text": self._plain(request.text)}]}]
                 for request in requests]  # fmt: skip
        pixels: AbstractContextManager[Any] = self.processor.pixels_once() if once else nullcontext()
        with pixels:
            encoded = self.processor.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
                sanitize_control_tokens=self._marks, processor_kwargs={"padding": True},
            )  # fmt: skip
        longest = int(encoded["attention_mask"].sum(1).max())
        if self._limit and longest > self._limit:
            raise ValueError(f"the prompt has {longest} tokens, {self.name} reads {self._limit}; shorten it")
        device, dtype = self.model.device, self.model.dtype
        return {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in encoded.items()}

    def _plain(self, text: str) -> str:
        """The text with its control tokens broken up, where they are not marked as text later."""
        if not self._marks:
            text = defuse(text)
            for token in self._controls:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _write(self, requests: list[ChatRequest], job: Job) -> list[Completion]:
        written = self.generate(self.encode(requests), requests, job)
        return [
            Completion(self.tokenizer.decode(row[: request.max_tokens], skip_special_tokens=True).strip())
            for request, row in zip(requests, written, strict=True)
        ]

    def generate(self, encoded: Mapping[str, Tensor], requests: Sequence[ChatRequest], job: Job) -> Tensor:
        """The tokens [N, at most the largest max_tokens] written behind `encoded` (of `encode`), each row drawn from
        softmax(logits / temperature) without the `banned` tokens; behind a row's end stand padding tokens."""
        from premeditate.reasoners.sampling import SeededNoise

        noise = SeededNoise([r.temperature for r in requests], [r.seed for r in requests], self.banned)

        def stop(ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
            job.check()
            return ids.new_zeros(len(ids), dtype=bool)

        sequences: Tensor = self.model.generate(
            **encoded, max_new_tokens=max(r.max_tokens for r in requests), do_sample=False, temperature=None,
            top_p=None, top_k=None, logits_processor=[noise], stopping_criteria=[stop], num_beams=1,
            pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        return sequences[:, encoded["input_ids"].shape[1] :]

    def _score(self, requests: list[ChatRequest], job: Job) -> list[Completion]:
        """Label probabilities. Questions about the same pictures share one pass over these (see `labels`)."""
        labels = scoring.Labels.read(self.tokenizer, requests[0].labels)
        sets: dict[tuple[bytes, ...], list[int]] = {}
        hashes: dict[int, bytes] = {}
        for i, request in enumerate(requests):
            key = tuple(_digest(image, hashes) for image in request.images)
            sets.setdefault(key, []).append(i)
        share = self._shares and bool(requests[0].images) and len(sets) < len(requests)
        done: dict[int, dict[str, float]] = {}
        for members in _cut(list(sets.values()), self.max_batch if share else None, self.max_batch):
            job.check()
            flat = [i for rows in members for i in rows]
            found = self._score_shared(requests, members, labels, job) if share else None
            if found is None:
                found = []
                for start in range(0, len(flat), self.max_batch):
                    job.check()
                    part = [requests[i] for i in flat[start : start + self.max_batch]]
                    found += scoring.plain(self.model, self.encode(part), labels)
            done.update(zip(flat, found, strict=True))
        return [Completion(probabilities=done[i]) for i in range(len(requests))]

    def _score_shared(
        self, requests: list[ChatRequest], members: list[list[int]], labels: scoring.Labels, job: Job
    ) -> list[dict[str, float]] | None:
        rows, owner = [], []
        for s, indices in enumerate(members):
            # Picture objects of its own: a picture that two sets have in common must come once for each.
            images = tuple(image.copy() for image in requests[indices[0]].images)
            rows += [replace(requests[i], images=images) for i in indices]
            owner += [s] * len(indices)
        encoded = self.encode(rows, once=True)
        pad = self.tokenizer.pad_token_id
        return scoring.shared(self.model, encoded, owner, labels, pad, self.max_batch, job.check)


def _cut(sets: list[list[int]], most: int | None, rows: int) -> Iterator[list[list[int]]]:
    """Portions of at most `most` sets (None: all in one), and of not many more than 8 x `rows` rows."""
    portion: list[list[int]] = []
    for members in sets:
        full = most is not None and (len(portion) >= most or sum(map(len, portion)) + len(members) > 8 * rows)
        if portion and full:
            yield portion
            portion = []
        portion.append(members)
    if portion:
        yield portion


def _digest(image: Image.Image, known: dict[int, bytes]) -> bytes:
    """Identity by content: the same picture arrives as several objects when it was read from a store."""
    if id(image) not in known:
        known[id(image)] = hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).digest()
    return known[id(image)]


def vision_tokens(config: Any) -> list[int]:
    """The tokens of a model's configuration that stand for pictures, which no text holds."""
    found = (getattr(config, token, None) for token in VISION_TOKENS)
    return sorted({token for token in found if isinstance(token, int)})


def _controls(processor: Any) -> list[str]:
    """What the tokenizer or the processor reads as more than its letters, longest first."""
    found = {token.content for token in processor.tokenizer.added_tokens_decoder.values()
             if token.special or not token.content[:1].isalnum()}  # fmt: skip
    found |= {getattr(processor, name, None) for name in ("image_token", "boi_token", "fake_image_token")}
    return sorted((t for t in found if isinstance(t, str) and len(t.strip()) > 1), key=len, reverse=True)


def _processor(spec: str, model_type: str, hub: dict[str, Any]) -> Any:
    """Qwen's own without the video part, everybody else's as `AutoProcessor` builds it."""
    if model_type in FAMILIES:
        return load_processor(spec, FAMILIES[model_type], **hub)
    from transformers import AutoProcessor
    from transformers.utils import is_torchvision_available

    try:
        processor = AutoProcessor.from_pretrained(spec, trust_remote_code=False, **hub)
    except ImportError as error:
        if is_torchvision_available():
            raise
        raise ModelError(f"the processor of {spec} ({model_type}) needs torchvision",
                         "install the torchvision that belongs to this torch") from error  # fmt: skip
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ModelError(f"{spec} ({model_type}) reads no pictures", "give a vision-language model")
    return processor
