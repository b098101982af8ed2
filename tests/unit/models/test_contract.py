"""The two models: formulas, contract, registry and weights."""

import inspect
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bigmap.errors import ModelError
from bigmap.models import (
    Training,
    build_model,
    list_models,
    read_card,
    read_tensors,
    save_weights,
)
from bigmap.models.layers import upsample_bicubic
from bigmap.models.networks.ndvi import average_ndvi, fill_holes


def make_input(model, *, time=3, size=24, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    bands = len(model.spec.bands)
    reflectance = torch.rand(batch, time, bands, size, size, generator=generator) * 0.5
    dates = torch.ones(batch, time, dtype=torch.bool)
    clear = torch.rand(batch, time, size, size, generator=generator) > 0.2
    return reflectance, dates, clear


def build_small(name):
    """Build a model in its small size, where it has one."""
    has_sizes = "size" in inspect.signature(list_models()[name].__init__).parameters
    return build_model(name, {"size": "small"} if has_sizes else {})


def run(model, *inputs):
    with torch.inference_mode():
        return model(*inputs)


@pytest.mark.parametrize("name", list(list_models()))
def test_scores_have_the_declared_shape(name):
    model = build_small(name)
    scores = run(model, *make_input(model))
    fine = 24 * model.spec.upscale
    wanted = {layer.name for layer in model.spec.extra_layers}
    wanted |= {"probability"} if model.spec.legend else set()
    assert set(scores) == wanted
    for values in scores.values():
        assert values.shape[-2:] == (fine, fine)
        assert values.isfinite().all()
    if model.spec.legend:
        total = scores["probability"].sum(dim=1)
        assert torch.allclose(total, torch.ones_like(total))


@pytest.mark.parametrize("name", list(list_models()))
def test_padded_dates_change_nothing(name):
    model = build_small(name)
    reflectance, dates, clear = make_input(model)
    padding = torch.full((2, 2, *reflectance.shape[2:]), 7.0)
    padded = run(
        model,
        torch.cat([reflectance, padding], dim=1),
        torch.cat([dates, torch.zeros(2, 2, dtype=torch.bool)], dim=1),
        torch.cat([clear, torch.zeros(2, 2, 24, 24, dtype=torch.bool)], dim=1),
    )
    for layer, values in run(model, reflectance, dates, clear).items():
        assert torch.equal(padded[layer], values)


@pytest.mark.parametrize("name", list(list_models()))
def test_an_exact_model_sees_no_farther_than_its_halo(name):
    model = build_small(name)
    if model.spec.kind != "exact":
        pytest.skip(f"{name} is not exact")
    reflectance, dates, clear = make_input(model, batch=1, size=48)
    clear[:] = True
    reflectance.requires_grad_()
    centre = 24 * model.spec.upscale
    scores = model(reflectance, dates, clear)
    first = scores["probability" if model.spec.legend else model.spec.extra_layers[0].name]
    first[0, 0, centre, centre].backward()
    touched = reflectance.grad.abs().sum(dim=(0, 1, 2)).nonzero()
    reach = (touched - 24).abs().max().item()
    assert 0 < reach <= model.spec.halo_px


def test_mean_ndvi_is_over_clear_dates_only():
    red = torch.tensor([0.1, 0.2, 0.3]).reshape(1, 3, 1, 1)
    nir = torch.tensor([0.3, 0.2, 0.9]).reshape(1, 3, 1, 1)
    clear = torch.tensor([True, False, True]).reshape(1, 3, 1, 1)
    mean, observed = average_ndvi(red, nir, clear)
    assert mean.item() == pytest.approx((0.5 + 0.5) / 2)
    assert observed.item()
    mean, observed = average_ndvi(red, nir, torch.zeros_like(clear))
    assert mean.item() == 0
    assert not observed.item()


def test_negative_reflectance_gives_no_ndvi_beyond_one():
    mean, _ = average_ndvi(
        torch.tensor(-0.05).reshape(1, 1, 1, 1),
        torch.tensor(0.02).reshape(1, 1, 1, 1),
        torch.ones(1, 1, 1, 1, dtype=torch.bool),
    )
    assert mean.item() == 1.0


@pytest.mark.parametrize("upscale", [1, 2, 3, 4, 8])
def test_bicubic_equals_torch(upscale):
    values = torch.rand(2, 13, 17, generator=torch.Generator().manual_seed(1))
    expected = F.interpolate(
        values[:, None], scale_factor=upscale, mode="bicubic", align_corners=False
    )[:, 0]
    assert torch.allclose(upsample_bicubic(values, upscale), expected, atol=1e-5)


@pytest.mark.parametrize("upscale", [3, 4])
def test_bicubic_does_not_depend_on_the_window(upscale):
    values = torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(2))
    whole = upsample_bicubic(values, upscale)
    part = upsample_bicubic(values[:, 7:31, 5:36], upscale)
    margin = 2 * upscale
    inner = whole[:, 7 * upscale : 31 * upscale, 5 * upscale : 36 * upscale]
    assert torch.equal(
        part[:, margin:-margin, margin:-margin], inner[:, margin:-margin, margin:-margin]
    )


def test_a_hole_does_not_reach_its_neighbours():
    model = build_model("ndvi", {"upscale": 4})
    reflectance, dates, clear = make_input(model, batch=1)
    clear[:] = True
    reflectance[:] = reflectance[..., :1, :1]  # a flat field: any leak shows
    flat = run(model, reflectance, dates, clear)["ndvi"]
    clear[..., 10:13, 10:13] = False
    spoilt = reflectance.clone()
    spoilt[..., 10:13, 10:13] = 0
    holed = run(model, spoilt, dates, clear)["ndvi"]
    outside = torch.ones_like(flat, dtype=torch.bool)
    outside[..., 40:52, 40:52] = False
    assert torch.allclose(flat[outside], holed[outside], atol=1e-6)


def test_holes_take_the_mean_of_known_neighbours():
    values = torch.arange(25.0).reshape(1, 5, 5)
    known = torch.ones(1, 5, 5, dtype=torch.bool)
    known[0, 2, 2] = False
    filled = fill_holes(values, known)
    assert filled[0, 2, 2].item() == pytest.approx((300 - 12) / 24)
    assert torch.equal(filled[known], values[known])
    assert not fill_holes(values, torch.zeros_like(known)).any()


def test_class_is_cropland_exactly_above_the_threshold():
    model = build_model("ndvi", {"threshold": 0.5, "upscale": 1})
    red = torch.tensor([[0.1, 0.1, 0.1]])
    nir = torch.tensor([[0.29, 0.299, 0.301]])
    reflectance = torch.stack([red, nir])[None, None]
    scores = run(model, reflectance, torch.ones(1, 1).bool(), torch.ones(1, 1, 1, 3).bool())
    assert (scores["probability"][0, 1, 0] > 0.5).tolist() == [False, False, True]


def test_small_conv_is_the_same_for_the_same_seed():
    first, second = build_model("small-conv"), build_model("small-conv")
    other = build_model("small-conv", {"seed": 1})
    inputs = make_input(first)
    assert torch.equal(run(first, *inputs)["probability"], run(second, *inputs)["probability"])
    assert not torch.equal(run(first, *inputs)["probability"], run(other, *inputs)["probability"])


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_window_does_not_depend_on_its_batch(batch):
    model = build_model("small-conv", {"width": 16})
    reflectance, dates, clear = make_input(model, batch=8, size=40)
    whole = run(model, reflectance, dates, clear)["probability"]
    part = run(model, reflectance[:batch], dates[:batch], clear[:batch])["probability"]
    assert torch.equal(whole[:batch], part)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nvdi", {}, "unknown; there are bicubic, "),
        ("ndvi", {"treshold": 0.3}, "model.options.treshold is unknown to ndvi; it has threshold"),
        ("spinet", {"fusion": "no"}, "model.options.fusion: is true or false, not 'no'"),
        ("ndvi", {"upscale": 1.0}, "model.options.upscale: is a whole number, not 1.0"),
        ("ndvi", {"upscale": True}, "model.options.upscale: is a whole number, not True"),
        ("ndvi", {"threshold": "0.4"}, "model.options.threshold: is a number, not '0.4'"),
        ("ndvi", {"threshold": 3.0}, "threshold 3.0 is not an NDVI"),
        ("small-conv", {"width": 0}, "width 1 to 256"),
    ],
)
def test_wrong_models_and_options_are_named(name, options, message):
    with pytest.raises(ModelError, match=message.replace(".", r"\.")):
        build_model(name, options)


@pytest.fixture
def weights(tmp_path):
    """Return a weights file of small-conv with another seed, its card beside it."""
    file = tmp_path / "weights.safetensors"
    training = Training("a test", is_simulated=True, scores={"mcc": 0.5})
    save_weights(build_model("small-conv", {"seed": 5, "upscale": 4}), file, training=training)
    return file


def test_weights_bring_their_own_options(weights):
    trained = build_model("small-conv", {"seed": 5, "upscale": 4})
    loaded = build_model("small-conv", weights=str(weights))
    assert loaded.spec.upscale == 4
    assert "simulated" in loaded.spec.notice
    inputs = make_input(trained)
    assert torch.equal(run(trained, *inputs)["probability"], run(loaded, *inputs)["probability"])
    card = read_card(weights)
    assert (card.name, card.bands) == ("small-conv", ("blue", "green", "red", "nir"))
    assert card.legend == trained.spec.legend
    assert card.training.scores == {"mcc": 0.5}


def edit_card(weights, change):
    file = weights.with_suffix(".json")
    content = json.loads(file.read_text())
    change(content["properties"], content["assets"]["weights"])
    file.write_text(json.dumps(content))


def swap_bands(properties, _):
    bands = properties["mlm:input"][0]["bands"]
    bands[0], bands[2] = bands[2], bands[0]


def rename_class(properties, _):
    properties["mlm:output"][0]["classification:classes"][1]["title"] = "forest"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_bands, r"weights.json: is for bands .'red', 'green', 'blue', 'nir'."),
        (rename_class, r"is for legend .'0 a', '1 forest', '2 c'."),
        (lambda p, a: p.update({"bigmap:upscale": 2}), "is for options.upscale 2"),
        (lambda p, a: a.update({"file:checksum": "1220" + "0" * 64}), "its checksum differs"),
        (lambda p, a: p.pop("mlm:input"), "weights.json: is not a model card"),
        (lambda p, a: p.update({"mlm:architecture": "ndvi"}), "is for name ndvi"),
    ],
)
def test_weights_of_something_else_are_refused(weights, change, message):
    edit_card(weights, change)
    with pytest.raises(ModelError, match=message):
        build_model("small-conv", weights=str(weights))


def test_weights_that_do_not_fit_the_recipe_are_refused(weights, tmp_path):
    with pytest.raises(ModelError, match=r"is for options.upscale 4, but .* has 2"):
        build_model("small-conv", {"upscale": 2}, weights=str(weights))
    with pytest.raises(ModelError, match=r"model\.bands cannot be chosen for small-conv"):
        build_model("small-conv", bands=("red",))
    with pytest.raises(ModelError, match="ndvi has no weights"):
        build_model("ndvi", weights=str(weights))
    cut = weights.read_bytes()[:-40]
    weights.write_bytes(cut)
    with pytest.raises(ModelError, match="its checksum differs"):
        build_model("small-conv", weights=str(weights))
    weights.with_suffix(".json").write_text('{"pixel accuracy": 0.9}')
    with pytest.raises(ModelError, match=r"weights\.json: is not a model card"):
        build_model("small-conv", weights=str(weights))
    weights.with_suffix(".json").unlink()
    with pytest.raises(ModelError, match=r"has no model card weights\.json"):
        build_model("small-conv", weights=str(weights))
    with pytest.raises(ModelError, match="no such file"):
        build_model("small-conv", weights=str(tmp_path / "absent.safetensors"))


def test_tensors_of_another_shape_are_refused(weights):
    edit_card(weights, lambda p, a: p["mlm:hyperparameters"].update(width=9))
    with pytest.raises(ModelError, match=r"tensor head\.weight does not fit small-conv"):
        build_model("small-conv", weights=str(weights))


def test_damaged_safetensors_are_refused(tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(np.random.default_rng(0).bytes(2000))
    with pytest.raises(ModelError, match="not a safetensors file"):
        read_tensors(file)


class Bomb:
    """Runs code when it is unpickled by a careless reader."""

    def __reduce__(self):
        return (print, ("bomb",))


def test_pytorch_files_never_run_code(tmp_path, capsys):
    file = tmp_path / "weights.pt"
    torch.save({"state_dict": {"module.a": torch.ones(2)}, "epoch": 3}, file)
    assert torch.equal(read_tensors(file)["a"], torch.ones(2))
    torch.save({"a": Bomb()}, file)
    with pytest.raises(ModelError, match=r"weights.pt: cannot be read as plain weights"):
        read_tensors(file)
    torch.save({"a": 3}, file)
    with pytest.raises(ModelError, match="holds no named tensors"):
        read_tensors(file)
    file.write_bytes(b"not a zip")
    with pytest.raises(ModelError, match="cannot be read as plain weights"):
        read_tensors(file)
    assert "bomb" not in capsys.readouterr().out


def test_threads_that_build_at_once_get_the_same_random_weights():
    options = {"size": "small"}
    expected = build_model("dbpn", options).state_dict()
    with ThreadPoolExecutor(4) as pool:
        for model in pool.map(lambda _: build_model("dbpn", options), range(8)):
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, expected[name])
