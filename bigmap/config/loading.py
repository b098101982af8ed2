"""Recipes and cluster files: from YAML with overrides to validated sections.

Paths of inputs (``area.file``, ``source.files``, ``model.weights``, labels, certificates of a
cluster) are relative to the folder of the file that names them; ``output.path``, ``samples.path``
and ``training.weights`` are relative to the current folder.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from bigmap.config.cluster import ClusterConfig, ClusterFile
from bigmap.config.messages import explain
from bigmap.config.recipe import Recipe
from bigmap.config.strict_yaml import parse_yaml, read_yaml
from bigmap.errors import RecipeError
from bigmap.redaction import holds_secret

CLUSTER_PATHS = ("scheduler_file", "tls_ca_file", "tls_cert_file", "tls_key_file")
PATH_FIELDS = (
    ("area", "file"),
    ("source", "files"),
    ("source", "cache"),
    ("model", "weights"),
    *(("cluster", field) for field in CLUSTER_PATHS),
    ("samples", "labels", "file"),
    ("samples", "labels", "files"),
    ("samples", "target", "files"),
    ("samples", "split", "file"),
)
CLUSTER_FOLDER = Path("cluster")
NAMED_CLUSTERS = ("local", "local-cuda")
"""Kinds that need no settings, and so no file."""
SIMULATED_KEEPS = ("start", "end", "max_cloud_percent")
"""Fields of any source that hold for simulated scenes in its place."""


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    cluster: str | None = None,
    simulated: bool = False,
) -> Recipe:
    """Read and validate a recipe.

    Parameters
    ----------
    path
        A YAML file.
    overrides
        ``dotted.key=value`` settings that replace the recipe's own; values are YAML.
    cluster
        A cluster file, or a name as in :func:`find_cluster`, that replaces the recipe's own
        ``cluster``.
    simulated
        Use simulated scenes of the same days in place of the recipe's source; overrides of
        ``source`` are then those of a simulated one.

    Raises
    ------
    RecipeError
        If the file cannot be read, is not YAML, or a field is wrong; the message names both.
    """
    file = Path(path)
    raw, origin = read_yaml(file), str(file)
    if cluster is not None:
        raw["cluster"], source = find_cluster(cluster)
        origin += f" with {source}"
    given = raw.get("source")
    if simulated and isinstance(given, dict):
        common = {field: given[field] for field in SIMULATED_KEEPS if field in given}
        raw["source"] = {"kind": "simulated"} | common
    for override in overrides:
        _apply_override(raw, override)
    _resolve_paths(raw, file)
    return parse_recipe(raw, origin=origin)


def load_cluster(name: str, overrides: Sequence[str] = ()) -> ClusterConfig:
    """Read and validate a cluster file.

    Parameters
    ----------
    name
        A path, or a name as in :func:`find_cluster`.
    overrides
        ``cluster.key=value`` settings that replace the file's own, as for a recipe.

    Raises
    ------
    RecipeError
        If the file cannot be found or read, or a field is wrong; the message names both.
    """
    section, origin = find_cluster(name)
    raw: dict[str, Any] = {"cluster": section}
    for override in overrides:
        _apply_override(raw, override)
    _refuse_secrets(raw, origin)
    try:
        return ClusterFile.model_validate(raw).cluster
    except ValidationError as error:
        raise RecipeError(f"{origin}: {explain(error)}") from None


def find_cluster(name: str) -> tuple[dict[str, Any], str]:
    """Return the section that a cluster file holds, its paths resolved, and where it was found.

    Parameters
    ----------
    name
        Path of a file; or ``NAME`` for ``cluster/NAME.yaml`` in the current folder; or, where
        there is no such file, ``local`` or ``local-cuda`` with all their defaults.

    Raises
    ------
    RecipeError
        If there is none.
    """
    for file in (Path(name), CLUSTER_FOLDER / f"{name}.yaml"):
        if file.is_file():
            raw = {"cluster": read_yaml(file, starts_with="kind:")}
            _resolve_paths(raw, file)
            return raw["cluster"], str(file)
    if name in NAMED_CLUSTERS:
        return {"kind": name}, f"cluster {name}"
    known = ", ".join(list_clusters())
    raise RecipeError(f"--cluster {name}: no such file or name; there are {known}")


def list_clusters() -> dict[str, str]:
    """Return the names that :func:`find_cluster` knows, each with its file, empty where none."""
    files = {file.stem: str(file) for file in sorted(CLUSTER_FOLDER.glob("*.yaml"))}
    return dict.fromkeys(NAMED_CLUSTERS, "") | files


def _resolve_paths(raw: dict[str, Any], file: Path) -> None:
    """Take relative paths from the folder of their file; absolute ones stay."""
    for field in PATH_FIELDS:
        try:
            _resolve_field(raw, field, file.parent)
        except (OSError, RuntimeError, ValueError) as error:
            raise RecipeError(f"{file}: {'.'.join(field)}: is not a path ({error})") from None


def parse_recipe(raw: Mapping[str, Any], *, origin: str = "recipe") -> Recipe:
    """Validate a mapping as a recipe; see :func:`load_recipe`."""
    _refuse_secrets(raw, origin)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"{origin}: {explain(error)}") from None


def _refuse_secrets(raw: Mapping[str, Any], origin: str) -> None:
    """Refuse a secret in any name or value, as recipes are stored with every map."""
    waiting: list[tuple[str, Any]] = [("", raw)]
    while waiting:
        field, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{field}.{name}".lstrip("."), part) for name, part in value.items()]
            waiting += [(field or "recipe", str(name)) for name in value]
        elif isinstance(value, list | tuple):
            waiting += [(f"{field}.{index}", part) for index, part in enumerate(value)]
        elif isinstance(value, str) and holds_secret(value):
            raise RecipeError(
                f"{origin}: {field}: must not hold credentials or a signature; give them in the "
                "environment"
            )


def write_schema(path: str | Path, *, of: Literal["recipe", "cluster"] = "recipe") -> None:
    """Write the JSON Schema of recipes or cluster files, which editors use for completion."""
    kind: TypeAdapter[Any] = TypeAdapter(Recipe if of == "recipe" else ClusterConfig)
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | kind.json_schema()
    Path(path).write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise RecipeError(f"--set {override!r}: write it as dotted.key=value")
    value = parse_yaml(text, origin=f"--set {key}")
    section = raw
    for part in parts[:-1]:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise RecipeError(f"--set {key}: {part} is a value and holds no fields")
    section[parts[-1]] = value


def _resolve_field(raw: dict[str, Any], field: tuple[str, ...], folder: Path) -> None:
    section: Any = raw
    for part in field[:-1]:
        section = section.get(part) if isinstance(section, dict) else None
    if isinstance(section, dict) and field[-1] in section:
        section[field[-1]] = _resolve(section[field[-1]], folder)


def _resolve(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_resolve(entry, folder) for entry in value]
    if not isinstance(value, str) or "://" in value:
        return value
    path = (folder / Path(value).expanduser()).resolve()
    # Names from macOS hold accents apart from their letters; they look the same.
    forms = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
    return str(path if path.exists() else next((each for each in forms if each.exists()), path))
