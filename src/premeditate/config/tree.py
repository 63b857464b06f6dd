"""The values of a configuration while it is put together, and for each of them, the file that set it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from premeditate.config import schema
from premeditate.config.errors import ConfigError, Keys, dotted, show
from premeditate.config.yaml12 import parse


class Tree:
    """The values so far, and for each that a file set, which file."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.model = model
        self.values: dict[str, Any] = schema.defaults(model)
        self.origins: dict[Keys, str] = {}
        self.problems: list[tuple[str, str]] = []
        """(what is wrong, the mend)"""

    def merge(self, values: Mapping[Any, Any], origin: str) -> None:
        """Puts a file's values over those there are: mappings are merged, anything else is replaced."""
        known = self._without_unknown(values, [self.model], (), origin)
        self._merge(self.values, known, (), origin)

    def _without_unknown(self, value: Any, kinds: schema.Kinds, path: Keys, origin: str) -> Any:
        if isinstance(value, Mapping):
            kept = {}
            for key, part in value.items():
                inside = schema.inside(kinds, key) if schema.has_keys(kinds) else ()
                if inside is None:
                    self._unknown((*path, str(key)), kinds, origin)
                else:
                    kept[key] = self._without_unknown(part, inside, (*path, key), origin)
            return kept
        if isinstance(value, list):
            return [
                self._without_unknown(part, schema.inside(kinds, i) or (), (*path, i), origin)
                for i, part in enumerate(value)
            ]
        return value

    def _merge(self, into: dict[str, Any], values: Mapping[str, Any], path: Keys, origin: str) -> None:
        for key, value in values.items():
            here = (*path, key)
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                self._merge(into[key], value, here, origin)
            else:
                into[key] = value
                self._set(here, origin)

    def _set(self, path: Keys, origin: str) -> None:
        for old in [old for old in self.origins if old[: len(path)] == path]:
            del self.origins[old]
        self.origins[path] = origin

    def origin(self, path: Keys) -> str:
        """What set the value at `path` (or what it lies in), "" for a default."""
        return next((self.origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.origins), "")

    def override(self, text: str) -> None:
        """Applies one `a.b.0.c=value`."""
        name, equals, written = text.partition("=")
        words = name.strip().split(".")
        if not equals or not all(words):
            self.problems.append((f"{text!r} changes nothing", "write key.sub=value, as in optimizer.lr=1e-4"))
            return
        try:
            value = parse(written, text) if written.strip() else ""
        except ConfigError as error:
            self.problems.append((error.problem, error.mend))
            return
        kinds: schema.Kinds = [self.model]
        path: Keys = ()
        node: Any = self.values
        for i, word in enumerate(words):
            key: str | int = int(word) if word.isdecimal() and not schema.has_keys(kinds) else word
            inside = schema.inside(kinds, key)
            if inside is None:
                self._unknown((*path, key), kinds, "")
                return
            if isinstance(key, int) and isinstance(node, list) and key > len(node):
                n = len(node)
                mend = f"give {dotted(path)}.{n} to add one" + (f", or change 0-{n - 1}" if n else "")
                self.problems.append((f"{dotted(path)} holds {n}, there is no place {key}", mend))
                return
            path, kinds = (*path, key), inside
            if i < len(words) - 1:
                node = _enter(node, key, words[i + 1])
            else:
                _put(node, key, self._without_unknown(value, kinds, path, ""))
        self._set(path, "")

    def _unknown(self, path: Keys, kinds: schema.Kinds, origin: str) -> None:
        source = f"{origin}: " if origin else ""
        if not schema.has_keys(kinds):
            place = dotted(path[:-1])
            self.problems.append((f"{source}{place} has no parts, so no {dotted(path)}", f"give {place} a value"))
            return
        near = schema.suggest(self.model, kinds, path)
        self.problems.append((f"{source}there is no key {dotted(path)}", near))


def _enter(node: Any, key: str | int, following: str) -> Any:
    """The container at `key` of `node`, made where there is none (or null, or a single value)."""
    there = node.get(key) if isinstance(node, dict) else node[key] if key < len(node) else None  # type: ignore[operator]
    if not isinstance(there, dict | list):
        there = [] if following.isdecimal() else {}
        _put(node, key, there)
    return there


def _put(node: Any, key: str | int, value: Any) -> None:
    if isinstance(node, list) and key == len(node):
        node.append(value)
    else:
        node[key] = value


def explain(error: ValidationError, tree: Tree) -> Iterator[tuple[str, str]]:
    """(problem, mend) of every value that does not fit, one per path: a union complains once per member."""
    found: dict[Keys, list[Any]] = {}
    for one in error.errors(include_url=False):
        found.setdefault(schema.cut(tree.model, one["loc"]), []).append(one)
    for path, errors in found.items():
        first = errors[0]
        origin = tree.origin(path)
        source = f" (in {origin})" if origin else ""
        if first["type"] == "missing":
            yield f"{dotted(path)} is missing{source}", "give it a value"
        elif first["type"] in ("value_error", "assertion_error"):
            what, _, mend = str(first["ctx"]["error"]).partition("; ")
            place = f"{dotted(path)}: " if path else ""
            yield f"{place}{what}{source}", mend
        else:
            wanted = list(dict.fromkeys(map(_wanted, errors)))
            yield f"{dotted(path)} is {show(first['input'])}{source}", f"give {' or '.join(wanted)}"


_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list, as in [a, b]",
    "list": "a list, as in [a, b]",
    "model": "a mapping, as in {key: value}",
    "dict": "a mapping, as in {key: value}",
    "none": "null",
    "finite": "a finite number",
}
_BOUNDS = {
    "greater_than_equal": ("at least {}", "ge"),
    "greater_than": ("more than {}", "gt"),
    "less_than_equal": ("at most {}", "le"),
    "less_than": ("less than {}", "lt"),
    "too_short": ("at least {} of them", "min_length"),
    "too_long": ("at most {} of them", "max_length"),
    "literal_error": ("{}", "expected"),
    "enum": ("{}", "expected"),
}


def _wanted(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _BOUNDS:
        form, name = _BOUNDS[kind]
        return form.format(context[name])
    name, _, how = kind.partition("_")
    if how in ("type", "attributes_type", "parsing", "parsing_size", "from_float", "number", "required"):
        return _TYPES.get(name, str(error["msg"]))
    return str(error["msg"])
