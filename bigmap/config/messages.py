"""One sentence for what is wrong in a recipe, with the name of the field."""

from __future__ import annotations

import difflib
import re
from functools import cache
from typing import Any

from pydantic import ValidationError

from bigmap.config.recipe import Recipe

LEADING_ZERO = re.compile(r"[-+]?0[0-9][0-9_.]*")
MAX_SHOWN = 80


def explain(error: ValidationError) -> str:
    """Turn the first of pydantic's errors into one sentence that names the field."""
    errors = error.errors(include_url=False)
    # An unknown key explains a missing one (a misspelt field gives both), so it comes first.
    errors.sort(key=lambda entry: entry["type"] not in ("extra_forbidden", "invalid_key"))
    first = errors[0]
    field = _name_field(first["loc"]) or "recipe"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    match first["type"]:
        case "extra_forbidden":
            return f"{field} is not a known field{_suggest(first['loc'])}{more}"
        case "missing":
            return f"{field} is missing{more}"
        case "union_tag_not_found":
            return f"{field}.kind is missing{more}"
        case "union_tag_invalid":
            given, known = first["ctx"]["tag"], first["ctx"]["expected_tags"]
            return f"{field}.kind: {_show(given)} is unknown; there are {known}{more}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{field}: must hold fields{_contrast(first['input'])}{more}"
        case "value_error":
            return f"{field}: {first['msg'].removeprefix('Value error, ')}{more}"
        case "int_type" | "float_type" if LEADING_ZERO.fullmatch(str(first["input"])):
            return (
                f"{field}: {first['input']} may be meant as octal or as decimal; write the number "
                f"without a leading 0{more}"
            )
    return f"{field}: {first['msg']}{_contrast(first['input'])}{more}"


def _contrast(given: Any) -> str:
    """Say what was given, where that is short."""
    if not isinstance(given, str | int | float | bool):
        return ""
    return f", not {_show(given)}"


def _show(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _name_field(loc: tuple[int | str, ...]) -> str:
    """Join an error's location, without the tags that pydantic adds to it after a union."""
    before: tuple[int | str, ...] = ("", *loc)
    return ".".join(
        str(part) if str(part).isprintable() else repr(part)
        for parent, part in zip(before, loc, strict=False)
        if part not in _list_tags().get(str(parent), ())
    )


def _suggest(loc: tuple[int | str, ...]) -> str:
    # The same name may be a field of another part, or of another kind of source.
    known = sorted(_list_fields() - {str(loc[-1])})
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


@cache
def _list_fields() -> frozenset[str]:
    return frozenset(name for part in _list_parts() for name in part["properties"])


@cache
def _list_tags() -> dict[str, frozenset[str]]:
    """Return the kinds of each field that is one of several parts, by the field's name."""
    return {
        name: frozenset(kinds)
        for part in _list_parts()
        for name, field in part["properties"].items()
        for choice in (field, *field.get("anyOf", ()))
        if (kinds := choice.get("discriminator", {}).get("mapping"))
    }


def _list_parts() -> list[dict[str, Any]]:
    schema = Recipe.model_json_schema()
    return [schema, *(part for part in schema["$defs"].values() if "properties" in part)]
