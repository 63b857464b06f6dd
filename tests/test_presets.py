"""SPECs: what names a model, and what a wrong name is answered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from premeditate import presets
from premeditate.errors import ExitCode, ModelError
from support.tiny_editor import build_kontext
from support.tiny_vlm import build_vlm


@pytest.mark.parametrize(("spec", "message"), [
    ("micor", "did you mean micro"),
    ("flux-contexte", "flux-kontext"),
    ("", "name one: micro"),
    ("no/such/thing", "did you mean"),
    ("../elsewhere", "did you mean"),
    ("https://", "names no host"),
    ("voodoo+https://example.org/v1", "there is no editor dialect 'voodoo'"),
    ("https://example.org/v1?stepz=8", "did you mean steps"),
])  # fmt: skip
def test_wrong_specs_name_the_nearest(spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        presets.load_editor(spec)
    assert isinstance(caught.value, ValueError) and caught.value.exit_code == ExitCode.MODEL
    assert "\n" not in str(caught.value)


def test_an_address_is_as_many_endpoints_as_it_names() -> None:
    ends = presets.load_editor("vllm-omni+http://a:1/v1,http://b:2/v1?steps=8#org/model")
    assert (
        isinstance(ends, list) and [e.host for e in ends] == ["a:1", "b:2"] and {e.name for e in ends} == {"org/model"}
    )
    (kept,) = presets.load_reasoner("http://c:3/v1?timeout=5#vlm", timeout=None, model=None)  # type: ignore[misc]
    assert (kept.timeout, kept.name) == (5, "vlm")  # None says nothing
    chats = presets.load_reasoner("http://c:3/v1?samples=9#vlm")
    assert isinstance(chats, list) and chats[0].host == "c:3" and chats[0].samples == 9 and chats[0].name == "vlm"
    with pytest.raises(ModelError, match="does not speak 'sglang'"):
        presets.load_reasoner("sglang+http://c:3/v1")
    with pytest.raises(ModelError, match="is an address"):
        presets.resolve("editor", "https://example.org/v1")


def test_folders_of_the_wrong_kind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="is a file"):
        presets.load_editor(str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"holds no model_index\.json"):
        presets.load_editor(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="looks like a reasoner"):
        presets.load_editor(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match="looks like an editor"):
        presets.load_reasoner(str(tmp_path))


@pytest.mark.parametrize("spec", ["flux-kontext", "some-org/some-model"])
def test_a_hub_that_cannot_be_reached_is_one_line_with_the_mend(spec: str) -> None:
    for load in (presets.load_editor, presets.load_reasoner):
        if load is presets.load_reasoner and spec == "flux-kontext":
            spec = "qwen3-vl-8b"
        with pytest.raises(ModelError, match="is not on this machine and the model hub cannot be reached") as caught:
            load(spec)
        assert "hf download" in caught.value.mend and "\n" not in str(caught.value)


def test_every_preset_resolves() -> None:
    for kind, table in (("editor", presets.EDITORS), ("reasoner", presets.REASONERS)):
        for name, preset in table.items():
            if not Path(preset.spec).is_absolute():
                assert presets.resolve(kind, name) == preset
                assert preset.spec.count("/") == 1
    assert presets.resolve("editor", "Some-Org/some.model").spec == "Some-Org/some.model"


def test_weights_that_are_missing_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.EDITORS, "micro", presets.Preset(str(tmp_path / "gone"), ""))
    with pytest.raises(ModelError, match="premeditate microworld train editor"):
        presets.load_editor("micro")


def test_models_are_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_kontext().save_pretrained(tmp_path / "editor")
    build_vlm("qwen3_vl", tmp_path / "reasoner", prompts="terse")
    editor = presets.load_editor(str(tmp_path / "editor"), size=32)
    assert presets.load_editor(str(tmp_path / "editor"), size=32) is editor
    assert presets.load_editor(str(tmp_path / "editor"), size=64) is not editor
    reasoner = presets.load_reasoner(str(tmp_path / "reasoner"))
    assert presets.load_reasoner(str(tmp_path / "reasoner")) is reasoner and reasoner.prompts == "terse"
    monkeypatch.setitem(presets.EDITORS, "mine", presets.Preset(str(tmp_path / "editor"), "", {"size": 48}))
    named = presets.load_editor("mine", steps=2)
    assert (named.name, named.size, named.steps) == ("mine", 48, 2)  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="did you mean steps"):
        presets.load_editor("mine", step=2)


def test_importing_the_adapters_loads_no_model_library() -> None:
    code = (
        "import sys, premeditate.presets, premeditate.editors.diffusers, premeditate.editors.callable, "
        "premeditate.reasoners.transformers, premeditate.reasoners.callable;"
        "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(presets.__file__).parents[1])}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert out.stdout.strip() == "[]"
