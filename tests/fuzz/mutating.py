"""Changes of valid files that make them odd, wrong or broken; the same for the same seed.

Files are changed by what they hold (JSON and YAML as trees, Parquet as a table, the header of
safetensors) and as mere bytes.
"""

from __future__ import annotations

import copy
import io
import json
import math
import random
import unicodedata
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

Files = dict[str, bytes]
"""A folder of files, by their paths in it."""
Slot = tuple[Any, Any]
"""A list or dict and the place in it."""

DEPTH = 2_000
MOST_BYTES = 2_000_000
"""Files do not grow beyond it, so that a thousand mutations fit into a minute."""
MOST_SLOTS = 20_000
"""A list that YAML's aliases put into itself has no end."""
AS_BYTES = 0.25
"""Share of the mutations that know nothing of a file's format."""

ODD_NUMBERS: tuple[Any, ...] = (
    0, -0.0, -1, 1, 0.5, 1e-300, 1e308, math.nan, math.inf, -math.inf, 180.000001, 2**31, -(2**31),
    2**53 + 1, 2**63, -(2**63), 10**400,
)  # fmt: skip
ODD_TEXTS: tuple[Any, ...] = (
    "", " ", "\0", "a\nb", "\x1b[31mred", "\ud800", "e\u0301", "\u202etxt", "x" * 70_000,
    "a-" * 35_000, "0", "-1", "NaN", "Infinity", "0x10", "010", "true", "null", "1e999", "9" * 400,
    "\u0661\u0662", "0000-00-00", "0001-01-01T00:00:00Z", "2024-02-30", "2024-05-01T10:50:31+99:99",
    "9999-12-31T23:59:60Z", "24:00", "now", "../../../etc/passwd", "/", ".", "~nobody/x", "C:\\x",
    "a%2Fb%00%zz", "{0}", "%s", "$HOME", "file:///etc/hostname", "http://127.0.0.1:9/x", "http://[",
    "https://user:pass@127.0.0.1:9/x?sig=abc", "s3://nobody/x", "s3://", "gs://x", "az://x",
    "memory://x", "ftp://127.0.0.1:9/x", "data:,x", "zip://x::y", "/vsicurl/http://127.0.0.1:9/x",
    "javascript:0", "EPSG:0", "EPSG:999999999999", "+proj=longlat", "POINT EMPTY", "POLYGON((0 0))",
)  # fmt: skip
ODD_OTHERS: tuple[Any, ...] = (
    None, True, False, [], {}, [[]], [None], {"": None}, [0] * 1_000, {"type": "Feature"},
)  # fmt: skip

RAW = {
    "deep list": "[" * DEPTH + "]" * DEPTH,
    "deep dict": '{"a":' * DEPTH + "1" + "}" * DEPTH,
    "overflow": "1e999",
    "no number": "-NaN",
    "unquoted": "undefined",
    "tag": "!!python/object:os.system x",
    "alias": "&a [*a]",
    "binary": "!!binary x",
    "octal": "0o17",
    "digits": "1" + "0" * 5_000,
}
"""Values that stand in a text as they are, because no tree can hold them."""
MARK = "\ufdd0"
"""Before the name of a raw value, or behind a key that shall stand twice."""

TOKENS = (
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\n", b"\r", b"\t", b"{", b"}", b"[", b"]",
    b'"', b"'", b":", b",", b"- ", b"null", b"NaN", b"1e999", b"-", b"\\u0000", b"\\ud800", b"%",
    b"&a ", b"*a", b"!!", b"<<: ", b"? ", b"| ", b"\x7f\x45\x4c\x46", b"PAR1", b"PK\x03\x04",
    b"\xff" * 8, b"\0" * 8, b"\x80" * 10,
)  # fmt: skip


def mutate_files(files: Files, rng: random.Random) -> Files:
    """Return a copy of a folder with one file changed, seldom two, or gone."""
    mutated = dict(files)
    for name in rng.sample(sorted(files), min(len(files), rng.choice((1, 1, 1, 1, 2)))):
        fate = rng.random()
        if fate < 0.02:
            del mutated[name]
        elif fate < 0.04:
            mutated[name] = files[rng.choice(sorted(files))]
        else:
            mutated[name] = mutate_file(name, files[name], rng)
    return mutated


def mutate_file(name: str, content: bytes, rng: random.Random) -> bytes:
    """Return a changed copy of a valid file."""
    change = _CHANGES.get(name.rpartition(".")[2], mutate_bytes)
    if rng.random() < AS_BYTES:
        change = mutate_bytes
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        try:
            content = change(content, rng)
        except (*_UNREADABLE, *_UNWRITABLE):  # an earlier change broke it, or no table holds this
            change = mutate_bytes
    return content[:MOST_BYTES]


_UNREADABLE = (OSError, ValueError, RecursionError, yaml.YAMLError, KeyError, IndexError)
_UNWRITABLE = (pa.ArrowException, TypeError, OverflowError, AttributeError, MemoryError)


def mutate_tree(tree: Any, rng: random.Random) -> Any:
    """Change one value or key of nested lists and dicts, in place where it can be."""
    slots = _list_slots(tree)
    if not slots or rng.random() < 0.01:
        return odd_value(rng)
    parent, key = rng.choice(slots)
    value = parent[key]
    match rng.randrange(12):
        case 0 | 1 | 2 | 3:
            parent[key] = odd_value(rng)
        case 4 | 5 | 6:
            parent[key] = _bend(value, rng)
        case 7:
            del parent[key]
        case 8:
            other, place = rng.choice(slots)
            parent[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(value)
        case 9:
            parent[key] = rng.choice(([value], {"value": value}, [value, value], str(value)))
        case 10 if isinstance(parent, dict):
            _rename(parent, key, rng)
        case 10 | 11:
            _insert(value if isinstance(value, list | dict) else parent, rng)
    return tree


def odd_value(rng: random.Random) -> Any:
    """Return a value that a field is unlikely to expect."""
    raw = tuple(f"{MARK}{name}" for name in RAW)
    pool = rng.choice((ODD_NUMBERS, ODD_TEXTS, ODD_TEXTS, ODD_OTHERS, raw))
    return copy.deepcopy(rng.choice(pool))


def _list_slots(tree: Any) -> list[Slot]:
    slots: list[Slot] = []
    waiting = [tree]
    while waiting and len(slots) < MOST_SLOTS:
        part = waiting.pop()
        if isinstance(part, dict | list):
            keys = list(part) if isinstance(part, dict) else range(len(part))
            slots += [(part, key) for key in keys]
            waiting += [part[key] for key in keys]
    return slots


def _bend(value: Any, rng: random.Random) -> Any:
    """Change a value a little, so that it keeps its type."""
    if isinstance(value, bool) or value is None:
        return rng.choice((not value, 1, "yes"))
    if isinstance(value, int | float):
        step = rng.choice((-1, 1e-9, 1, 360, -1e7))
        factor = rng.choice((-1, 0, 1e-6, 10, 1e12))
        return rng.choice((value + step, value * factor, -value, float(value), str(value)))
    if isinstance(value, str):
        at = rng.randrange(len(value) + 1)
        odd = rng.choice(ODD_TEXTS)
        texts = (value[:at], value[at:], value[:at] + odd + value[at:], value.swapcase(),
                 unicodedata.normalize("NFD", value), value * 2)  # fmt: skip
        return rng.choice(texts)
    if isinstance(value, bytes):
        return mutate_bytes(value, rng)
    if isinstance(value, list):
        return rng.choice((value[::-1], value[:-1], value * 2, value[:1], sorted(value, key=str)))
    return dict(reversed(value.items())) if isinstance(value, dict) else str(value)


def _rename(parent: dict[Any, Any], key: Any, rng: random.Random) -> None:
    if rng.random() < 0.3:  # the same key twice
        parent[f"{key}{MARK}"] = odd_value(rng)
        return
    name = rng.choice(("", str(key).upper(), f"{key} ", f"{key}s", rng.choice(ODD_TEXTS)))
    parent[name] = parent.pop(key)


def _insert(parent: Any, rng: random.Random) -> None:
    if isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), odd_value(rng))
    else:
        parent[str(rng.choice(ODD_TEXTS))] = odd_value(rng)


def dump_json(tree: Any, *, indent: int | None = None) -> bytes:
    """Write a tree as JSON, with the raw values and double keys that no parser gives back."""
    text = json.dumps(tree, indent=indent, default=str).replace(f'{json.dumps(MARK)[1:-1]}":', '":')
    for name, raw in RAW.items():
        text = text.replace(json.dumps(f"{MARK}{name}"), raw)
    return text.encode()


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Change the tree of a JSON file."""
    return dump_json(mutate_tree(json.loads(content), rng))


def mutate_lines(content: bytes, rng: random.Random) -> bytes:
    """Change, double or drop one line of a file of JSON lines."""
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    lines[at : at + 1] = rng.choice(([], [lines[at]] * 2, [mutate_json(lines[at], rng)]))
    return b"\n".join(lines) + rng.choice((b"", b"\n", b"\n\n"))


def mutate_yaml(content: bytes, rng: random.Random) -> bytes:
    """Change the tree of a YAML file, and write it as JSON, which is YAML too."""
    tree = yaml.load(content, Loader=yaml.CSafeLoader)
    return dump_json(mutate_tree(tree, rng), indent=1)


def mutate_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Change the header of named tensors, seldom its length or the numbers behind it."""
    length = int.from_bytes(content[:8], "little")
    header, numbers = mutate_json(content[8 : 8 + length], rng), content[8 + length :]
    if rng.random() < 0.2:
        numbers = mutate_bytes(numbers, rng)
    length = rng.choice((len(header),) * 8 + (0, 2**63))
    return length.to_bytes(8, "little") + header + numbers


def mutate_parquet(content: bytes, rng: random.Random) -> bytes:
    """Change a row, a column or the metadata of a table."""
    table = pq.read_table(io.BytesIO(content))
    metadata = dict(table.schema.metadata or {})
    at = rng.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at)
    match rng.randrange(8):
        case 0 | 1 | 2:
            rows = mutate_tree(table.to_pylist(), rng)
            schema = rng.choice((table.schema, None))
            table = pa.Table.from_pylist(rows, schema)
        case 3:
            table = table.drop_columns([name])
        case 4:
            nulls = pa.nulls(len(table), rng.choice((column.type, pa.string(), pa.float64())))
            table = table.set_column(at, name, nulls)
        case 5:
            odd = pa.array([odd_value(rng)] * len(table))
            table = table.set_column(at, rng.choice((name, name.upper())), odd)
        case 6:
            table = rng.choice((table.slice(0, 0), pa.concat_tables([table] * 3), table.slice(1)))
        case 7 if metadata:
            key = rng.choice(sorted(metadata))
            metadata[key] = mutate_file("metadata.json", metadata[key], rng)
            if rng.random() < 0.2:
                del metadata[key]
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    return sink.getvalue()


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut, zero, double or insert some bytes."""
    start = rng.randrange(len(content) + 1)
    stop = min(len(content), start + rng.choice((1, 2, 8, 64, 4096)))
    before, piece, after = content[:start], content[start:stop], content[stop:]
    match rng.randrange(8):
        case 0 | 1 if piece:
            return before + bytes((piece[0] ^ 1 << rng.randrange(8),)) + piece[1:] + after
        case 2:
            return before
        case 3:
            return before + after
        case 4:
            return before + b"\0" * len(piece) + after
        case 5:
            return before + piece * rng.choice((2, 3, 50)) + after
        case 6:
            return before + rng.randbytes(len(piece)) + after
    return before + rng.choice(TOKENS) + piece + after


_CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "geojson": mutate_json,
    "json": mutate_json,
    "jsonl": mutate_lines,
    "parquet": mutate_parquet,
    "safetensors": mutate_safetensors,
    "yaml": mutate_yaml,
}
