"""Secrets planted in every place that feeds a run, and looked for in every byte that it leaves."""

import json

import pyarrow.parquet as pq
import pytest

from bigmap import cli
from tests.integration.small_world import write_recipe, write_scenes

SECRET = "hunter2zz"
JWT = f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{SECRET}"
QUERIES = [
    f"?api-key={SECRET}", f"?file=x&password={SECRET}", f"?client_secret={SECRET}&user=me",
    f"?id_token={SECRET}", f"?header.Authorization=Bearer%20{SECRET}", f"#access_token={SECRET}",
    f"?t={JWT}", f"?a=1;Signature={SECRET}",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two scenes of local files, one behind a host that refuses, and one that cannot be used."""
    monkeypatch.chdir(tmp_path)
    for name in ("BIGMAP_STAC_QUERY", "AWS_SECRET_ACCESS_KEY", "GDAL_HTTP_USERPWD"):
        monkeypatch.setenv(name, f"key={SECRET}")
    items = write_scenes(tmp_path / "scenes", query=f"?sig={SECRET}")
    content = json.loads(items.read_text())
    for number, item in enumerate(content["features"]):
        item["links"].append({"rel": "self", "href": f"https://me:{SECRET}@example.org/"})
        for place, asset in enumerate(item["assets"].values()):
            query = QUERIES[(3 * number + place) % len(QUERIES)]
            file = f"{tmp_path}/scenes/{asset['href']}"
            asset["href"] = f"file://{file}{query}"
            if number == 2:
                asset["href"] = f"http://me:{SECRET}@127.0.0.1:9/x;token={SECRET}/x.tif{query}"
    broken = json.loads(json.dumps(content["features"][0]))
    broken["id"] = "broken"
    broken["assets"]["red"]["href"] = f"ftp://me:{SECRET}@a.example/x.tif?sig={SECRET}"
    content["features"].append(broken)
    items.write_text(json.dumps(content))
    write_recipe(
        tmp_path / "recipe.yaml",
        reading__on_error="drop-date",
        source__access={"retries": 0, "timeout_s": 2},
    )
    return tmp_path


def read_all(folder):
    """Yield the name and the content of each file that was written, tables read."""
    for file in folder.rglob("*"):
        if not file.is_file() or "scenes" in file.relative_to(folder).parts:
            continue
        yield file.name, file.read_bytes()
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            yield file.name, f"{table.to_pydict()} {table.schema.metadata}".encode()


def test_no_byte_holds_a_secret(folder, capfd):
    printed = []
    for code, *arguments in (
        (0, "plan", "recipe.yaml"),
        (0, "plan", "recipe.yaml", "--json"),
        (3, "run", "recipe.yaml", "--limit", "1", "--set", "reading.on_error=fail"),
        (None, "run", "recipe.yaml", "--limit", "1", "--overwrite", "--json"),
        (None, "status", "map.zarr", "--json"),
        (3, "stage", "recipe.yaml", "--out", "staged"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        output = capfd.readouterr()
        printed.append(output.out + output.err)
        assert code in (None, stop.value.code or 0), printed[-1]
    files = list(read_all(folder))
    assert len(files) > 15
    assert [name for name, content in files if SECRET.encode() in content] == []
    assert [text for text in printed if SECRET in text] == []
    # The places are told, and what to do about them.
    assert "http://127.0.0.1:9: has hrefs with a signature or a password" in printed[0]
    assert "http://127.0.0.1:9/x/x.tif" in printed[2]
    assert "ftp://a.example/x.tif has a scheme that cannot be read" in printed[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source.files.0", f"https://me:{SECRET}@a.example/items.json"),
        ("source.files.0", f"https://a.example/items.json?api_key={SECRET}"),
        ("source.files.0", f"/vsicurl?header.X-Api-Key={SECRET}&url=https%3A%2F%2Fa.example"),
        ("title", f"token={SECRET}"),
        ("model.options.path", JWT),
        ("cluster.prologue.0", f"export AWS_SECRET_ACCESS_KEY={SECRET}"),
        ("model.options.path", f"--export=MY_TOKEN={SECRET}=="),
        (f"password={SECRET}", "1"),
    ],
)
def test_recipes_hold_no_secret(folder, capsys, field, value):
    changes = {field.removesuffix(".0").replace(".", "__"): value}
    if field.endswith(".0"):
        changes = {name: [value] for name in changes}
    write_recipe(folder / "recipe.yaml", **changes)
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", "recipe.yaml"])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert "must not hold credentials or a signature; give them in the environment" in error
    assert SECRET not in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "line",
    [
        "export GOOGLE_APPLICATION_CREDENTIALS=/home/me/key.json",
        "export TOKEN=$(cat ~/.token)",
        "module load key-tools",
    ],
)
def test_recipes_may_say_where_a_secret_lies(folder, line):
    from bigmap.config import load_recipe

    cluster = {"kind": "slurm", "interface": "ib0", "prologue": [line]}
    file = write_recipe(folder / "slurm.yaml", cluster=cluster)
    assert load_recipe(file).cluster.prologue == (line,)
