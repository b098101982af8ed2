"""YAML without the parts that surprise; the only reader and writer of it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from bigmap.errors import RecipeError

MAX_RECIPE_BYTES = 1_000_000


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without the parts that surprise: see each method."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases: a few lines of them expand to more than fits in memory."""
        if self.check_event(yaml.AliasEvent):
            problem = "anchors and aliases are refused"
            raise yaml.composer.ComposerError(None, None, problem, self.current_event.start_mark)
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Give values that do not fit their tag the line they stand on."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError):
            tag = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"a value is no {tag}", node.start_mark
            ) from None

    def construct_scalar(self, node: Any) -> Any:
        """Refuse halves of characters, which an escape can name and no file can hold."""
        value = super().construct_scalar(node)
        if not _is_text(value):
            problem = "a text holds half a character (a lone surrogate)"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        """Refuse duplicate keys, of which YAML would silently take the last."""
        if not isinstance(node, yaml.MappingNode):  # a tag can claim anything
            problem = "a value is no mapping"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        counts = Counter(str(self.construct_object(key, deep=True)) for key, _ in node.value)
        doubled = sorted(key for key, count in counts.items() if count > 1)
        if doubled:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {', '.join(doubled)} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


def _is_text(value: object) -> bool:
    return not (isinstance(value, str) and any("\ud800" <= each <= "\udfff" for each in value))


class _PlainDumper(yaml.SafeDumper):
    """Quotes a text that either version of YAML would take for something else."""


# As YAML 1.2 has it, less hexadecimals: in 1.1 010 is 8, 1:30 is 90 and a class named no is false.
# A text where a number belongs is then an error of its field, and so is a wrong day.
_PLAIN = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
_StrictLoader.yaml_implicit_resolvers = {}


for _kind, _pattern in _PLAIN.items():
    for _class in (_StrictLoader, _PlainDumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), None
        )


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)))


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def read_yaml(file: Path, *, starts_with: str = "name:, area:, grid:") -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping, with the safe loader only."""
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_RECIPE_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"{file}: no such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"{file}: cannot be read ({reason})") from None
    if len(content) > MAX_RECIPE_BYTES:
        raise RecipeError(f"{file}: larger than {MAX_RECIPE_BYTES} bytes, so not a recipe")
    raw = parse_yaml(content, origin=str(file))
    if not isinstance(raw, dict):
        raise RecipeError(f"{file}: holds no fields; it should start with {starts_with}")
    return raw


def parse_yaml(content: str | bytes, *, origin: str) -> Any:
    """Parse YAML in UTF-8; bytes of a file, or the text of an override.

    Raises
    ------
    RecipeError
        If it is not YAML, or has tags, aliases or duplicate keys; the message names the line.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a subclass of the safe one
    except (UnicodeError, yaml.reader.ReaderError):
        raise RecipeError(f"{origin}: is not a text in UTF-8") from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "too deeply nested"
        raise RecipeError(f"{origin}: is not valid YAML{where}: {problem}") from None


def dump_yaml(content: Any) -> str:
    """Write YAML that :func:`parse_yaml` reads back as the same."""
    return yaml.dump(content, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)
