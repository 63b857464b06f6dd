"""The package as it is installed: what it needs, holds and costs to import, and that its arrows point one way."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import premeditate
from premeditate import errors
from premeditate.errors import ExitCode, InstructionError, PremeditateError, check_instruction

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "premeditate"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = ("torch", "diffusers", "transformers", "peft", "numpy", "PIL", "pydantic", "httpx")


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~ \[;]", line)[0] for line in requirements}


# -- what it needs and holds --------------------------------------------------------------------------------------


def test_the_core_needs_what_it_says_and_no_more() -> None:
    core = "torch diffusers transformers peft safetensors pillow numpy pydantic httpx typer rich jinja2 pyyaml"
    assert names(PROJECT["dependencies"]) == set(core.split())
    assert "torch>=2.11,<2.14" in PROJECT["dependencies"]
    assert {"train", "serve", "dev"} <= set(PROJECT["optional-dependencies"])


def test_every_import_is_a_dependency() -> None:
    known = names(PROJECT["dependencies"]) | {
        name for extra in PROJECT["optional-dependencies"].values() for name in names(extra)
    }
    known = {{"pillow": "PIL", "pyyaml": "yaml"}.get(name, name) for name in known} | {
        "premeditate",
        "tokenizers",
        "markupsafe",
    }  # of transformers, jinja2
    for path, _, module in imports():
        top = module.split(".")[0]
        assert top in known or top in sys.stdlib_module_names, f"{path} imports {module}"


def test_versions_agree() -> None:
    assert PROJECT["version"] == premeditate.__version__ and PROJECT["name"] == "premeditate"
    assert (SOURCE / "py.typed").exists()
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence and "Version 2.0" in licence and "END OF TERMS" in licence
    assert PROJECT["license"] == "Apache-2.0"


def test_the_command_is_there() -> None:
    from premeditate import cli

    assert PROJECT["scripts"] == {"premeditate": "premeditate.cli:main"} and callable(cli.main)


def test_the_wheel_holds_the_whole_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = pytest.importorskip("hatchling.build", reason="hatchling is not installed: pip install -e '.[dev]'")
    monkeypatch.chdir(ROOT)
    wheel = tmp_path / builder.build_wheel(str(tmp_path))
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("premeditate/")}
    tracked = subprocess.run(["git", "ls-files", "-z", "src"], cwd=ROOT, capture_output=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    wanted = {name.removeprefix("src/") for name in tracked.stdout.decode().split("\0") if name}
    assert {name for name in wanted if (ROOT / "src" / name).exists()} - held == set()


def test_the_weights_are_safetensors_and_small() -> None:
    files = [path for path in (SOURCE / "microworld" / "weights").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 15_000_000
    allowed = {".safetensors", ".json", ".txt", ".md", ".jinja", ".py", ".svg", ".png"}
    assert {path.suffix for path in files} <= allowed  # no pickle in any disguise


def test_the_public_names_resolve_and_others_do_not() -> None:
    for name in premeditate.__all__:
        assert getattr(premeditate, name) is not None and name in dir(premeditate)
    with pytest.raises(AttributeError, match="no attribute 'edits'"):
        _ = premeditate.edits  # type: ignore[attr-defined]


# -- what it costs ------------------------------------------------------------------------------------------------


def loaded_by(code: str) -> set[str]:
    """The heavy libraries that a fresh interpreter holds after `code`."""
    report = f"{code}\nimport json, sys; print(json.dumps(sorted({HEAVY!r} & sys.modules.keys())), file=sys.stderr)"
    report = report.replace(f"{HEAVY!r} &", f"set({HEAVY!r}) &")
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.strip().splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import premeditate") == set()


def test_help_loads_nothing_heavy() -> None:
    help_ = "import sys; from premeditate.cli import main; sys.argv = ['premeditate', '--help']\n"
    assert loaded_by(help_ + "try: main()\nexcept SystemExit as end: assert not end.code, end.code") == set()


@pytest.mark.parametrize("module", ["store", "images", "trace", "engine.runner", "presets", "prompts", "rewards.base"])
def test_no_model_library_is_loaded_before_a_model_is(module: str) -> None:
    assert not loaded_by(f"import premeditate.{module}") & {"torch", "diffusers", "transformers", "peft"}


# -- arrows point one way -----------------------------------------------------------------------------------------

# Each room may import the rooms below it (and itself).
FLOORS = [
    {"errors", "stats", "machine", "rl", "attribute"},
    {"files", "config"},
    {"trace", "images"},
    {"eventlog"},
    {"store", "prompts", "local", "remote", "address", "qwen_processor"},
    {"editors", "reasoners", "datasets"},
    {"rewards"},
    {"presets"},
    {"engine"},
    {"api"},
    {"viewer", "benchmarks", "training", "serving", "synthesis"},
    {"doctor"},
    {"cli"},
]


def imports() -> list[tuple[Path, str, str]]:
    """(file, its room, imported module) for every import statement of the package."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found += [(path, room, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                module = node.module or ""
                deeper = module in ("premeditate", "premeditate.microworld")
                found += [(path, room, f"{module}.{alias.name}" if deeper else module) for alias in node.names]
    return found


def test_arrows_point_one_way() -> None:
    floor = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
    for path, room, module in imports():
        parts = module.split(".")
        if (
            parts[0] != "premeditate"
            or len(parts) < 2
            or room == "__init__"
            or parts[1] in ("__version__", "microworld")
        ):
            continue  # the micro world has a rule of its own, below
        target = parts[1]
        assert target in floor, f"{path}: the room {target} has no floor"
        if room == "microworld":  # it plugs in through the protocols: it knows nothing of who uses it
            assert floor[target] < floor["engine"], f"{path} imports {module}, against the arrows"
        else:
            assert target == room or floor[target] < floor[room], f"{path} imports {module}, against the arrows"


def test_nobody_but_its_own_commands_imports_the_micro_world() -> None:
    for path, room, module in imports():
        if module.startswith("premeditate.microworld") and room != "microworld":
            own = path.relative_to(SOURCE).as_posix() in ("cli/microworld.py", "benchmarks/microworld.py")
            assert own, f"{path} imports {module}; a preset names it instead"


def test_files_are_short() -> None:
    long = {str(p): n for p in SOURCE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 420}
    assert not long


# -- errors and instructions --------------------------------------------------------------------------------------


def test_exit_codes_are_distinct_and_documented() -> None:
    codes = [int(code) for code in ExitCode]
    assert len(set(codes)) == len(codes)
    for code in codes:
        assert re.search(rf"^    {code}\b", errors.__doc__ or "", re.MULTILINE), code
    for kind in (errors.ImageError, errors.InstructionError, errors.ModelError, errors.WriteError, errors.StoreError):
        assert issubclass(kind, PremeditateError) and issubclass(kind, ValueError)
        assert str(kind("what\nhappened", "do this")) == "what\\nhappened; do this"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        (" \t\n", "empty"),
        ("x" * 100_000, "100,000 characters"),
        ("x" * 4_001, "4,001 characters"),
        ("paint\0it", "U+0000"),
        ("paint\x1b[2J it", "U+001B"),
        ("paint \udcff", "U+DCFF"),
        ("paint <|im_start|>system", "<|im_start|>"),
        ("<|image_pad|>", "<|image_pad|>"),
        ("a <\uff5cend\u2581of\u2581sentence\uff5c>", "control token"),
    ],
)
def test_instructions_that_are_refused(text: str, said: str) -> None:
    with pytest.raises(InstructionError) as caught:
        check_instruction(text)
    line = str(caught.value)
    assert said in line and "\n" not in line and len(line) < 300 and caught.value.mend
    assert caught.value.exit_code == ExitCode.INSTRUCTION


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  paint\n the  odd\tone out ", "paint the odd one out"),
        ("make the <b>bold</b> text & 'quotes' {red}", "make the <b>bold</b> text & 'quotes' {red}"),
        ("if a < b | c > d", "if a < b | c > d"),
        (
            "把苹果涂成绿色 \U0001f468\u200d\U0001f469\u200d\U0001f467",
            "把苹果涂成绿色 \U0001f468\u200d\U0001f469\u200d\U0001f467",
        ),
        ("x" * 4_000, "x" * 4_000),
    ],
)
def test_instructions_that_pass(text: str, clean: str) -> None:
    assert check_instruction(text) == clean
