"""Reading a configuration, writing it, and finding the recipes that come with the package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from premeditate.config.errors import ConfigError, show
from premeditate.config.tree import Tree, explain
from premeditate.config.yaml12 import Dumper, parse
from premeditate.errors import nearest

INCLUDE, KIND = "include", "kind"
Model = TypeVar("Model", bound=BaseModel)


def load_config(model: type[Model], path: Path | str | None, overrides: Sequence[str] = ()) -> Model:
    """`model` from the file at `path` (None: its defaults) with `overrides` applied in order.

    An override is `a.b=value`. The value is YAML, so lists and mappings work ("rollout.window={kind: fixed, size: 2}");
    nothing after = is the empty text. A number steps into a list (`rewards.0.weight=2`); the next free one adds to it.

    A mapping in a file changes the keys that it names; one in an override stands for the whole.

    Raises `ConfigError` that names every unknown key with the nearest known one, and every value that does not fit.
    """
    tree = Tree(model)
    if path is not None:
        for origin, values in _files(Path(path), ()):
            tree.merge(values, origin)
    for text in overrides:
        tree.override(text)
    try:
        made = model.model_validate(tree.values)
    except ValidationError as error:
        tree.problems += explain(error, tree)
    else:
        if not tree.problems:
            return made
    raise _failure(tree.problems)


def load_kind(
    kinds: Mapping[str, type[Model]], path: Path | str | None, overrides: Sequence[str] = (), *, default: str
) -> Model:
    """As `load_config`, of the model in `kinds` that the key `kind` names (`default` where nothing says it). Raises
    `ConfigError` for a kind that there is not."""
    kind: Any = default
    for _, values in () if path is None else _files(Path(path), ()):
        kind = values.get(KIND, kind)
    for text in overrides:
        name, equals, value = text.partition("=")
        kind = value.strip() if equals and name.strip() == KIND else kind
    if kind not in kinds:
        near = nearest(str(kind), list(kinds))
        raise ConfigError(f"there is no {KIND} {show(kind)}", f"give {near}" if near else f"give {', '.join(kinds)}")
    return load_config(kinds[kind], path, overrides)


def _failure(problems: Sequence[tuple[str, str]]) -> ConfigError:
    if len(problems) == 1:
        return ConfigError(*problems[0])
    told = (f"({i}) {problem}{'; ' * bool(mend)}{mend}" for i, (problem, mend) in enumerate(problems, 1))
    return ConfigError(f"{len(problems)} settings cannot be used: {' '.join(told)}")


def _files(path: Path, above: tuple[Path, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, its values) of `path` and what it includes, the included ones first."""
    real = path.expanduser().resolve()
    if real in above:
        chain = " -> ".join(p.name for p in (*above[above.index(real) :], real))
        raise ConfigError(f"{path} includes itself: {chain}", f"remove one {INCLUDE}")
    try:
        values = parse(real.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        by = f", which {above[-1]} includes" if above else ""
        raise ConfigError(f"cannot read {path}{by}: {why}", "give a YAML file") from None
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path} holds no mapping", "write lines of `key: value`")
    values = dict(values or {})
    wanted = values.pop(INCLUDE, None)
    names = [] if wanted is None else wanted if isinstance(wanted, list) else [wanted]
    for name in names:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{path}: {INCLUDE} is {show(name)}", "give the name of a YAML file, or a list of names")
        beside = path.parent / Path(name).expanduser()
        yield from _files(beside if beside.is_file() else shipped().get(name, beside), (*above, real))
    yield str(path), values


def dump_config(model: BaseModel) -> str:
    """All of `model` as YAML that `load_config` reads back equal."""
    return yaml.dump(model.model_dump(), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


_PACKAGE = Path(__file__).resolve().parent.parent


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name: FOLDER/NAME."""
    for folder in (_PACKAGE / "recipes", _PACKAGE.parent.parent / "recipes"):  # in a wheel, in a checkout
        if folder.is_dir():
            return {p.relative_to(folder).with_suffix("").as_posix(): p for p in sorted(folder.rglob("*.yaml"))}
    return {}


def find_recipe(name: str) -> Path:
    """The file that `name` means: a path, or the name of a shipped recipe (its last part, where only one has that).
    Raises `ConfigError` for neither."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known, wanted = shipped(), name.removesuffix(".yaml")
    if wanted in known:
        return known[wanted]
    alike = [found for found in known if found.rsplit("/", 1)[-1] == wanted]
    if len(alike) == 1:
        return known[alike[0]]
    near = " or ".join(alike) or nearest(name, list(known))
    raise ConfigError(f"there is no recipe {name}", f"give a YAML file{f', or {near}' if near else ''}")
