"""Weights that cannot be trusted: not finite, of other shapes, pickles, cards of any content."""

import copy
import json
import random
import zipfile
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from bigmap.errors import BigmapError, ModelError
from bigmap.models import ModelChoice, build_model, read_tensors, save_weights
from bigmap.models.card import card_file_of, checksum_file
from bigmap.models.checkpoint import read_pickle

PIUNET = {"size": "small"}


def write_weights(folder, tensors=None, *, name="small-conv", options=None):
    """Write weights with some tensors changed, and a card that vouches for them."""
    file = folder / "w.safetensors"
    model = build_model(name, options or {})
    save_weights(model, file)
    state = {key: value.clone() for key, value in model.state_dict().items()} | (tensors or {})
    save_file({key: value for key, value in state.items() if value is not None}, file)
    card = json.loads(card_file_of(file).read_text())
    card["assets"]["weights"]["file:checksum"] = checksum_file(file)
    card_file_of(file).write_text(json.dumps(card))
    return str(file)


def spoil(value, *, dtype=torch.float32):
    bias = torch.zeros(8, dtype=dtype)
    bias[3] = value
    return {"hidden.1.bias": bias}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (spoil(float("nan")), "tensor hidden.1.bias holds NaN or infinity"),
        (spoil(float("-inf")), "tensor hidden.1.bias holds NaN or infinity"),
        (spoil(1e38), r"tensor hidden.1.bias holds numbers above 1e\+18"),
        (spoil(-1e30), r"tensor hidden.1.bias holds numbers above 1e\+18"),
        (spoil(1, dtype=torch.float64), r"hidden.1.bias does not fit .* float64 of shape \(8,\)"),
        (spoil(1, dtype=torch.int32), "hidden.1.bias does not fit small-conv: it is int32"),
        ({"hidden.1.bias": torch.zeros(0)}, r"hidden.1.bias does not fit .* of shape \(0,\), not"),
        ({"hidden.1.bias": None}, "tensor hidden.1.bias is missing, which small-conv has"),
        ({"hidden.9.bias": torch.zeros(8)}, "tensor hidden.9.bias is unknown to small-conv"),
    ],
)
def test_weights_that_compute_nothing_are_refused_by_file_and_tensor(tmp_path, tensors, message):
    weights = write_weights(tmp_path, tensors)
    with pytest.raises(ModelError, match=rf"model.weights: {weights}: .*{message}"):
        build_model("small-conv", weights=weights)


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        ("statistics.std", 0.0, "statistics.std holds a deviation that is not above 0"),
        ("backbone.middle.norm.running_var", -1.0, "running_var holds a variance below 0"),
    ],
)
def test_what_is_divided_by_is_positive(tmp_path, tensor, value, message):
    state = build_model("piunet", PIUNET).state_dict()
    name = next(key for key in state if key.endswith(tensor))
    spoilt = {name: torch.full_like(state[name], value)}
    weights = write_weights(tmp_path, spoilt, name="piunet", options=PIUNET)
    with pytest.raises(ModelError, match=message):
        build_model("piunet", weights=weights)


def test_large_but_finite_weights_are_loaded(tmp_path):
    weights = write_weights(tmp_path, spoil(-1e6))
    bias = build_model("small-conv", weights=weights).state_dict()["hidden.1.bias"]
    assert bias[3] == -1e6


def test_a_choice_holds_to_the_weights_it_was_made_with(tmp_path):
    choice = ModelChoice("small-conv", weights=write_weights(tmp_path))
    found = choice.build().spec.weights
    assert found == f"sha256:{checksum_file(choice.weights).removeprefix('1220')}"
    pinned = replace(choice, pinned=found)
    pinned.build()
    write_weights(tmp_path, spoil(2))
    with pytest.raises(ModelError, match=r"w.safetensors was replaced since the run began"):
        pinned.build()


def test_only_networks_without_weights_are_random(tmp_path):
    spec = build_model("piunet", PIUNET, seed=3).spec
    assert (spec.weights, spec.is_random) == ("random, seed 3", True)
    for name in ("ndvi", "bicubic", "small-conv"):
        assert not build_model(name).spec.is_random
    weights = write_weights(tmp_path, name="piunet", options=PIUNET)
    assert not build_model("piunet", weights=weights).spec.is_random


class Bomb:
    """Runs code when it is unpickled by a careless reader."""

    def __reduce__(self):
        return (print, ("bomb",))


def write_bomb(file):
    torch.save({"a": Bomb()}, file)


def write_noise(file):
    file.write_bytes(random.Random(0).randbytes(500))


def write_cut(file):
    torch.save({"a": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:-700])


def write_packed(file):
    torch.save({"a": torch.zeros(1_000_000)}, file)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("write", [write_bomb, write_noise, write_cut, write_packed])
def test_a_refused_pickle_is_one_sentence_without_advice_to_load_it(tmp_path, capsys, write):
    file = tmp_path / "model.pt"
    write(file)
    with pytest.raises(ModelError) as refusal:
        read_pickle(file)
    said = str(refusal.value)
    assert said.startswith(f"{file}: ")
    for word in ("weights_only", "trust", "add_safe_globals", "arbitrary", "\n"):
        assert word not in said
    assert refusal.value.__cause__ is None
    assert refusal.value.__context__ is None or refusal.value.__suppress_context__
    assert "bomb" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(3).to_sparse(), torch.empty(3, device="meta")],
    ids=["sparse", "meta"],
)
def test_tensors_without_plain_numbers_are_refused(tmp_path, tensor):
    torch.save({"a": tensor}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match="holds no named tensors"):
        read_tensors(tmp_path / "model.pt")


def test_a_header_that_promises_more_than_the_file_holds_is_refused(tmp_path):
    file = tmp_path / "w.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match="is not a safetensors file"):
        read_tensors(file)
    file.write_bytes((2**63).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match="is not a safetensors file"):
        read_tensors(file)


ODD = [None, True, -1, 300, 1e308, float("nan"), float("inf"), "", "x", "\ud800", [], {}, 2**70]


def list_places(value, place=()):
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, below in entries:
        yield (*place, key)
        if isinstance(below, dict | list):
            yield from list_places(below, (*place, key))


def test_cards_of_any_content_are_read_or_refused_in_one_sentence(tmp_path):
    """Every field of a card, replaced by what it is not or left out."""
    weights = write_weights(tmp_path)
    file = card_file_of(weights)
    card = json.loads(file.read_text())
    generator = random.Random(0)
    for place in list_places(card):
        changed = copy.deepcopy(card)
        parent = changed
        for key in place[:-1]:
            parent = parent[key]
        if generator.random() < 0.2:
            del parent[place[-1]]
        else:
            parent[place[-1]] = copy.deepcopy(generator.choice(ODD))
        file.write_text(json.dumps(changed))
        said = refuse(weights)
        assert said is None or (said.startswith("model.") and "\n" not in said), (place, said)


def refuse(weights):
    """Return what a refusal of weights says, None where they are loaded."""
    try:
        build_model("small-conv", weights=weights)
    except BigmapError as error:
        return str(error)
    return None


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b"", b"null", b"[1]", b'"x"'])
def test_a_card_that_is_no_json_object_is_refused(tmp_path, content):
    weights = write_weights(tmp_path)
    card_file_of(weights).write_bytes(content)
    with pytest.raises(ModelError, match=r"w\.json: is not a model card"):
        build_model("small-conv", weights=weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": 255}, "values of their own from 0 to 254"),
        ({"value": 1}, "values of their own from 0 to 254"),
        ({"color_hint": "zz0000"}, "colours of six hexadecimal digits"),
    ],
)
def test_classes_of_a_card_fit_a_map(tmp_path, change, message):
    weights = write_weights(tmp_path)
    card = json.loads(card_file_of(weights).read_text())
    card["properties"]["mlm:output"][0]["classification:classes"][0] |= change
    card_file_of(weights).write_text(json.dumps(card))
    with pytest.raises(ModelError, match=message):
        build_model("small-conv", weights=weights)


def test_a_pickle_that_ends_within_a_number_is_refused(tmp_path):
    file = tmp_path / "weights.pt"
    file.write_bytes(b"\x80\x02}r\x00")
    with pytest.raises(ModelError, match=r"weights\.pt: cannot be read as plain weights"):
        read_pickle(file)
