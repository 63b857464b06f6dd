"""Recipes: YAML, includes and dotted overrides become a model; whatever is wrong is said, by its path."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from premeditate.config import ConfigError, dump_config, find_recipe, load_config, shipped
from premeditate.errors import ExitCode, PremeditateError


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Window(Part):
    kind: Literal["all", "fixed"] = "all"
    size: Annotated[int, Field(ge=1)] | None = None


class Reward(Part):
    use: str
    weight: float = 1.0


class Optimizer(Part):
    lr: Annotated[float, Field(gt=0)] = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)


class Run(Part):
    name: str = ""
    steps: Annotated[int, Field(ge=1)] = 200
    fast: bool = False
    tokens: Annotated[int, Field(ge=1)] | Literal["real"] | None = None
    window: Window | None = Window(kind="fixed", size=2)
    rewards: Annotated[tuple[Reward, ...], Field(min_length=1)] = (Reward(use="exact", weight=3.0),)
    optimizer: Optimizer = Optimizer()
    targets: tuple[str, ...] = ("to_q",)
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _fits(self) -> Run:
        if self.name == "forbidden":
            raise ValueError("that name is taken; give another")
        return self


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def refused(path: Path | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, path, overrides)
    assert caught.value.exit_code == ExitCode.USAGE and isinstance(caught.value, PremeditateError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- what is read ---------------------------------------------------------------------------------------------------


def test_nothing_gives_the_defaults(tmp_path: Path) -> None:
    assert load_config(Run, None) == load_config(Run, write(tmp_path, "# nothing\n")) == Run()


def test_a_file_and_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "steps: 1e2\noptimizer: {lr: 1e-4}\nrewards: [{use: a}, {use: b, weight: 2}]\nname: no\n")
    run = load_config(Run, path, ["rewards.1.weight=.5", "optimizer.betas=[0.8, 0.9]", "fast=true", "tokens=real"])
    assert (run.steps, run.optimizer, run.fast, run.tokens) == (100, Optimizer(lr=1e-4, betas=(0.8, 0.9)), True, "real")
    assert run.rewards == (Reward(use="a"), Reward(use="b", weight=0.5)) and run.name == "no"


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "+1e-4", ".0001", "0.0001", "1e-04"])
def test_numbers_as_people_write_them(text: str, tmp_path: Path) -> None:
    assert load_config(Run, None, [f"optimizer.lr={text}"]).optimizer.lr == 1e-4
    assert load_config(Run, write(tmp_path, f"optimizer:\n  lr: {text}")).optimizer.lr == 1e-4


@pytest.mark.parametrize("text", ["no", "on", "1:30", "2025-01-01", "1_000", "a=b", "module:function", "http://h:1/v1"])
def test_text_stays_text(text: str) -> None:
    assert load_config(Run, None, [f"name={text}"]).name == text


def test_an_override_reaches_into_defaults() -> None:
    run = load_config(Run, None, ["rewards.0.weight=2", "window.size=5"])
    assert run.rewards == (Reward(use="exact", weight=2),) and run.window == Window(kind="fixed", size=5)


def test_an_override_adds_to_a_list_and_makes_what_is_null(tmp_path: Path) -> None:
    run = load_config(
        Run, write(tmp_path, "window: null"), ["rewards.1.use=keep", "rewards.1.weight=2", "window.size=3"]
    )
    assert run.rewards[1] == Reward(use="keep", weight=2) and run.window == Window(size=3)


def test_an_override_takes_whole_values() -> None:
    run = load_config(
        Run, None, ["window=null", "targets=[to_k, to_v]", "rewards=[{use: x}]", "name=", "options.a.b=1"]
    )
    assert run.window is None and run.targets == ("to_k", "to_v") and run.rewards == (Reward(use="x"),)
    assert run.name == "" and run.options == {"a": {"b": 1}}
    assert load_config(Run, None, ["window={size: 4}"]).window == Window(size=4)  # the whole of it, not a part


def test_the_last_override_counts() -> None:
    assert load_config(Run, None, ["steps=1", "steps=2"]).steps == 2


def test_includes_are_merged_in_order(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, "steps: 1\noptimizer: {lr: 0.1, betas: [0, 0]}\nrewards: [{use: a}, {use: b}]", "root.yaml")
    write(tmp_path, "include: ../root.yaml\nname: deep\noptimizer: {lr: 0.2}", "deep/base.yaml")
    write(tmp_path, "fast: true\nname: other", "other.yaml")
    path = write(tmp_path, "include: [deep/base.yaml, other.yaml]\nsteps: 5\nrewards: [{use: c}]\nwindow: {kind: all}")
    run = load_config(Run, path)
    assert (run.steps, run.fast, run.name) == (5, True, "other") and run.rewards == (Reward(use="c"),)
    assert run.optimizer == Optimizer(lr=0.2, betas=(0, 0)) and run.window == Window(kind="all", size=2)


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    path = write(tmp_path, "rewards:\n- &one {use: a, weight: 2}\n- &two {<<: *one, use: b}\n- {<<: *two, weight: 4}")
    assert [(r.use, r.weight) for r in load_config(Run, path).rewards] == [("a", 2), ("b", 2), ("b", 4)]


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("step: 3", "there is no key step; did you mean steps?"),
        ("optimizer: {lrr: 1}", "there is no key optimizer.lrr; did you mean optimizer.lr?"),
        ("rewards: [{use: a, wieght: 2}]", "there is no key rewards.0.wieght; did you mean rewards.0.weight?"),
        ("lr: 1e-4", "there is no key lr; did you mean optimizer.lr?"),
        ("weight: 2", "did you mean rewards.0.weight?"),
        ("window: {zzz: 1}", "window has kind, size"),
        ("1: 2", "there is no key 1"),
        ("steps: {a: 1}", "give a whole number"),
    ],
)
def test_an_unknown_key_names_the_nearest(text: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    line = refused(path)
    assert said in line and str(path) in line


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimiser.lr=1", "there is no key optimiser; did you mean optimizer?"),
        ("rewards.0.wait=1", "rewards.0.weight"),
        ("rewards.3.use=a", "rewards holds 1, there is no place 3; give rewards.1 to add one, or change 0-0"),
        ("rewards.first.use=a", "rewards"),
        ("steps.x=3", "steps has no parts"),
        ("window={sise: 2}", "there is no key window.sise; did you mean window.size?"),
        ("steps", "write key.sub=value"),
        ("=3", "write key.sub=value"),
        ("optimizer..lr=3", "write key.sub=value"),
        ("name=@home", "put text in quotes"),
        ("steps=many", 'steps is "many"; give a whole number'),
        ("steps=1.5", "steps is 1.5; give a whole number"),
        ("steps=0", "steps is 0; give at least 1"),
        ("optimizer.lr=0", "optimizer.lr is 0; give more than 0"),
        ("optimizer.lr=fast", "give a number"),
        ("fast=perhaps", "give true or false"),
        ("name=3", "name is 3; give text"),
        ("tokens=some", """give a whole number or 'real'"""),
        ("window.kind=al", """give 'all' or 'fixed'"""),
        ("rewards=exact", "give a list"),
        ("rewards=[]", "at least 1"),
        ("window=3", "give a mapping"),
        ("optimizer.betas=[1]", "optimizer.betas.1 is missing"),
        ("rewards=[{weight: 1}]", "rewards.0.use is missing"),
        ("name=forbidden", "that name is taken; give another"),
    ],
)
def test_overrides_that_are_refused(override: str, said: str) -> None:
    assert said in refused(None, override)


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    base = write(tmp_path, "steps: 0\nnam: x", "base.yaml")
    path = write(tmp_path, "include: base.yaml\noptimizer: {lr: slow}")
    line = refused(path, "fast=7", "windw.size=2")
    assert line.startswith("5 settings cannot be used: ")
    for said in (
        f"{base}: there is no key nam; did you mean name?",
        f"steps is 0 (in {base}); give at least 1",
        f'optimizer.lr is "slow" (in {path}); give a number',
        "fast is 7; give",
        "there is no key windw; did you mean window?",
    ):
        assert said in line


def test_an_override_takes_the_blame_from_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "steps: 0")
    assert str(path) in refused(path) and load_config(Run, path, ["steps=3"]).steps == 3
    assert str(path) not in refused(path, "steps=-1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: [1", "line 1, column"),
        ("a: b: c", "is not YAML"),
        ("- 1", "holds no mapping"),
        ("just text", "holds no mapping"),
        ("steps: 1\nsteps: 2", 'line 2, column 1 is not YAML: the key "steps" stands here twice'),
        ("steps: !!python/object/apply:os.system ['true']", "is not YAML"),
        ("include: nowhere.yaml", "nowhere.yaml, which"),
        ("include: 3", "include is 3"),
        ("include: [run.yaml]", "includes itself: run.yaml -> run.yaml"),
        ("options: &a {b: *a}", "is not YAML that can be read"),
    ],
)
def test_files_that_are_refused(text: str, said: str, tmp_path: Path) -> None:
    assert said in refused(write(tmp_path, text))


def test_a_longer_circle_of_includes(tmp_path: Path) -> None:
    write(tmp_path, "include: run.yaml", "b.yaml")
    assert "run.yaml -> b.yaml -> run.yaml" in refused(write(tmp_path, "include: b.yaml"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "no.yaml")
    assert "directory" in refused(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refused(tmp_path / "bytes.yaml")


# -- what is written ------------------------------------------------------------------------------------------------

texts = st.text(string.printable + "äß✓", max_size=12) | st.sampled_from(
    ["1e-4", "no", "null", "1:30", "<<", "~", "0o7"]
)
numbers = st.floats(1e-12, 1e12)


@given(
    st.builds(
        Run,
        name=texts.filter(lambda name: name != "forbidden"),
        steps=st.integers(1, 10**12),
        fast=st.booleans(),
        tokens=st.none() | st.just("real") | st.integers(1, 9),
        window=st.none() | st.builds(Window, kind=st.sampled_from(["all", "fixed"])),
        rewards=st.lists(st.builds(Reward, use=texts, weight=st.floats(allow_nan=False)), min_size=1).map(tuple),
        optimizer=st.builds(Optimizer, lr=numbers, betas=st.tuples(numbers, numbers)),
        targets=st.lists(texts, max_size=3).map(tuple),
        options=st.dictionaries(texts, texts | numbers | st.lists(st.none() | st.booleans()), max_size=3),
    )
)
def test_what_is_dumped_is_read_back(tmp_path_factory: pytest.TempPathFactory, run: Run) -> None:
    path = write(tmp_path_factory.mktemp("dump"), dump_config(run))
    assert load_config(Run, path) == run
    if all(abs(r.weight) != float("inf") for r in run.rewards):  # other readers of YAML see the same
        assert yaml.safe_load(dump_config(run))["name"] == run.name


# -- recipes by name ------------------------------------------------------------------------------------------------


def test_a_recipe_is_found_by_path_or_name(tmp_path: Path) -> None:
    path = write(tmp_path, "steps: 3")
    assert find_recipe(str(path)) == path
    for name, file in shipped().items():
        assert find_recipe(name) == find_recipe(f"{name}.yaml") == file
    with pytest.raises(ConfigError, match="there is no recipe nothing-of-the-kind") as caught:
        find_recipe("nothing-of-the-kind")
    assert caught.value.mend
