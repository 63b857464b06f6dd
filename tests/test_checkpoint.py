"""Checkpoints: whole or absent, kept to a number, verified when read, and refused to another recipe."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from premeditate.errors import WriteError
from premeditate.training import checkpoint
from premeditate.training.checkpoint import Saved, clean, damage, identity, latest, load, save, start
from premeditate.training.ema import Ema
from premeditate.training.errors import TrainingError
from premeditate.training.recipe import Lora, Model, Recipe, Reward

RECIPE = Recipe()


def put(out: Path, step: int, *, keep: int = 9, recipe: Recipe = RECIPE, value: float = 0.0) -> Path:
    return save(
        out, step, model={"w": torch.full((3,), value)}, optimizer={"step": step}, state={"n": step}, recipe=recipe,
        keep=keep,
    )  # fmt: skip


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def begin(out: Path, recipe: Recipe = RECIPE) -> tuple[Saved | None, list[str]]:
    said: list[str] = []
    return start(out, recipe, resume=True, say=said.append), said


# -- what is kept ---------------------------------------------------------------------------------------------------


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    weight = torch.randn(4, 6)
    model = {"a": weight, "part": weight[:, ::2], "same": weight, "half": weight.bfloat16(), "n": torch.tensor(3)}
    net = torch.nn.Linear(3, 2)
    adam = torch.optim.AdamW(net.parameters(), lr=1e-2)
    net(torch.ones(1, 3)).sum().backward()
    adam.step()
    generator = torch.Generator().manual_seed(5)
    state = {
        "rng": {"cpu": generator.get_state()},
        "list": [1, torch.ones(2)],
        "text": "x",
        "best": float("-inf"),
        "none": None,
    }
    path = save(tmp_path, 120, model=model, optimizer=adam.state_dict(), state=state, recipe=RECIPE, keep=1)
    assert path == tmp_path / "checkpoints" / "step-000120" and damage(path) is None
    saved = load(path, RECIPE)
    assert saved.step == 120 and saved.model.keys() == model.keys()
    assert all(torch.equal(saved.model[k], v) and saved.model[k].dtype == v.dtype for k, v in model.items())
    other = torch.optim.AdamW(net.parameters(), lr=1e-2)
    other.load_state_dict(saved.optimizer)
    assert str(other.state_dict()) == str(adam.state_dict())
    assert torch.equal(saved.state["rng"]["cpu"], generator.get_state())
    assert saved.state["list"][0] == 1 and torch.equal(saved.state["list"][1], torch.ones(2))
    assert (saved.state["text"], saved.state["best"], saved.state["none"]) == ("x", float("-inf"), None)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (20, 40, 60, 80):
        put(tmp_path, step, keep=2)
    assert (
        names(tmp_path) == ["step-000060", "step-000080"] and latest(tmp_path) == tmp_path / "checkpoints/step-000080"
    )


def test_a_step_saved_again_takes_the_place_of_the_old(tmp_path: Path) -> None:
    put(tmp_path, 20, value=1)
    path = put(tmp_path, 20, value=2, keep=1)
    assert names(tmp_path) == ["step-000020"] and torch.equal(load(path, RECIPE).model["w"], torch.full((3,), 2.0))


def test_the_state_is_readable(tmp_path: Path) -> None:
    record = json.loads((put(tmp_path, 3) / "state.json").read_text())
    assert record["step"] == 3 and record["versions"]["torch"] == torch.__version__
    assert record["sha256"].keys() == {"model.safetensors", "optimizer.pt"} and record["recipe"]["steps"] == 200


# -- beginning and going on -----------------------------------------------------------------------------------------


def test_a_new_folder_begins_at_the_beginning(tmp_path: Path) -> None:
    assert start(tmp_path / "new", RECIPE, resume=False, say=pytest.fail) is None


def test_a_resume_without_checkpoints_says_so(tmp_path: Path) -> None:
    saved, said = begin(tmp_path / "new")
    assert saved is None and len(said) == 1 and "no checkpoint: starting from the beginning" in said[0]


def test_checkpoints_are_not_run_over(tmp_path: Path) -> None:
    put(tmp_path, 40)
    with pytest.raises(TrainingError, match=r"up to step 40; add --resume .* or give another folder"):
        start(tmp_path, RECIPE, resume=False, say=pytest.fail)
    saved, said = begin(tmp_path)
    assert saved is not None and saved.step == 40 and saved.state == {"n": 40} and not said


# -- what may go wrong ----------------------------------------------------------------------------------------------


def spoil(path: Path, how: str) -> None:
    file = path / ("state.json" if "state" in how else how.split()[0])
    data = file.read_bytes()
    if "gone" in how:
        file.unlink()
    elif "short" in how:
        file.write_bytes(data[: len(data) // 2])
    elif "bare" in how:
        file.write_bytes(b'{"sha256": {}}')
    elif "list" in how:
        file.write_bytes(b"[1]")
    else:
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


DAMAGES = ("model.safetensors flipped", "model.safetensors short", "model.safetensors gone", "optimizer.pt flipped",
           "optimizer.pt gone", "state short", "state gone", "state bare", "state list")  # fmt: skip


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(how: str, tmp_path: Path) -> None:
    put(tmp_path, 20)
    spoil(put(tmp_path, 40), how)
    saved, said = begin(tmp_path)
    assert saved is not None and saved.step == 20
    assert len(said) == 1 and "step-000040 is damaged (" in said[0]
    with pytest.raises(TrainingError, match="is damaged"):
        load(tmp_path / "checkpoints" / "step-000040", RECIPE)


def test_where_all_are_damaged_the_run_begins_again(tmp_path: Path) -> None:
    spoil(put(tmp_path, 20), "state gone")
    saved, said = begin(tmp_path)
    assert saved is None and "damaged" in said[0] and "no whole checkpoint" in said[1]


def test_a_damaged_one_does_not_push_out_a_whole_one(tmp_path: Path) -> None:
    spoil(put(tmp_path, 40), "state gone")
    put(tmp_path, 30, keep=1)
    assert names(tmp_path) == ["step-000030"]


def test_half_a_checkpoint_goes_away(tmp_path: Path) -> None:
    put(tmp_path, 20)
    half = tmp_path / "checkpoints" / ".partial-step-000040-ab"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    saved, said = begin(tmp_path)
    assert saved is not None and saved.step == 20 and names(tmp_path) == ["step-000020"] and not said


def test_a_replacement_that_was_killed_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, 20, value=1)
    rename, calls = os.rename, []

    def killed(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:  # the old one is aside, the new one not yet there
            raise KeyboardInterrupt
        rename(*args)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        put(tmp_path, 20, value=2)
    monkeypatch.undo()
    assert latest(tmp_path) is None
    clean(tmp_path)
    assert names(tmp_path) == ["step-000020"]
    assert torch.equal(load(tmp_path / "checkpoints" / "step-000020", RECIPE).model["w"], torch.ones(3))


def child(tmp_path: Path, code: str) -> subprocess.Popen[str]:
    head = """
        import sys, torch
        from pathlib import Path
        from premeditate.training.checkpoint import save
        from premeditate.training.recipe import Recipe
        out = Path(sys.argv[1])
        def put(step, n=3):
            model, optimizer = {"w": torch.full((n,), step)}, {"m": torch.zeros(n)}
            save(out, step, model=model, optimizer=optimizer, state={}, recipe=Recipe(), keep=2)
    """
    script = textwrap.dedent(head) + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)


def test_a_kill_at_any_moment_leaves_a_whole_one(tmp_path: Path) -> None:
    process = child(tmp_path, "for step in range(1, 10**6): put(step, 10**5); print(step, flush=True)")
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    last = max([3, *(int(line) for line in process.stdout.read().split() if line.isdigit())])
    process.wait()
    saved, said = begin(tmp_path)
    assert saved is not None and saved.step in (last, last + 1) and not said
    assert torch.equal(saved.model["w"], torch.full((10**5,), saved.step))
    assert all(name.startswith("step-") for name in names(tmp_path)) and len(names(tmp_path)) <= 3


@pytest.mark.parametrize("limit", [50_000, 900_000])  # the model does not fit, or the optimiser's state does not
def test_a_disk_that_is_full_leaves_the_last_one(limit: int, tmp_path: Path) -> None:
    process = child(tmp_path, f"""
        import resource
        from premeditate.errors import WriteError
        put(1)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        try:
            save(out, 2, model={{"w": torch.zeros(100_000)}}, optimizer={{"m": torch.zeros(300_000)}}, state={{}},
                 recipe=Recipe(), keep=1)
        except WriteError as error:
            print(error)
    """)  # fmt: skip
    said, _ = process.communicate()
    assert "cannot write" in said and "step-000002" in said and said.rstrip().endswith("then go on with --resume")
    assert names(tmp_path) == ["step-000001"] and damage(tmp_path / "checkpoints" / "step-000001") is None


def test_a_full_disk_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(WriteError, match=r"No space left on device; the disk is full, free some space; then go on"):
        put(tmp_path, 1)
    assert names(tmp_path) == []


# -- of which recipe ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"out": "elsewhere"},
        {"steps": 999},
        {"batch": {"forward": 1}},
        {"model": {"device": "cpu", "gradient_checkpointing": True}},
        {"logging": {"to": ["tensorboard"]}, "checkpoint": {"every": 1}, "evaluation": {"every": 1}},
        {"rewards": [{"use": RECIPE.rewards[0].use, "timeout": 1}], "sharding": {"kind": "fsdp"}},
    ],
)
def test_what_does_not_shape_the_weights_may_change(change: dict[str, Any], tmp_path: Path) -> None:
    path = put(tmp_path, 1)
    assert load(path, Recipe.model_validate(change)).step == 1
    assert identity(Recipe.model_validate(change)) == identity(RECIPE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"optimizer": {"lr": 1.0}}, "optimizer.lr was 0.0003, is 1.0"),
        ({"rewards": [{"use": "exact"}]}, 'rewards.0.use was "'),
        ({"model": {"lora": None}}, "model.lora was {"),
        ({"model": {"lora": {"targets": ["to_q"]}}}, "model.lora.targets was ["),
        ({"model": {"lora": {"rank": 4}}, "data": {"seed": 3}}, "data.seed was 0, is 3; model.lora.rank was 32, is 4"),
        ({"batch": {"groups": 4, "forward": 2}, "data": {"eval": None}}, "batch.groups was 8, is 4; resume with"),
    ],
)  # fmt: skip
def test_another_recipe_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = put(tmp_path, 1)
    with pytest.raises(TrainingError) as caught:
        load(path, Recipe.model_validate(change))
    assert said in str(caught.value) and "belongs to another recipe" in str(caught.value)
    assert "or give another folder" in caught.value.mend and "out was" not in str(caught.value)


def test_many_differences_are_cut_short(tmp_path: Path) -> None:
    rewards = tuple(Reward(use=f"m:{i}") for i in range(12))
    path = put(tmp_path, 1, recipe=Recipe(rewards=rewards))
    other = Recipe(rewards=tuple(Reward(use=f"n:{i}") for i in range(12)), model=Model(lora=Lora(rank=4)))
    with pytest.raises(TrainingError, match="and 5 more"):
        load(path, other)


def test_a_field_that_is_new_counts_as_its_default(tmp_path: Path) -> None:
    path = put(tmp_path, 1)
    record = json.loads((path / "state.json").read_text())
    del record["recipe"]["rollout"]["solver"]
    (path / "state.json").write_text(json.dumps(record))
    assert load(path, RECIPE).step == 1
    with pytest.raises(TrainingError, match=r'rollout.solver was "euler", is "ab2"'):
        load(path, Recipe.model_validate({"rollout": {"solver": "ab2"}}))


def test_a_newer_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SCHEMA", 2)
    path = put(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(TrainingError, match="newer Premeditate"):
        load(path, RECIPE)


# -- moving averages ------------------------------------------------------------------------------------------------


def test_the_average_is_the_formulas() -> None:
    live, mean = torch.zeros(3, dtype=torch.float64), 0.0
    ema = Ema([live], 0.6)
    for n in range(1, 30):
        live += n
        ema.update()
        d = min(0.6, (1 + n) / (10 + n))
        mean = d * mean + (1 - d) * float(live[0])
    assert torch.allclose(ema.mean[0], torch.full((3,), mean, dtype=torch.float64))


def test_swapping_restores_the_weights_bit_for_bit() -> None:
    weight = torch.nn.Parameter(torch.randn(50).bfloat16())
    ema = Ema([weight], 0.9)
    with torch.no_grad():
        weight += 1
    ema.update()
    before = weight.detach().clone()
    with ema.swapped():
        assert torch.equal(weight, ema.mean[0].bfloat16()) and not torch.equal(weight, before)
    assert torch.equal(weight, before)
    with contextlib.suppress(KeyboardInterrupt), ema.swapped():
        raise KeyboardInterrupt
    assert torch.equal(weight, before) and weight.requires_grad
    assert ema.mean[0].dtype == torch.float32


def test_an_average_resumes(tmp_path: Path) -> None:
    def updated(ema: Ema, times: int) -> Ema:
        for _ in range(times):
            ema.parameters[0].add_(1.5)
            ema.update()
        return ema

    whole = updated(Ema([torch.zeros(2)], 0.99), 6)
    half = updated(Ema([torch.zeros(2)], 0.99), 3)
    path = save(tmp_path, 3, model={"w": half.parameters[0]}, optimizer=half.state(), state={}, recipe=RECIPE, keep=1)
    saved = load(path, RECIPE)
    rest = Ema([saved.model["w"]], 0.99)
    rest.restore(saved.optimizer)
    assert torch.equal(updated(rest, 3).mean[0], whole.mean[0])
    with pytest.raises(ValueError, match="1 averages for 2 parameters"):
        Ema([torch.zeros(2)] * 2, 0.9).restore(half.state())
    with pytest.raises(ValueError, match="give 0 to 1"):
        Ema([], 1.5)
