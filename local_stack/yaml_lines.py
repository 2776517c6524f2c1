"""YAML as Compose reads it (YAML 1.2's scalars, with merge keys), with the line of each key."""

from __future__ import annotations

import re
from typing import Any

import yaml


class YamlError(ValueError):
    """The text is not YAML; the message has the line."""


class Lined(dict[Any, Any]):
    """A mapping that knows the line of each of its keys, from 1."""

    def __init__(self, items: dict[Any, Any], lines: dict[Any, int]) -> None:
        super().__init__(items)
        self.lines = lines


class Ambiguous(str):
    """A scalar without quotes that another version of Compose reads differently, such as 1.0 or 0755."""

    __slots__ = ()


# Of YAML 1.1 and of Go: octal, hexadecimal, binary, with underscores.
_NUMBER = re.compile(r"[-+]?(?:0[0-7_]+|0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+|[0-9]+_[0-9_]*)")


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, in which off is a boolean and 22:22 a number."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own form

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Returns a mapping before its merge keys are expanded; two equal keys are refused, as by Compose 2."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        keys = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in keys:
                    problem = f"{key_node.value} is defined twice"
                    raise yaml.composer.ComposerError(None, None, problem, key_node.start_mark)
                keys.add(key_node.value)
        return node

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """Returns a string; without quotes it may be a number to another reader."""
        return Ambiguous(node.value) if node.style is None and _NUMBER.fullmatch(node.value) else str(node.value)

    def construct_number(self, node: yaml.ScalarNode) -> float | str:
        """Returns a number with a fraction."""
        found = float(node.value)
        return found if str(found).removesuffix(".0") == node.value else Ambiguous(node.value)

    def construct_lined(self, node: yaml.MappingNode) -> Lined:
        """Returns a mapping with the lines of its keys."""
        self.flatten_mapping(node)
        items, lines = {}, {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Lined | list):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a string", key_node.start_mark)
            items[key] = self.construct_object(value_node, deep=True)
            lines[key] = key_node.start_mark.line + 1
        return Lined(items, lines)


_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("merge", r"<<", "<"),
)
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_lined)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)


def load(text: str) -> Any:
    """Returns the document of a text; mappings are :class:`Lined`."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - of a SafeLoader's kind
    except yaml.YAMLError as error:
        raise YamlError(str(error)) from error
    except RecursionError as error:
        raise YamlError("it is nested too deeply") from error
