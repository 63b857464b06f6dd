"""YAML by the core schema of YAML 1.2, read and written: plain data, and no key twice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from premeditate.config.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_CORE = (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    (
        "float",
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+.0123456789",
    ),
    ("merge", r"(?:<<)$", "<"),
)


class Loader(yaml.SafeLoader):
    """Plain data only, by the core schema, and no key twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if (name := str(key.value)) in seen:
                raise yaml.MarkedYAMLError(problem=f'the key "{name}" stands here twice', problem_mark=key.start_mark)
            seen.add(name)
        return node

    def whole(self, node: Any) -> int:
        text = str(self.construct_scalar(node))
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


class Dumper(yaml.SafeDumper):
    """Quotes text that either YAML would take for something else; repeats what appears twice."""

    yaml_implicit_resolvers = {first: list(known) for first, known in yaml.SafeDumper.yaml_implicit_resolvers.items()}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind, _pattern, _first in _CORE:
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), list(_first))
Loader.add_constructor(_TAG + "int", Loader.whole)
Dumper.add_representer(tuple, lambda dumper, data: dumper.represent_list(data))
Dumper.add_multi_representer(Path, lambda dumper, data: dumper.represent_str(str(data)))


def parse(text: str, where: str) -> Any:
    """The plain data that `text` holds. Raises `ConfigError`, with `where` and the line, if it holds none."""
    try:
        value = yaml.load(text, Loader=Loader)
        json.dumps(value, default=str, skipkeys=True)  # refuses what holds itself
        return value
    except yaml.YAMLError as error:
        mark, why = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{place} is not YAML: {' '.join(why.split())}", "put text in quotes") from None
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{where} is not YAML that can be read: {error}", "write plain values") from None
