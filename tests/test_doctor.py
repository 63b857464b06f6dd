"""`premeditate doctor` and `premeditate models`: what they find, that they say why and what to do, and that no finding
ends them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from premeditate import doctor, machine, presets
from premeditate.doctor import Check
from premeditate.machine import Device
from support.chat_server import ChatServer
from support.command import premeditate
from support.images_server import ImagesServer

WEIGHTS = Path(presets.EDITORS["micro"].spec).parent
CPU = Device("cpu", "2 cores", 32.0, machine.DTYPES)
shipped = pytest.mark.skipif(not (WEIGHTS / "editor").is_dir(), reason="the tiny models are not in this tree")


def by_name(checks: Iterator[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


# -- versions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "bounds", "inside"),
    [
        ("2.13.0+cpu", ">=2.11,<2.14", True),
        ("2.14.0", ">=2.11,<2.14", False),
        ("2.9.1", ">=2.11,<2.14", False),
        ("2.11.0a0+git1234", ">=2.11", True),
        ("5.23", ">=5.23.0", True),
        ("12", ">=12", True),
        ("1.0", "==1.0.0", True),
        ("1.0", "!=1.0", False),
        ("anything", "", True),
    ],
)
def test_bounds(version: str, bounds: str, inside: bool) -> None:
    assert doctor.within(version, bounds) is inside


def test_what_we_need_is_read_from_our_own_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip writes it down, and in a checkout from pyproject.toml: the two agree on form."""
    lines = ["torch<2.14,>=2.11", "uvicorn>=0.35; extra == 'serve'", 'trl[peft]>=1.0; extra == "train"', "rich"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    assert doctor.requirements() == [
        ("torch", "<2.14,>=2.11", ""), ("uvicorn", ">=0.35", "serve"), ("trl", ">=1.0", "train"), ("rich", "", ""),
    ]  # fmt: skip

    def missing(name: str) -> list[str]:
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "requires", missing)
    found = doctor.requirements()
    assert ("torch", ">=2.11,<2.14", "") in found
    assert any(extra == "serve" for _, _, extra in found)


def test_a_library_that_is_missing_too_old_or_broken_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "brokenlib.py").write_text("raise ImportError('no such symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    wanted = [("nosuchlib", ">=1", ""), ("rich", ">=999", ""), ("brokenlib", ">=1", ""), ("jinja2", ">=3", "")]
    real = doctor.metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "1.5" if name == "brokenlib" else real(name))
    monkeypatch.setattr(doctor, "requirements", lambda: wanted)
    found = by_name(doctor.versions())
    assert found["nosuchlib"].said == "is missing"
    assert "needed is >=999" in found["rich"].said
    assert "cannot be imported: ImportError: no such symbol" in found["brokenlib"].said
    assert all(found[name].state == "broken" and found[name].vital for name in ("nosuchlib", "rich", "brokenlib"))
    assert found["nosuchlib"].mend == "pip install 'nosuchlib>=1'"
    assert found["jinja2"].state == "works"


def test_extras_that_are_not_here_are_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requirements", lambda: [("nosuchlib", ">=1", "train"), ("rich", ">=1", "serve")])
    found = by_name(doctor.extras())
    assert (found["train"].state, found["train"].vital) == ("off", False)
    assert "nosuchlib is missing" in found["train"].said
    assert found["train"].mend == "pip install 'premeditate[train]'"
    assert found["serve"].state == "works"


def test_a_torchvision_of_another_torch_is_broken_and_none_is_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    (check,) = doctor.torchvision()
    assert (check.state, check.said) == ("works", "not here, and not needed")
    monkeypatch.undo()
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    (check,) = doctor.torchvision()
    assert check.state == "broken"
    assert "torchvision::nms" in check.said
    assert "pip uninstall torchvision" in check.mend


# -- weights, cache, places -------------------------------------------------------------------------------------------


@shipped
def test_damaged_weights_are_found_by_header_and_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(check.state == "works" for check in doctor.weights())
    monkeypatch.setattr(doctor, "_ROOT", tmp_path)
    for name in ("editor", "reasoner"):
        shutil.copytree(WEIGHTS / name, tmp_path / "microworld" / "weights" / name)
    file = tmp_path / "microworld" / "weights" / "reasoner" / "model.safetensors"
    whole = file.read_bytes()
    for data, words in (
        (whole[:-1], "bytes of"),
        (whole[:20], "cannot be read"),
        (b"", ""),
        (b"version https://git-lfs.github.com/spec/v1\n", "no safetensors"),
    ):
        file.write_bytes(data)
        found = by_name(doctor.weights())
        assert (found["micro reasoner"].state, found["micro reasoner"].vital) == ("broken", True), data[:10]
        assert words in found["micro reasoner"].said
        assert found["micro editor"].state == "works"
        assert "is not in this installation" in found["micro editor-base"].said
        assert not found["micro editor-base"].vital


def test_where_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    blobs = tmp_path / "models--org--name" / "blobs"
    assert machine.where("org/name", 0.01) == "not here"
    blobs.mkdir(parents=True)
    (blobs / "a").write_bytes(bytes(2_000_000))
    (blobs / "b.incomplete").write_bytes(bytes(8_000_000))
    assert machine.where("org/name", 0.01) == "partly in the cache (0.002 of 0.01 GB)"
    (blobs / "c").write_bytes(bytes(8_000_000))
    assert machine.where("org/name", 0.01) == machine.where("org/name", None) == "in the cache"
    assert machine.where(str(tmp_path), None) == "here"
    assert machine.where(str(WEIGHTS), None) == "in the package"
    assert machine.where(str(tmp_path / "none"), None) == "not here"


def test_the_hub_cache_is_where_the_hub_library_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert machine.hub_cache() == Path.home() / ".cache" / "huggingface" / "hub"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert machine.hub_cache() == Path("/x/huggingface/hub")
    monkeypatch.setenv("HF_HOME", "/h")
    assert machine.hub_cache() == Path("/h/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/c")
    assert machine.hub_cache() == Path("/c")


def test_the_hub_is_only_looked_at_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "new" / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = by_name(doctor.hub())
    assert found["downloads"].state == "off"
    assert "HF_HUB_OFFLINE is set" in found["downloads"].said
    assert "0 models" in found["cache"].said
    assert not (tmp_path / "new").exists(), "looking makes no folder"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert by_name(doctor.hub())["cache"].state == "broken"


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert by_name(doctor.surroundings())["this folder"].state == "works"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: "/proc")
    assert by_name(doctor.surroundings())["temporary files"].state == "broken"


# -- devices and what fits --------------------------------------------------------------------------------------------


def test_devices_are_tried_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = by_name(doctor.devices())
    assert found["cpu"].state == "works"
    assert "float32" in found["cpu"].said

    class Card:
        name, total_memory = "Card 9000", 24_000_000_000

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Card)
    found = by_name(doctor.devices())
    if "cuda" not in torch.__version__ and torch.version.cuda is None:
        assert found["cuda:0"].state == "broken", "torch claims a card on which nothing can be multiplied"
    assert found["cuda:0"].said.startswith("Card 9000, 24 GB")
    assert "accelerator" not in found


@pytest.mark.parametrize(
    ("needed", "cards", "fits", "words"),
    [
        (None, [], None, "not known"),
        (0.005, [], True, "on the CPU"),
        (16.0, [], True, "on the CPU, slowly"),
        (17.0, [], False, "no"),
        (20.0, [24.0], True, "on cuda:0"),
        (20.0, [8.0, 24.0], True, "on cuda:1"),
        (30.0, [24.0], True, "in parts (offload)"),
        (60.0, [24.0], False, "no"),
    ],
)
def test_what_fits(needed: float | None, cards: list[float], fits: bool | None, words: str) -> None:
    found = [CPU, *(Device(f"cuda:{i}", "card", gb, machine.DTYPES) for i, gb in enumerate(cards))]
    assert machine.fits(needed, found) == (fits, words)


def test_a_container_has_the_memory_that_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = machine.memory_gb()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_LIMITS", (str(tmp_path / "none"), str(limit)))
    limit.write_text("1000000000\n")
    assert machine.memory_gb() == 1.0
    limit.write_text("max\n")
    assert whole is not None
    assert machine.memory_gb() is not None
    assert machine.memory_gb() >= whole  # type: ignore[operator]


# -- named models -----------------------------------------------------------------------------------------------------


def test_a_server_is_asked_what_it_is_and_honours() -> None:
    with ImagesServer() as images, ChatServer("json_schema") as chats:
        (editor,) = doctor.named("editor", images.origin)
        (reasoner,) = doctor.named("reasoner", chats.url)
    assert editor.state == reasoner.state == "works", (editor, reasoner)
    assert editor.said.startswith("up; dialect: vllm-omni")
    assert "json: " in reasoner.said
    assert "probability: " in reasoner.said
    (gone, other) = doctor.named("editor", f"{images.origin},http://127.0.0.1:9")
    for check in (gone, other):
        assert (check.state, check.vital) == ("broken", True)
        assert "cannot be reached" in check.said
        assert check.mend


def test_other_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "devices", lambda: [CPU])
    (wrong,) = doctor.named("editor", "flux-contekst")
    assert (wrong.state, wrong.mend[:13]) == ("broken", "did you mean ")
    (bad,) = doctor.named("editor", "http://")
    assert bad.state == "broken"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    weights, fits = doctor.named("reasoner", "qwen3-vl-8b")
    assert (weights.state, weights.mend) == ("broken", "hf download Qwen/Qwen3-VL-8B-Instruct")
    assert (fits.state, fits.said[:3]) == ("broken", "no ")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    weights, fits = doctor.named("reasoner", "qwen3-vl-2b")
    assert (weights.state, fits.state) == ("off", "works")
    assert "will be downloaded" in weights.said


# -- the commands -----------------------------------------------------------------------------------------------------


def test_a_check_that_breaks_down_is_a_finding() -> None:
    def well() -> Iterator[Check]:
        yield Check("a", "one", "works", "")

    def ill() -> Iterator[Check]:
        yield Check("a", "two", "works", "")
        raise RuntimeError("boom")

    found = list(doctor.examine([ill, well]))
    assert [check.name for check in found] == ["two", "ill", "one"]
    assert (found[1].state, found[1].said) == ("broken", "RuntimeError: boom")


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """What the doctor finds instead: it is given in this list."""
    found: list[Check] = []
    for name in ("torchvision", "devices", "weights", "adapters", "pipelines", "extras", "hub", "surroundings"):
        monkeypatch.setattr(doctor, name, lambda: iter(()))
    monkeypatch.setattr(doctor, "versions", lambda: iter(found))
    return found


def test_the_exit_code_is_about_what_is_vital(checks: list[Check]) -> None:
    checks += [
        Check("libraries", "torchvision", "broken", "an [red]old[/red] one", "remove it"),
        Check("extras", "train", "off", "not here", "pip install it"),
    ]
    done = premeditate("doctor", "--quick")
    assert (done.code, done.err) == (0, "")
    assert "an [red]old[/red] one" in done.out
    assert "remove it" in done.out
    assert done.out.splitlines()[-1] == "works   1 of 2 checks found something broken"
    checks.append(Check("weights", "micro editor", "broken", "gone", "install again", vital=True))
    done = premeditate("doctor", "--quick")
    assert done.code == 5
    assert done.out.splitlines()[-1].startswith("does not work")
    done = premeditate("doctor", "--quick", "--json")
    assert done.code == 5
    assert done.json["works"] is False
    assert done.json["checks"][2] == {
        "part": "weights", "name": "micro editor", "state": "broken", "said": "gone", "mend": "install again",
        "vital": True,
    }  # fmt: skip


def test_a_self_test_that_fails_is_vital(checks: list[Check], monkeypatch: pytest.MonkeyPatch) -> None:
    def none(spec: str, **_: object) -> object:
        raise OSError("no such weights")

    monkeypatch.setattr(presets, "load_editor", none)
    done = premeditate("doctor", "--json")
    assert done.code == 5
    (check,) = done.json["checks"]
    assert (check["name"], check["said"]) == ("one edit", "OSError: no such weights")


@shipped
@pytest.mark.slow
def test_here_everything_that_is_needed_works() -> None:
    done = premeditate("doctor", "--editor", "micro", "--reasoner", "micro", "--json")
    broken = [check for check in done.json["checks"] if check["state"] == "broken"]
    assert (done.code, done.json["works"], broken) == (0, True, [])
    parts = {check["part"] for check in done.json["checks"]}
    assert parts == {
        "versions", "libraries", "devices", "weights", "adapters", "pipelines", "extras", "hub", "surroundings",
        "editor", "reasoner", "self-test",
    }  # fmt: skip
    (edit,) = (check for check in done.json["checks"] if check["part"] == "self-test")
    assert "exactly right, in 1 round" in edit["said"]


def test_models_lists_every_preset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "devices", lambda: [CPU, Device("cuda:0", "Card 9000", 24.0, machine.DTYPES)])
    done = premeditate("models", "--json")
    assert (done.code, done.err) == (0, "")
    for kind, known in (("editors", presets.EDITORS), ("reasoners", presets.REASONERS)):
        assert [row["name"] for row in done.json[kind]] == list(known)
        for row in done.json[kind]:
            preset = known[row["name"]]
            assert (row["size_gb"], row["licence"]) == (preset.size_gb, preset.licence)
    rows = {row["name"]: row for row in done.json["editors"]}
    assert (rows["flux2-klein"]["fits"], rows["flux2-klein"]["fits_how"]) == (True, "on cuda:0")
    assert (rows["qwen-image-edit"]["fits"], rows["qwen-image-edit"]["weights"]) == (False, "not here")
    assert json.loads(done.out)["devices"][1]["name"] == "cuda:0"
    table = premeditate("models").out
    for name in (*presets.EDITORS, *presets.REASONERS):
        assert any(line.startswith(f"{name} ") for line in table.splitlines()), name
    assert "Card 9000, 24 GB" in table
    assert "http://" in table
