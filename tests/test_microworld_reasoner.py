"""The tiny reasoner: its data says the truth, its fast forward is the stock forward, its training resumes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from premeditate.microworld import checker
from premeditate.microworld.language import execute, parse_plan
from premeditate.microworld.models import reasoner_data as data
from premeditate.microworld.models.common import Clock, Log, warmup_stable_decay
from premeditate.microworld.render import render_codes
from premeditate.microworld.scene import CELLS, Scene, random_scene
from premeditate.microworld.tasks import MicroTask, sample_task
from premeditate.prompts.terse import Terse
from premeditate.stats import wilson

torch = pytest.importorskip("torch")
torch.set_num_threads(1)
TERSE = Terse()


def looks(n: int, seed: int = 0) -> list[tuple[object, data.Item]]:
    rng = random.Random(seed)
    return [(task := sample_task(i), data.look_item(task, rng)) for i in range(n)]


def test_every_taught_text_parses_to_what_it_means() -> None:
    for seed in range(300):
        task = sample_task(seed)
        plan, listed = data.think_item(task, random.Random(seed)).branches
        assert execute(task.source, parse_plan(" then ".join(TERSE.parse_plan(plan.answer).steps))) == task.target
        written = TERSE.parse_checklist(listed.answer)
        assert written.status == "scored" and checker.same_checklist(written.items, task.checklist)


def test_answers_are_the_checkers_and_balanced() -> None:
    yes = {"follow": [0, 0], "keep": [0, 0], "quality": [0, 0]}
    for _, item in looks(1500):
        codes, sharp, distance = (a[0] for a in checker.decode_arrays(item.images[1:]))
        decoded = checker.Decoded(Scene.from_codes(codes), tuple(map(bool, sharp)), tuple(map(float, distance)))
        for branch in item.branches[:-1]:
            question = branch.prompt.removeprefix("answer : ")
            truth = checker.answer(question, Scene.from_codes(item.codes[0]), decoded)
            assert branch.answer == ("yes" if truth else "no")
            yes[branch.dimension][truth is True] += 1
    for dimension, (no, right) in yes.items():
        assert 0.25 < no / (no + right) < 0.75, dimension


def test_critiques_parse_and_tell_good_from_bad() -> None:
    kinds = {"good": 0, "blurred": 0, "should": 0}
    for task, item in looks(600):
        branch = item.branches[-1]
        said = TERSE.parse_critique(branch.answer)
        assert said.status == "scored"
        codes, sharp, _ = (a[0] for a in checker.decode_arrays(item.images[1:]))
        exact = bool(sharp.all()) and tuple(codes) == task.target.codes  # type: ignore[attr-defined]
        assert said.satisfied is exact
        if not exact:
            assert " then ".join(said.prompt) == " then ".join(task.plan)  # type: ignore[attr-defined]
        for word in kinds:
            kinds[word] += word in branch.answer.split(" | ")[0]
    assert min(kinds.values()) > 60, kinds


def test_true_critique_by_hand() -> None:
    target = Scene.from_codes([0] * 6 + [64, 1] + [0] * 8)
    sharp = [True] * CELLS
    good = data.true_critique(target, target.codes, sharp, ["plan"], ["last"])
    assert good == "good | semantic 10 | quality 10 | prompt : last"
    codes = [5, *[0] * 5, 0, 1, *[0] * 8]
    sharp[7] = False
    bad = data.true_critique(target, codes, sharp, ["plan"], ["last"])
    assert bad == "a1 should be empty and c2 should be a large gray star | semantic 4 | quality 7 | prompt : plan"


def test_wrong_plans_can_be_carried_out_and_miss() -> None:
    rng, made = random.Random(0), 0
    for seed in range(300):
        task = sample_task(seed)
        if (steps := data.wrong_plan(task, rng)) is not None:
            made += 1
            assert execute(task.source, steps) not in (task.source, task.target)
    assert made > 60


def test_weather_leaves_scenes_readable() -> None:
    rng = random.Random(0)
    codes = np.array([random_scene(rng).codes for _ in range(200)])
    images = np.stack([data.weather(i, rng) for i in render_codes(codes)])
    read, sharp, _ = checker.decode_arrays(images)
    assert (read == codes).mean() > 0.999 and sharp.mean() > 0.999


@pytest.fixture(scope="module")
def tiny() -> tuple[object, object]:
    from premeditate.microworld.models.reasoner_build import build_model, build_tokenizer
    from premeditate.microworld.models.reasoner_train import corpus

    tokenizer = build_tokenizer(corpus(300), 900)
    return build_model(tokenizer).eval(), tokenizer


def test_patches_are_the_image_processors(tmp_path: Path, tiny: tuple) -> None:
    from PIL import Image
    from transformers import Qwen2VLImageProcessorPil

    from premeditate.microworld.models.reasoner_build import save_folder
    from premeditate.microworld.models.reasoner_fast import pixel_values

    save_folder(tmp_path, *tiny)
    processor = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    stock = processor([Image.fromarray(i) for i in images], return_tensors="pt")
    assert stock["image_grid_thw"].tolist() == [[1, 8, 8]] * 3
    assert torch.equal(stock["pixel_values"], pixel_values(torch.from_numpy(images)))
    big = processor([Image.fromarray(images[0]).resize((256, 256))], return_tensors="pt")
    assert big["image_grid_thw"].tolist() == [[1, 8, 8]]


def test_words_are_the_tokenizers_and_yes_no_are_single(tiny: tuple) -> None:
    from premeditate.microworld.models.reasoner_batch import Encoder

    tokenizer = tiny[1]
    encoder = Encoder(tokenizer)
    for _, item in looks(50):
        for branch in item.branches:
            for text in (branch.prompt, branch.answer):
                assert encoder.words(text) == tokenizer.encode(text)
                assert tokenizer.decode(encoder.words(text)) == text
    assert all(len(tokenizer.encode(w)) == 1 for w in ("yes", "no"))
    odd = "Ünïcode <|image_pad|>?"
    assert tokenizer.decode(tokenizer.encode("Ünïcode ?")) == "Ünïcode ?" and len(tokenizer.encode(odd)) > 3


def test_the_chat_template_writes_what_was_trained(tmp_path: Path, tiny: tuple) -> None:
    from transformers import AutoTokenizer

    from premeditate.microworld.models.reasoner_batch import Encoder
    from premeditate.microworld.models.reasoner_build import save_folder

    save_folder(tmp_path, *tiny)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "answer : is b3 empty ?"}]
    chat = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer.encode(text.replace("<|image_pad|>", "<|image_pad|>" * CELLS))
    assert ids == Encoder(tiny[1]).request("answer : is b3 empty ?", 2)


def test_branches_equal_separate_stock_forwards(tiny: tuple) -> None:
    from premeditate.microworld.models.reasoner_batch import Encoder, collate
    from premeditate.microworld.models.reasoner_eval import inputs
    from premeditate.microworld.models.reasoner_fast import Fast

    model, tokenizer = tiny
    encoder, fast = Encoder(tokenizer), Fast(model)
    items = [item for _, item in looks(3, seed=1)]
    batch = collate(items, encoder)
    with torch.no_grad():
        seen = fast.see(batch.pictures)
        states, _ = fast.hidden(batch.ids, seen.reshape(3, -1, seen.shape[-1]), batch.positions, batch.mask)
        for row, item in enumerate(items):
            at = len(encoder.prefix(2)[0])
            for branch in item.branches:
                at += len(encoder.words(branch.prompt)) + len(encoder.turn)
                alone = model(**inputs([branch.prompt], [item.images], encoder)).logits[0, -1]
                assert torch.allclose(fast.logits(states[row, at - 1]), alone, atol=2e-5)
                at += len(encoder.words(branch.answer)) + 1


def test_training_makes_a_folder_resumes_and_says_so(tmp_path: Path) -> None:
    from premeditate.microworld.models.reasoner_build import load_folder
    from premeditate.microworld.models.reasoner_train import train_reasoner

    out = tmp_path / "reasoner"
    small = {"look": 8, "every": 1e9, "layers": 4, "inter": 32, "texts": 200, "vae": None, "log": None}
    with pytest.raises(ValueError, match="how long"):
        train_reasoner(out, **small)
    with pytest.raises(ValueError, match="nothing to resume"):
        train_reasoner(out, steps=1, resume=True, **small)
    train_reasoner(out, steps=2, **small)
    first = load_folder(out)[0].state_dict()
    train_reasoner(out, steps=3, resume=True, **small)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r.get("event") in ("resume", "look")] == [1, 2, 2, 3]
    assert any(not torch.equal(a, first[k]) for k, a in load_folder(out)[0].state_dict().items())
    assert json.loads((out / "premeditate.json").read_text()) == {"prompts": "terse"}
    assert (tmp_path / "reasoner-base" / "model.safetensors").exists()


def test_a_second_course_teaches_from_its_own_mistakes(tmp_path: Path) -> None:
    from premeditate.microworld.models.reasoner_build import load_folder
    from premeditate.microworld.models.reasoner_train import train_reasoner

    first, second = tmp_path / "first", tmp_path / "second"
    small = {"look": 8, "every": 1e9, "layers": 4, "inter": 32, "vae": None, "log": None}
    train_reasoner(first, steps=1, texts=200, **small)
    train_reasoner(second, steps=1, start=first, fresh=24, **small)
    rows = [json.loads(line) for line in (second / "log.jsonl").read_text().splitlines()]
    assert [r["event"] for r in rows if "event" in r] == ["start", "own", "look"]
    assert rows[1]["hard"] > 0 and not (tmp_path / "second-base").exists()
    assert len(load_folder(second)[1]) == len(load_folder(first)[1])


def test_own_plans_are_sorted_by_what_they_lead_to(monkeypatch: pytest.MonkeyPatch) -> None:
    from premeditate.microworld.families import TRAINED
    from premeditate.microworld.models import reasoner_own
    from premeditate.microworld.models.reasoner_data import PROMPTS, think_item, wrong_plan

    tasks: list[MicroTask] = []
    rng = random.Random(0)

    def item(task: MicroTask, *args: object, **options: object) -> object:
        tasks.append(task)
        return think_item(task, rng, clean=True)

    def written(
        model: object, encoder: object, prompts: list[str], pictures: object, temperature: float = 0.0
    ) -> list[str]:
        """Right greedy plans, wrong sampled ones (where one is found), and checklists that say nothing."""
        if "checklist" in prompts[0]:
            return ["?"] * len(prompts)
        wrong = [next(filter(None, (wrong_plan(t, rng) for _ in range(9))), None) for t in tasks[-len(prompts) :]]
        steps = wrong if temperature else [t.steps for t in tasks[-len(prompts) :]]
        return [PROMPTS.write_plan(tuple(map(str, s))) if s else "?" for s in steps]

    monkeypatch.setattr(reasoner_own, "think_item", item)
    monkeypatch.setattr(reasoner_own, "generate", written)
    own = reasoner_own.OwnPlans(0)
    weights = [1.0] * len(TRAINED)
    assert own.refill(None, None, TRAINED, weights, 40) == 1.0  # type: ignore[arg-type]
    assert len(own.hard) == len(own.right) == 40 and 20 < len(own.wrong) <= 40
    for look in own.looks(20):
        assert look.branches[-1].skill == "critique"
    goods = [PROMPTS.parse_critique(i.branches[-1].answer).satisfied for i in own.looks(200, dimensions=())]
    assert 0.15 < sum(map(bool, goods)) / 200 < 0.4


def test_a_folder_without_a_reasoner_says_how_to_make_one(tmp_path: Path) -> None:
    from premeditate.microworld.models.reasoner_eval import evaluate_reasoner

    with pytest.raises(ValueError, match="microworld train reasoner"):
        evaluate_reasoner(tmp_path, n=1)


def test_the_autoencoder_leaves_scenes_readable_and_says_when_it_is_missing(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    from premeditate.microworld.models.reasoner_vae import round_trip

    with pytest.raises(ValueError, match="no autoencoder"):
        round_trip(tmp_path, random.Random(0))
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        layers_per_block=1,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    ).save_pretrained(tmp_path)
    image = np.zeros((64, 64, 3), np.uint8)
    assert round_trip(tmp_path, random.Random(0), share=0)(image) is image
    back = round_trip(tmp_path, random.Random(0), share=1)(image)
    assert back.shape == image.shape and back.dtype == np.uint8 and not np.array_equal(back, image)


def test_small_helpers(tmp_path: Path) -> None:
    assert warmup_stable_decay(0) < warmup_stable_decay(0.005) < warmup_stable_decay(0.5) == 1
    assert warmup_stable_decay(1) < 0.05
    low, high = wilson(900, 1000)
    assert 0.879 < low < 0.9 < high < 0.918
    clock = Clock(steps=2)
    clock.tick()
    assert clock.progress == 0.5
    log = Log(tmp_path / "log.jsonl")
    log.write(step=1, loss=0.5)
    assert log.rows() == [{"step": 1, "loss": 0.5}]
