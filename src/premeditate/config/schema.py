"""Which keys a pydantic model has, at any depth, and which of them a wrong one may have meant."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

Kinds = Sequence[Any]
"""The types that a value may have: a union taken apart."""


def kinds(annotation: Any) -> list[Any]:
    """The members of a union, without `Annotated`; any other type alone."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return kinds(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in kinds(part)]
    return [annotation]


def models(of: Kinds) -> list[type[BaseModel]]:
    return [kind for kind in of if isinstance(kind, type) and issubclass(kind, BaseModel)]


def has_keys(of: Kinds) -> bool:
    """True where a value of these types can be a mapping with keys."""
    mappings: tuple[Any, ...] = (Any, dict, Mapping)
    return bool(models(of)) or any(kind in mappings or get_origin(kind) in mappings for kind in of)


def inside(of: Kinds, key: str | int) -> list[Any] | None:
    """The types of the value at `key` (a name, or a list's index), None where there can be none."""
    found: list[Any] = []
    for kind in of:
        origin: Any = get_origin(kind)
        args = get_args(kind)
        if kind is Any or (kind is dict and isinstance(key, str)):
            found.append(Any)
        elif models([kind]):
            if key in kind.model_fields:
                found += kinds(kind.model_fields[key].annotation)
            elif kind.model_config.get("extra") == "allow":
                found.append(Any)
        elif origin in (dict, Mapping) and isinstance(key, str):
            found += kinds(args[1])
        elif origin in (list, tuple, Sequence) and isinstance(key, int):
            fixed = origin is tuple and args[-1] is not Ellipsis
            if not fixed or key < len(args):
                found += kinds(args[key if fixed else 0])
    return found or None


def cut(model: type[BaseModel], place: Sequence[str | int]) -> tuple[str | int, ...]:
    """The part of a pydantic error's location that is keys; a union adds the names of its members."""
    path: list[str | int] = []
    at: Kinds = [model]
    for key in place:
        if (found := inside(at, key)) is None:
            break
        path.append(key)
        at = found
    return tuple(path)


def defaults(model: type[BaseModel]) -> dict[str, Any]:
    """The plain values of the defaults that hold parts, so that single parts of them can be changed."""
    made = {name: field.get_default(call_default_factory=True) for name, field in model.model_fields.items()
            if not field.is_required()}  # fmt: skip
    return {name: _plain(value) for name, value in made.items() if isinstance(value, BaseModel | dict | list | tuple)}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in value.model_fields_set}
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def suggest(model: type[BaseModel], of: Kinds, path: Sequence[str | int]) -> str:
    """What the unknown key at the end of `path` may have been meant for: one like it beside it, else one of that name
    elsewhere, else one like it elsewhere."""
    *above, key = map(str, path)
    beside = sorted({name for kind in models(of) for name in kind.model_fields})
    leaves = list(_leaves([model], ()))
    if near := difflib.get_close_matches(key.lower(), beside, n=1, cutoff=0.6):
        found = [".".join([*above, name]) for name in near]
    else:
        found = [leaf for leaf in leaves if leaf.rsplit(".", 1)[-1] == key]
        if not found:
            names = sorted({leaf.rsplit(".", 1)[-1] for leaf in leaves})
            like = difflib.get_close_matches(key.lower(), names, n=1, cutoff=0.7)
            found = [leaf for leaf in leaves if leaf.rsplit(".", 1)[-1] in like]
    if found:
        return f"did you mean {' or '.join(found[:3])}?"
    return f"{'.'.join(above) or 'the keys'} {'has' if above else 'are'} {', '.join(beside)}"


def _leaves(of: Kinds, path: tuple[str, ...]) -> Iterator[str]:
    for kind in models(of):
        if len(path) > 8:  # a model that holds itself
            return
        for name, field in kind.model_fields.items():
            here = (*path, name)
            parts = kinds(field.annotation)
            items = [k for part in parts if get_origin(part) in (list, tuple) for k in kinds(get_args(part)[0])]
            if models(parts) or models(items):
                yield from _leaves(parts, here)
                yield from _leaves(items, (*here, "0"))
            else:
                yield ".".join(here)
