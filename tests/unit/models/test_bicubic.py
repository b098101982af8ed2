"""The bicubic baseline."""

import pytest
import torch
import torch.nn.functional as F

from bigmap.errors import ModelError
from bigmap.models import build_model
from tests.unit.models.image_cases import differing_windows, make_dates


@pytest.mark.parametrize("upscale", [1, 2, 3, 8])
def test_it_interpolates_the_median_date(upscale):
    model = build_model("bicubic", {"upscale": upscale})
    reflectance, dates, clear = make_dates(time=3, size=(11, 14), batch=2)
    median = reflectance.median(dim=1).values
    wanted = F.interpolate(median, scale_factor=upscale, mode="bicubic") if upscale > 1 else median
    found = model(reflectance, dates, clear)["image"]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("composite", "halo"), [("mean", 4), ("median", 4), ("clearest", 12)])
def test_windows_equal_the_whole_image_to_the_bit(composite, halo):
    model = build_model("bicubic", {"upscale": 3, "composite": composite})
    assert model.spec.halo_px == halo
    reflectance, dates, clear = make_dates(time=3, size=(80, 90))
    clear = torch.rand(clear.shape, generator=torch.Generator().manual_seed(1)) > 0.5
    origins = [(0, 0), (3, 7), (13, 21), (20, 11)]
    inputs = (reflectance, dates, clear)
    assert differing_windows(model, inputs, core=29, origins=origins) == []


def test_a_pixel_that_is_never_clear_does_not_stain_others():
    model = build_model("bicubic", {"upscale": 2})
    reflectance, dates, clear = make_dates(time=2, size=(12, 12))
    reflectance[:] = 0.2
    reflectance[..., 5, 6] = 0.9
    clear[..., 5, 6] = False
    image = model(reflectance, dates, clear)["image"]
    assert torch.allclose(image, torch.full_like(image, 0.2), atol=1e-6)


def test_padded_dates_do_not_count_as_seen():
    model = build_model("bicubic")
    reflectance, dates, clear = make_dates(time=3)
    dates[:, 1] = False
    wanted = model(reflectance[:, ::2], dates[:, ::2], clear[:, ::2])["image"]
    reflectance[:, 1] = torch.nan
    assert torch.equal(model(reflectance, dates, clear)["image"], wanted)


def test_wrong_options_are_named():
    with pytest.raises(ModelError, match="upscale 9 is not between 1 and 8"):
        build_model("bicubic", {"upscale": 9})
    with pytest.raises(ModelError, match="composite 'best' is unknown"):
        build_model("bicubic", {"composite": "best"})
