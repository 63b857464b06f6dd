"""A vision-language model as a token policy: what it samples, and the log-probabilities of that. Real classes with
random weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from premeditate import presets
from premeditate.reasoners.base import ChatRequest
from premeditate.reasoners.transformers import TransformersReasoner
from premeditate.training.lora import make_trainable
from premeditate.training.recipe import Lora
from premeditate.training.tokens import export
from premeditate.training.tokens import model as tokens
from premeditate.training.tokens.model import TokenModel, Trace
from support.tiny_vlm import build_vlm

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
LORA = Lora(rank=4, targets=("q_proj", "v_proj"))
Load = Callable[[str], TransformersReasoner]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """A fresh reasoner of a family, each time with the same weights."""
    folders = {name: build_vlm(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}
    return lambda name: TransformersReasoner.load(str(folders[name]), device="cpu", dtype="float32")


def picture(grey: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, (grey, grey // 2, 255 - grey))


def requests(**changes: Any) -> list[ChatRequest]:
    """Prompts of several lengths, with no picture, one, and two of different sizes."""
    asked: list[tuple[tuple[Image.Image, ...], str]] = [
        ((picture(10), picture(200, (48, 32))), "which is better?"), ((), "a"), ((picture(90),), "what is it " * 4),
        ((picture(250), picture(0)), "b"),
    ]  # fmt: skip
    values = {"max_tokens": 6, "temperature": 1.3, **changes}
    return [ChatRequest(images, text, seed=seed, **values) for seed, (images, text) in enumerate(asked)]


def trace(request: ChatRequest, said: list[int]) -> Trace:
    return Trace(request, torch.tensor(said), "", False)


def flat(model: TokenModel, traces: list[Trace]) -> list[torch.Tensor]:
    """Each trace's log-probabilities, without what fills the batch up."""
    values, mask = model.log_probs(traces)
    return [row[keep] for row, keep in zip(values, mask, strict=True)]


# -- the distribution -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "temperature"), [("qwen2_5_vl", 0.7), ("qwen3_vl", 2.0)])
def test_the_next_token_has_the_softmax_of_a_plain_forward(load: Load, family: str, temperature: float) -> None:
    model = TokenModel(load(family))
    request = requests(temperature=temperature)[0]
    size = model.network.config.get_text_config().vocab_size
    said = sorted(set(range(size)) - set(model.never))
    with torch.no_grad():
        found = model.log_probs([trace(request, [v]) for v in said])[0][:, 0].exp()
        logits = model.network(**model.reasoner.encode([request])).logits[0, -1].double() / temperature
    assert len(model.never) == 4 and float(found.sum()) == pytest.approx(1, abs=1e-5), "the rest is never said"
    assert torch.allclose(found.double(), logits[said].softmax(0), atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_traces_are_drawn_from_what_log_probs_says(load: Load, family: str) -> None:
    """All texts of at most three tokens out of four, against how often each is written. Settings under which the model
    would say something else are left out, and stand there again afterwards."""
    reasoner = load(family)
    end = reasoner.tokenizer.eos_token_id
    words = [reasoner.tokenizer.convert_tokens_to_ids(w) for w in ("a", "b", "c")]
    size = reasoner.model.config.get_text_config().vocab_size
    settings = reasoner.model.generation_config
    settings.suppress_tokens = sorted(set(range(size)) - {end, *words})
    settings.repetition_penalty, settings.top_k, settings.top_p = 3.0, 1, 0.1
    before = settings.to_dict()
    model = TokenModel(reasoner)
    (asked, *_) = requests(max_tokens=3, temperature=4.0)
    texts = [(end,)] + [(a, end) for a in words]
    texts += [(a, b, c) for a in words for b in words for c in (*words, end)]
    with torch.no_grad():
        odds = [float(p.sum().exp()) for p in flat(model, [trace(asked, list(text)) for text in texts])]
    assert sum(odds) == pytest.approx(1, abs=1e-5)
    count = 1500
    asked_often = [ChatRequest(asked.images, asked.text, max_tokens=3, temperature=4.0, seed=s) for s in range(count)]
    written = [one for one in model.write(asked_often, 500) if isinstance(one, Trace)]
    seen = Counter(tuple(one.tokens.tolist()) for one in written)
    assert sum(seen.values()) == count and seen.keys() <= set(texts)
    assert all(one.ended == (one.tokens[-1] == end) for one in written)
    rare = sum(p for p in odds if p * count < 5)
    common = [(seen[text], p * count) for text, p in zip(texts, odds, strict=True) if p * count >= 5]
    common.append((count - sum(n for n, _ in common), rare * count + 1e-9))
    chi, free = sum((n - wanted) ** 2 / wanted for n, wanted in common), len(common) - 1
    assert free >= 8, "too few texts to tell"
    assert chi < free + 4 * math.sqrt(2 * free)
    assert reasoner.model.generation_config is settings and settings.to_dict() == before


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trace_has_its_own_tokens_and_log_probs_in_any_batch(load: Load, family: str) -> None:
    model = TokenModel(load(family))
    asked = requests()
    together = model.write(asked, 4)
    alone = [one for request in asked for one in model.write([request], 1)]
    assert [one.tokens.tolist() for one in together] == [one.tokens.tolist() for one in alone]  # type: ignore[union-attr]
    traces = [trace(asked[0], [70, 71]), trace(asked[1], [72, 73, 74, 75, 76]), trace(asked[2], [80]),
              trace(asked[3], [90, 91, 92])]  # fmt: skip
    with torch.no_grad():
        batch, apart = flat(model, traces), [flat(model, [one])[0] for one in traces]
    for one, values, wanted in zip(traces, batch, apart, strict=True):
        assert len(values) == len(one.tokens)
        assert torch.allclose(values, wanted, atol=1e-5)


def test_a_greedy_trace_says_what_the_reasoner_says(load: Load) -> None:
    import asyncio

    reasoner = load("qwen2_5_vl")
    reasoner.model.generation_config.eos_token_id = None  # then the tokenizer's ends a text
    asked = requests(temperature=0.0, max_tokens=8)
    written = TokenModel(reasoner).write(asked, 2)
    said = asyncio.run(reasoner.chat(asked))
    for one, completion in zip(written, said, strict=True):
        assert isinstance(one, Trace)
        assert one.text == completion.text or (one.ended and completion.text.startswith(one.text))


def test_an_export_writes_what_was_trained_and_measured(load: Load, tmp_path: Path) -> None:
    """Whatever the base's settings of generation would make of it: for a reasoner, and for plain transformers."""
    import asyncio

    from transformers import Qwen2_5_VLForConditionalGeneration

    reasoner = load("qwen2_5_vl")
    settings = reasoner.model.generation_config
    settings.repetition_penalty, settings.no_repeat_ngram_size, settings.suppress_tokens = 1.5, 2, [70, 71]
    model, asked = TokenModel(reasoner), requests(temperature=0.0, max_tokens=12)
    written = [one for one in model.write(asked, 4) if isinstance(one, Trace)]
    penalised = asyncio.run(reasoner.chat(asked))
    assert sum(one.text != its.text for one, its in zip(written, penalised, strict=True)) > 1
    card = export.Card("mine", presets.Preset("mine", ""), "think", "{}", "Pairs", "0")
    export.write(tmp_path / "out", reasoner.model, reasoner.processor, {}, torch.float32, card)
    judge = TransformersReasoner.load(str(tmp_path / "out"), device="cpu", dtype="float32")
    assert [one.text for one in asyncio.run(judge.chat(asked))] == [one.text for one in written]
    alone = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for request, one in zip(asked, written, strict=True):
        encoded = judge.encode([request])
        said = alone.generate(**encoded, max_new_tokens=12)[0, encoded["input_ids"].shape[1] :]
        assert said[: len(one.tokens)].tolist() == one.tokens.tolist()
    assert "holds no penalty for repetition" in (tmp_path / "out" / "README.md").read_text()
    assert TokenModel(judge).never == model.never


# -- what it trains ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_is_the_model_before_training(load: Load, family: str, lora: Lora | None) -> None:
    untouched = TokenModel(load(family))
    reasoner = load(family)
    model = TokenModel(reasoner, make_trainable(reasoner.model, lora, seed=0, reference=True))
    trained = {name for name, p in model.network.named_parameters() if p.requires_grad}
    assert (lora is None) == (len(trained) == len(dict(model.network.named_parameters())))
    traces = [one for one in model.write(requests(), 4) if isinstance(one, Trace)]
    with torch.no_grad():
        wanted = untouched.log_probs(traces)[0]
        assert torch.allclose(model.log_probs(traces)[0], wanted, atol=1e-6)
    optimizer = torch.optim.SGD([p for p in model.network.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        now, _ = model.log_probs(traces)
        reference = model.reference_log_probs(traces)  # asked for between forward and backward, as a loss with KL does
        assert not reference.requires_grad
        now.sum().backward()
        optimizer.step()
    grads = {name for name, p in model.network.named_parameters() if p.grad is not None}
    assert grads and grads <= trained
    assert {name for name, p in model.network.named_parameters() if p.requires_grad} == trained
    with torch.no_grad():
        assert not torch.allclose(model.log_probs(traces)[0], wanted, atol=1e-3)
    assert torch.allclose(model.reference_log_probs(traces), wanted, atol=1e-6)


def test_gradients_are_those_of_a_plain_forward(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is cut into portions, calculated again, or kept out of memory."""
    model = TokenModel(load("qwen2_5_vl"))
    traces = [one for one in model.write(requests(), 4) if isinstance(one, Trace)]
    weights = [p for p in model.network.parameters() if p.requires_grad]

    def gradients() -> torch.Tensor:
        values, mask = model.log_probs(traces)
        found = torch.autograd.grad((values * mask).pow(2).sum(), weights, allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])

    wanted: Any = 0.0
    for one in traces:
        encoded = model.reasoner.encode([one.request])
        ids, length = encoded["input_ids"], len(one.tokens)
        encoded["input_ids"] = torch.cat([ids, one.tokens[None]], 1)
        encoded["attention_mask"] = torch.ones_like(encoded["input_ids"])
        if "mm_token_type_ids" in encoded:
            filled = torch.nn.functional.pad(encoded["mm_token_type_ids"], (0, length))
            encoded["mm_token_type_ids"] = filled
        scaled = model.network(**encoded).logits[0, -length - 1 : -1] / one.request.temperature
        scaled = scaled.index_fill(-1, torch.tensor(model.never), -torch.inf)
        wanted = wanted + scaled.log_softmax(-1)[torch.arange(length), one.tokens].pow(2).sum()
    found = torch.autograd.grad(wanted, weights, allow_unused=True)
    plain = torch.cat([g.flatten() for g in found if g is not None])
    scale = float(plain.abs().max())
    assert torch.allclose(gradients(), plain, atol=1e-4 * scale)
    monkeypatch.setattr(tokens, "_PORTION", 1)
    assert torch.allclose(gradients(), plain, atol=1e-4 * scale)
    model.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.network.train()
    assert torch.allclose(gradients(), plain, atol=1e-4 * scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_forwards_calculate_in_half_precision_over_weights_of_float32(load: Load, family: str) -> None:
    """Those that sample, that train and that look back; what comes of it is float32's up to rounding."""
    whole, reasoner = TokenModel(load(family)), load(family)
    frozen = make_trainable(reasoner.model, None, seed=0, reference=True)
    half = TokenModel(reasoner, frozen, torch.bfloat16)
    seen: set[tuple[torch.dtype, bool]] = set()
    layer = reasoner.model.model.language_model.layers[0].self_attn.q_proj
    layer.register_forward_hook(lambda _, __, out: seen.add((out.dtype, out.requires_grad)))
    traces = [one for one in half.write(requests(), 4) if isinstance(one, Trace)]
    assert seen == {(torch.bfloat16, False)} and len(traces) == 4
    weights = [p for p in half.network.parameters() if p.requires_grad]
    found = []
    for model in (whole, half):
        values, mask = model.log_probs(traces)
        network = [p for p in model.network.parameters() if p.requires_grad]
        grads = torch.autograd.grad(values[mask].sum(), network, allow_unused=True)
        assert {grad.dtype for grad in grads if grad is not None} == {torch.float32}
        found.append((values[mask].detach(), torch.cat([g.flatten() for g in grads if g is not None])))
    assert seen == {(torch.bfloat16, False), (torch.bfloat16, True)}
    assert {p.dtype for p in weights} == {torch.float32}
    (wanted, slope), (near, its) = found
    assert near.dtype == torch.float32 and not torch.equal(near, wanted)
    assert float((near - wanted).abs().max()) < 0.05 * float(wanted.abs().max())
    assert float(torch.cosine_similarity(slope, its, dim=0)) > 0.9, "weights as large as these magnify rounding"
    values, mask = half.log_probs(traces)
    assert torch.equal(half.reference_log_probs(traces)[mask], values[mask])


def test_a_request_that_the_model_cannot_take_costs_the_others_nothing(load: Load) -> None:
    model = TokenModel(load("qwen2_5_vl"))
    good = requests()
    asked = [good[0], ChatRequest((picture(1),), "long " * 600, max_tokens=3), good[1],
             ChatRequest((picture(1, (2, 900)),), "thin", max_tokens=3), *good[2:]]  # fmt: skip
    found = model.write(asked, 4)
    assert isinstance(found[1], str) and "shorten it" in found[1]
    assert isinstance(found[3], str) and "aspect ratio" in found[3]
    others = [one for i, one in enumerate(found) if i not in (1, 3)]
    for one, wanted in zip(others, model.write(good, 4), strict=True):
        assert isinstance(one, Trace) and isinstance(wanted, Trace)
        assert one.tokens.tolist() == wanted.tokens.tolist() and one.request is wanted.request
    assert model.write([asked[1]], 4) == [found[1]]
