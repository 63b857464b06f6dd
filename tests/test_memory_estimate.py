"""The memory estimate: parameters counted on the real classes, activations against measurements of real runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from premeditate.errors import ModelError
from premeditate.training.flow import shadow
from premeditate.training.flow.memory import GIB, MemoryEstimate, as_json, estimate, lora_parameters, predict, said
from premeditate.training.flow.published import PUBLISHED, Architecture, describe, published
from premeditate.training.flow.shadow import Ledger, Work, census
from premeditate.training.geometry import Geometry
from premeditate.training.lora import add_lora
from premeditate.training.recipe import Lora, Recipe

FLUX = ("FluxTransformer2DModel", {
    "patch_size": 1, "in_channels": 16, "num_layers": 3, "num_single_layers": 4, "attention_head_dim": 16,
    "num_attention_heads": 4, "joint_attention_dim": 32, "pooled_projection_dim": 16, "guidance_embeds": True,
    "axes_dims_rope": [4, 6, 6],
})  # fmt: skip
QWEN = ("QwenImageTransformer2DModel", {
    "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 4, "attention_head_dim": 16,
    "num_attention_heads": 4, "joint_attention_dim": 32, "axes_dims_rope": [4, 6, 6],
})  # fmt: skip
VAE = ("AutoencoderKL", {
    "block_out_channels": [8, 16, 16], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
})  # fmt: skip
QWEN_VAE = ("AutoencoderKLQwenImage", {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1})
WORK = Work(rows=2, grids=((10, 12), (10, 12)), text=24, dtype=torch.float32)
KINDS = pytest.mark.parametrize("kind", [FLUX, QWEN], ids=["flux", "qwen"])


# -- parameters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "transformer", "vae"),
    [("flux-kontext", 11_901_408_320, 83_819_683), ("qwen-image-edit-2509", 20_430_401_088, 126_892_531)],
)
def test_published_editors_are_counted_exactly(name: str, transformer: int, vae: int) -> None:
    """The presets give the same sizes, from their publishers."""
    from premeditate.presets import EDITORS

    made = published(name)
    assert (census(*made.transformer).parameters, census(*made.vae).parameters) == (transformer, vae)
    assert made.encoders is not None
    assert 2e-9 * (transformer + vae + made.encoders) == pytest.approx(EDITORS[name].size_gb, abs=0.05)


@KINDS
def test_lora_is_counted_as_peft_makes_it(kind: Any) -> None:
    lora = Lora(rank=3)
    real = shadow.build(*kind)
    assert census(*kind).parameters == sum(p.numel() for p in real.parameters())
    assert lora_parameters(census(*kind).linear, lora) == sum(p.numel() for p in add_lora(real, lora))


# -- activations ----------------------------------------------------------------------------------------------------


@contextmanager
def saved_bytes(model: torch.nn.Module) -> Iterator[list[int]]:
    """Bytes of the storages that autograd keeps for the backward pass, weights left out."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}
    total: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total.append(sum(t.untyped_storage().nbytes() for t in kept.values()))


@pytest.mark.parametrize(
    ("kind", "lora", "checkpointing"),
    [(FLUX, Lora(rank=8), False), (FLUX, None, True), (QWEN, None, False), (QWEN, Lora(rank=8), True)],
    ids=["flux-lora", "flux-full-checkpointed", "qwen-full", "qwen-lora-checkpointed"],
)
def test_activations_are_those_of_a_real_run(kind: Any, lora: Lora | None, checkpointing: bool) -> None:
    peak, kept = shadow.training(*kind, WORK, lora=lora, checkpointing=checkpointing)
    real = shadow.trainable(shadow.build(*kind), lora, checkpointing)
    with saved_bytes(real) as total:
        shadow._run(real, WORK)
    # Checkpoints are closures' business, which hooks do not see: they are compared through the peak only.
    assert checkpointing or kept == pytest.approx(total[0], rel=0.05)
    with Ledger(real) as ledger:  # storages of real tensors
        shadow._run(real, WORK).square().mean().backward()
    # Qwen's model computes its rotary tables once: a tenth of a model as small as this one.
    assert peak == pytest.approx(ledger.peak, rel=0.15)


def test_checkpointing_and_batch_do_what_they_should() -> None:
    kind, config = FLUX
    config = {**config, "num_layers": 1, "num_single_layers": 2}

    def need(rows: int, **options: Any) -> int:
        return shadow.training(kind, config, Work(rows, WORK.grids, WORK.text, WORK.dtype), lora=Lora(), **options)[0]

    assert need(4) == pytest.approx(2 * need(2), rel=0.05)
    assert need(2, checkpointing=True) < 0.7 * need(2)
    assert need(2, reference=True) >= need(2)


@pytest.mark.parametrize("kind", [VAE, QWEN_VAE], ids=["flux", "qwen"])
def test_decoding_needs_what_a_real_run_needs(kind: Any) -> None:
    real = shadow.build(*kind).eval()
    video = "z_dim" in kind[1]
    latents = torch.zeros(2, 4, *([1] if video else []), 12, 16)
    with torch.no_grad(), Ledger(real) as ledger:
        real.decode(latents, return_dict=False)
    assert shadow.decoding(*kind, 2, 12, 16, torch.float32) == pytest.approx(ledger.peak, rel=0.1)


@KINDS
def test_a_forward_is_that_of_a_real_run(kind: Any) -> None:
    peak, flops = shadow.forward(*kind, WORK)
    real = shadow.build(*kind)
    with torch.no_grad(), Ledger(real) as ledger:
        shadow._run(real, WORK)
    assert peak == pytest.approx(ledger.peak, rel=0.15)
    twice, more = shadow.forward(*kind, Work(4, WORK.grids, WORK.text, WORK.dtype))
    assert twice == pytest.approx(2 * peak, rel=0.15) and more == pytest.approx(2 * flops, rel=0.01)


def test_operations_follow_the_formula() -> None:
    """2 a token and weight, and 4 L N^2 d of attention. Of FLUX's 12 d^2 weights in a block each token meets all."""
    made = published("flux-kontext")
    tokens, d, blocks = 2 * 32 * 32 + 512, 3072, 19 + 38
    _, flops = shadow.forward(*made.transformer, Work(1, ((32, 32), (32, 32)), 512, torch.bfloat16))
    assert flops == pytest.approx(2 * 12 * d * d * blocks * tokens + 4 * blocks * tokens**2 * d, rel=0.01)


def test_nothing_is_left_behind() -> None:
    """Neither the default type nor attention is another afterwards, also after an error."""
    attention = torch.nn.functional.scaled_dot_product_attention
    q = torch.randn(1, 2, 3, 4)
    with contextlib.suppress(KeyboardInterrupt), shadow.contentless(torch.bfloat16):
        assert torch.empty(2).is_meta and torch.empty(2).dtype == torch.bfloat16
        done = torch.nn.functional.scaled_dot_product_attention(q, q, q)  # another thread's, say
        assert torch.equal(done, attention(q, q, q))
        raise KeyboardInterrupt
    assert torch.get_default_dtype() == torch.float32 and not torch.empty(2).is_meta
    assert torch.nn.functional.scaled_dot_product_attention is attention


# -- the whole ------------------------------------------------------------------------------------------------------

TINY = Architecture("tiny", "FluxKontextPipeline", FLUX, VAE, encoders=1000, text=24)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Any:
    """estimate() with activations by a rule of thumb, in bytes: what they really are is proved above."""

    def training(kind: str, config: Any, work: Work, **how: Any) -> tuple[int, int]:
        return work.rows * (100 if how["checkpointing"] else 1000) * (1 + how["reference"]), 0

    counted = {kind[0]: census(*kind) for kind in (FLUX, VAE)}
    monkeypatch.setattr(shadow, "census", lambda kind, config: counted[kind])
    monkeypatch.setattr(shadow, "training", training)
    monkeypatch.setattr(shadow, "forward", lambda kind, config, work: (10 * work.rows, 7 * work.rows))
    monkeypatch.setattr(shadow, "decoding", lambda *_: 5)

    def estimated(devices: int = 1, **parts: Any) -> MemoryEstimate:
        parts["model"] = {"size": 64, "device": "cpu", **parts.get("model", {})}
        return estimate(Recipe.model_validate(parts), devices=devices, architecture=TINY)

    return estimated


def test_what_is_held_adds_up(tiny: Any) -> None:
    made = tiny()
    count = census(*FLUX).parameters
    trained = lora_parameters(census(*FLUX).linear, Lora())
    assert (made.parameters, made.trainable) == (count, trained)
    assert made.held["weights"] == 4 * count and made.held["gradients"] == made.held["trained weights"] == 4 * trained
    assert made.held["optimiser"] == 8 * trained and made.held["moving averages"] == made.held["CUDA"] == 0
    assert made.peak == sum(made.held.values()) + max(made.phases.values())
    assert made.flops == 7 and made.tokens == 24 + 2 * 8 * 8 and made.microbatch == Geometry.of(Recipe()).microbatch
    assert as_json(made)["peak"] == made.peak
    assert dict(made.table())["peak"] == f"{said(made.peak)} on 1 device"


def test_choices_change_what_they_should(tiny: Any) -> None:
    plain = tiny()
    half = tiny(model={"dtype": "bfloat16"})
    assert 2 * half.held["weights"] == plain.held["weights"] and half.held["gradients"] == plain.held["gradients"]
    full = tiny(model={"lora": None}, optimizer={"ema": 0.9})
    assert full.trainable == full.parameters and full.held["trained weights"] == 0
    assert full.held["optimiser"] == 8 * full.parameters and full.held["moving averages"] == 4 * full.parameters
    assert tiny(model={"lora": None}, algorithm={"kl": 0.1}).held["model before training"] == 4 * full.parameters
    assert tiny(algorithm={"kl": 0.1}).held["model before training"] == 0  # the adapter is left out instead
    assert tiny(algorithm={"name": "nft", "old_decay": 0.9}).held["moving averages"] == 4 * plain.trainable
    assert tiny(batch={"forward": 4}).phases["update"] < plain.phases["update"]
    assert tiny(model={"gradient_checkpointing": True}).phases["update"] < plain.phases["update"]
    assert tiny(model={"true_cfg_scale": 4.0}).phases["update"] == plain.phases["update"] + 1000 * plain.microbatch
    assert tiny(rollout={"merge_lora": False}).phases["sampling"] < plain.phases["sampling"]
    assert tiny(model={"text_tokens": 100}).tokens == 100 + 128
    assert tiny(model={"device": "cuda"}).held["CUDA"] > GIB // 2


def test_sharding_splits_the_weights(tiny: Any) -> None:
    sizes = {"groups": 8}
    alone, four = tiny(batch=sizes), tiny(4, batch=sizes, sharding={"kind": "fsdp"})
    assert four.held["weights"] == -(-alone.held["weights"] // 4) + 2 * -(-alone.held["weights"] // 7)
    assert four.held["gradients"] == alone.held["gradients"]  # adapters stay whole
    full = tiny(4, batch=sizes, model={"lora": None}, sharding={"kind": "fsdp"})
    assert full.held["gradients"] == -(-4 * full.parameters // 4)


def test_a_prediction_needs_nothing_downloaded() -> None:
    small = predict("flux-kontext", 512)
    assert small.tokens == 512 + 2 * 32 * 32 and small.trainable == 52_297_728
    assert small.held["weights"] == 2 * small.parameters and 25 < small.peak / GIB < 35
    assert small.encoding is not None and small.encoding > small.held["weights"] + 9e9
    with pytest.raises(ModelError, match="did you mean flux-kontext"):
        predict("flux-contxt")


def test_a_folder_is_described_by_its_own_files() -> None:
    made = describe("micro-base")
    assert (made.pipeline, made.compression, made.text) == ("FluxKontextPipeline", 16, 40)
    found = estimate(Recipe.model_validate({"model": {"device": "cpu"}}))
    assert found.parameters == 1_711_136 and found.tokens == 40 + 2 * 4 * 4 and found.encoding is None


def test_models_are_known_by_preset_and_hub_id(tmp_path: Path) -> None:
    assert describe("flux-kontext").transformer == PUBLISHED["flux-kontext"].transformer
    assert describe("Qwen/Qwen-Image-Edit-2511").pipeline == "QwenImageEditPlusPipeline"
    assert describe("Qwen/Qwen-Image-Edit").pipeline == "QwenImageEditPipeline"
    with pytest.raises(ModelError, match="is not on this machine; give a folder, or one of flux-kontext"):
        describe("nobody/nothing-known")


def test_sizes_are_readable() -> None:
    assert [said(n) for n in (0, 1023, 2048, 5 << 20, 3 * GIB // 2, 200 * GIB)] == [
        "0 B", "1023 B", "2.0 KiB", "5.0 MiB", "1.5 GiB", "200 GiB"
    ]  # fmt: skip
