"""Memory of a pass: by hand for a made-up model, and for networks as the allocator counts it."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from bigmap.mapping.engine import optimise
from bigmap.models import MapModel, ModelSpec, build_model
from bigmap.models.base import image_layer
from bigmap.models.dry_pass import PassSize, count_pass_bytes

SPEC = ModelSpec(
    name="doubling", title="", bands=("red",), upscale=1, halo_px=0, kind="exact",
    extra_layers=(image_layer(("red",)),),
)  # fmt: skip
VALUE = 4


class Doubling(MapModel):
    """Holds two copies of the input beside it, then one."""

    def __init__(self, spec=SPEC):
        super().__init__()
        self.spec = spec

    def forward(self, reflectance, dates, clear):
        image = (reflectance * 2 + 1).mean(dim=1)
        return {"image": image}


class Hesitating(Doubling):
    """Asks for a value, which a dry pass has none of."""

    def forward(self, reflectance, dates, clear):
        if float(reflectance.sum()) > 1e9:
            raise AssertionError("never with the values of the trial")
        return super().forward(reflectance, dates, clear)


def test_copies_that_live_together_are_counted():
    size = PassSize(windows=2, dates=3, side_px=1000)
    values = 2 * 3 * 1000**2
    # The input, its double and their sum; the double is gone when the mean is made.
    assert count_pass_bytes(Doubling(), size) == 3 * VALUE * values


def test_a_model_whose_steps_depend_on_values_is_tried_on_a_small_window():
    size = PassSize(windows=2, dates=3, side_px=1024)
    values = 2 * 3 * 1024**2
    found = count_pass_bytes(Hesitating(), size)
    assert found == pytest.approx(3 * VALUE * values, rel=0.01)


def allocated_bytes(model, size):
    """Return the most that PyTorch's allocator had handed out during a real pass."""
    shape = (size.windows, size.dates, len(model.spec.bands), size.side_px, size.side_px)
    dates = torch.ones(shape[:2], dtype=torch.bool)
    clear = torch.ones((*shape[:2], *shape[3:]), dtype=torch.bool)
    clear[..., 0, 0] = False
    enabled = size.precision == "bfloat16"
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen,
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16, enabled=enabled),
    ):
        model(torch.rand(shape), dates, clear)
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    most = now = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bicubic", {}),
        ("small-conv", {"width": 64}),
        ("ndvi", {}),
        ("spinet", {"size": "small"}),
        ("piunet", {"size": "small"}),
        ("highres-net", {"size": "small"}),
        ("srresnet", {"size": "small"}),
    ],
)
def test_a_dry_pass_counts_what_the_allocator_hands_out(name, options):
    model = optimise(build_model(name, options))
    size = PassSize(windows=2, dates=4, side_px=48)
    assert count_pass_bytes(model, size) == pytest.approx(allocated_bytes(model, size), rel=0.15)


def test_wider_networks_longer_series_and_larger_batches_take_more():
    narrow, wide = (optimise(build_model("small-conv", {"width": c})) for c in (16, 64))
    size = PassSize(windows=2, dates=4, side_px=64)
    few = count_pass_bytes(narrow, size)
    assert count_pass_bytes(wide, size) > 2 * few
    assert count_pass_bytes(narrow, PassSize(4, 4, 64)) == pytest.approx(2 * few, rel=0.05)
    assert count_pass_bytes(narrow, PassSize(2, 8, 64)) > 1.3 * few


def test_bfloat16_takes_less_than_float32_where_the_processor_has_it_and_both_where_not(
    monkeypatch,
):
    model = optimise(build_model("small-conv", {"width": 16}))
    whole = count_pass_bytes(model, PassSize(2, 4, 64))
    monkeypatch.setattr("bigmap.models.dry_pass.has_bfloat16", lambda: True)
    half = count_pass_bytes(model, PassSize(2, 4, 64, "bfloat16"))
    monkeypatch.setattr("bigmap.models.dry_pass.has_bfloat16", lambda: False)
    emulated = count_pass_bytes(model, PassSize(2, 4, 64, "bfloat16"))
    assert 0.4 * whole < half < whole
    assert emulated == whole + half
