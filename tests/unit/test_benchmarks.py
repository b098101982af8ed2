"""The benchmarks' arithmetic on made-up numbers; measuring itself is left to ``make bench``."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr

pytest.importorskip("psutil")

from benchmarks import (
    end_to_end,
    measuring,
    plain_networks,
    plain_spinet,
    prediction,
    resampling,
)
from bigmap.mapping.engine import optimise
from bigmap.models import build_model
from bigmap.models.networks.spinet import SpinetModel

BENCHMARKS = Path(measuring.__file__).parent


def make_run(seconds: float) -> dict:
    return {
        "seconds": seconds,
        "peak_gb": 1.5,
        "elapsed_s": seconds - 2,
        "planned": 4,
        "stages": {"read": 6.0, "predict": 2.0},
    }


def test_ratios_belong_to_pairs_of_runs():
    assert measuring.paired_ratios([2.0, 4.0], [4.0, 6.0]) == [2.0, 1.5]


def test_ratios_need_as_many_runs_of_each():
    with pytest.raises(ValueError, match="shorter"):
        measuring.paired_ratios([2.0, 4.0], [4.0])


def test_spread_is_median_and_extremes():
    assert measuring.spread([3.0, 1.0, 8.0]) == {"median": 3.0, "min": 1.0, "max": 8.0}


def test_table_is_markdown():
    assert measuring.table(("a", "b"), [("x", 1)]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


@pytest.mark.parametrize(
    ("cpu", "kind"),
    [
        ("AMD EPYC 7763 64-Core Processor", "2-core-amd-epyc-7763"),
        ("Intel(R) Xeon(R) CPU E5-2686 v4 @ 2.30GHz", "2-core-intel-xeon-e5-2686-v4"),
    ],
)
def test_the_kind_of_a_machine_is_a_file_name(cpu, kind):
    assert measuring.machine_kind({"cores": 2, "cpu": cpu}) == kind


def test_results_name_neither_machine_nor_folder():
    text = str(measuring.describe_machine())
    assert str(Path.home()) not in text
    assert str(measuring.ROOT) not in text


def test_a_process_is_measured_with_its_children(tmp_path):
    child = (
        "import time; data = bytearray(100_000_000); time.sleep(0.5)\n"
        "while time.process_time() < 0.5: pass"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); print(7)"
    measured = measuring.run_measured([sys.executable, "-c", parent], tmp_path / "log")
    assert measured.output == "7\n"
    assert measured.seconds > 0.8
    assert measured.peak_bytes > 100e6
    assert measured.user_s + measured.system_s > 0.5


def test_a_process_that_fails_is_no_measurement(tmp_path):
    with pytest.raises(RuntimeError, match="ended with 3"):
        measuring.run_measured([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "log")


def test_a_case_is_described_by_ratio_rate_and_stages():
    same = dict.fromkeys(
        (
            "share_mapped_by_both", "share_mapped_by_one", "share_of_equal_classes",
            "share_of_ndvi_within_1e-4", "mean_ndvi_difference", "greatest_ndvi_difference",
        ),
        0.5,
    )  # fmt: skip
    text = end_to_end.describe_case(
        {
            "title": "made up",
            "area_km2": 100.0,
            "runs": {
                "bigmap": [make_run(10.0), make_run(20.0)],
                "by_hand": [{"seconds": 30.0, "peak_gb": 3.0}, {"seconds": 40.0, "peak_gb": 3.0}],
            },
            "ratios": [3.0, 2.0],
            "comparison": same,
        }
    )
    assert "By hand takes 2.50 (2.00 to 3.00) times as long" in text
    assert "| `bigmap run` | 15.0 (10.0 to 20.0) | 27,000 (18,000 to 36,000) |" in text
    assert "| read | 6.00 | 1500 | 75% |" in text
    assert "take 2.0 s" in text


def test_maps_are_compared_where_both_have_a_value(tmp_path, monkeypatch):
    monkeypatch.setattr(end_to_end, "WORK", tmp_path)
    case = end_to_end.Case("made-up", "", tmp_path, (0, 0, 1, 1), {})
    classes = {"bigmap": [[0, 1], [1, 255]], "by_hand": [[0, 0], [1, 1]]}
    ndvi = {"bigmap": [[5, 7], [9, -32768]], "by_hand": [[5, 8], [19, 3]]}
    for who, path in case.outputs.items():
        group = zarr.open_group(path, mode="w", zarr_format=3)
        for name, values, dtype in (("class", classes, "uint8"), ("ndvi", ndvi, "int16")):
            data = np.array(values[who], dtype)
            group.create_array(name, data=data, chunks=(1, 1), shards=(2, 2))
    found = end_to_end.compare_maps(case)
    assert found["share_mapped_by_both"] == 0.75
    assert found["share_mapped_by_one"] == 0.25
    assert found["share_of_equal_classes"] == pytest.approx(2 / 3)
    assert found["share_of_ndvi_within_1e-4"] == pytest.approx(2 / 3)
    assert found["greatest_ndvi_difference"] == pytest.approx(1e-3)


def test_chunks_are_joined_as_they_lie():
    def read(roi):
        rows, cols = roi
        return np.add.outer(
            100 * np.arange(rows.start, rows.stop), np.arange(cols.start, cols.stop)
        )

    roi = (slice(-3, 4), slice(5, 11))
    assert np.array_equal(resampling.read_in_chunks(read, roi, 3), read(roi))


def test_the_script_by_hand_stays_one_that_is_written_by_hand():
    lines = (BENCHMARKS / "by_hand.py").read_text().splitlines()
    assert len(lines) <= 60


def draw_norms(model: torch.nn.Module) -> None:
    """Draw statistics of normalisations, so that one left out or misplaced is seen."""
    for each in model.modules():
        if isinstance(each, torch.nn.BatchNorm2d):
            each.running_mean.normal_(0, 0.2)
            each.running_var.uniform_(0.5, 2)


@pytest.mark.parametrize("size", ["small", "full"])
def test_the_plain_network_is_the_same_network(size):
    """The yardstick of speed computes what ours does, from the same weights."""
    torch.manual_seed(0)
    model = SpinetModel(size=size).eval()
    draw_norms(model)
    plain = plain_spinet.load(model.state_dict())
    reflectance = 0.4 * torch.rand(3, 12, 16, 24)
    valid = torch.ones(1, 3, dtype=torch.bool)
    with torch.inference_mode():
        wanted = plain(reflectance)
        clear = torch.ones(1, 3, 16, 24, dtype=torch.bool)
        found = optimise(model).compute(reflectance[None], valid, clear)["logits"][0]
    assert wanted.std() > 1e-3
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.std()) + 1e-6)


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("highres-net", {"size": "small"}, (5, 3, 16, 24)),
        ("highres-net", {"size": "full"}, (8, 3, 8, 12)),
        ("dual", {"size": "small", "backbone": "resnet101"}, (1, 4, 32, 64)),
        ("dbpn-segnet", {"size": "small"}, (1, 3, 16, 24)),
        ("dbpn-segnet", {"size": "full"}, (1, 3, 8, 16)),
    ],
)
def test_other_plain_networks_are_the_same_too(name, options, shape):
    torch.manual_seed(0)
    # In float32 two pixels may change places as the greatest of four, and all around them differs.
    model = build_model(name, options).eval().double()
    draw_norms(model)
    plain = plain_networks.load(name, model.state_dict()).double()
    reflectance = 0.4 * torch.rand(shape, dtype=torch.float64)
    clear = torch.ones(1, shape[0], *shape[2:], dtype=torch.bool)
    with torch.inference_mode():
        found = plain(reflectance)
        outputs = model.compute(reflectance[None], clear[..., 0, 0], clear)
    wanted = outputs["logits" if model.spec.legend else "image"].double()
    assert wanted.std() > 1e-3
    assert torch.allclose(found, wanted, rtol=0, atol=1e-4 * float(wanted.std()))


@pytest.mark.parametrize("name", ["highres-net", "dbpn-segnet"])
def test_both_predict_the_same_square(name, tmp_path):
    """These networks are exact, so that windows of any side give the same pixels."""
    case = prediction.Case(name, 3 if name == "highres-net" else 1, {"size": "small"}, 32)
    np.save(tmp_path / "bigmap.npy", prediction.prepare_bigmap(case)(32)())
    np.save(tmp_path / "by_hand.npy", prediction.prepare_by_hand(case)(16)())
    found = np.load(tmp_path / "bigmap.npy")
    assert found.shape[-1] == 32 * case.build().spec.upscale
    assert len(np.unique(found)) > 1
    assert prediction.compare(tmp_path) > 0.999


class StandIn:
    """Maps squares of one second, in so many bytes for a pixel with its overlap."""

    def __init__(self, depth, pixel_bytes):
        self.depth, self.pixel_bytes = depth, pixel_bytes

    def map_square(self, side_px):
        window_px = (side_px + 2 * self.depth) ** 2
        return {"core_s": 1.0, "peak_bytes": self.pixel_bytes * window_px}


@pytest.mark.parametrize(
    ("depth", "pixel_bytes", "tried"),
    [
        (24, 1, [32, 64, 128, 256]),  # then as large as a cell
        (7, 1, [32, 64, 128]),  # 1.48 pixels for each, 1.23, 1.11, and 1.06 at 256 px
        (24, 2000, [32, 64]),  # 25 MB, and 62 MB at 128 px
    ],
)
def test_chunks_are_tried_while_they_save_pixels_and_fit(depth, pixel_bytes, tried, monkeypatch):
    memory = SimpleNamespace(available=50e6)
    monkeypatch.setattr(prediction.psutil, "virtual_memory", lambda: memory)
    case = prediction.Case("any", 1, {}, cell_px=256)
    found = prediction.time_chunks(case, StandIn(depth, pixel_bytes), 64, depth)
    assert found == {side: 1 / side**2 for side in tried}


def test_a_prediction_is_described_by_processor_time_of_pixels_that_are_kept():
    ours, theirs = (
        [{"core_s": s, "seconds": s / 2, "user_s": 0.9 * s, "system_s": 0.1 * s} for s in values]
        for values in ([2.0, 4.0, 3.0], [6.0, 8.0, 9.0])
    )
    text = prediction.describe_case(
        {
            "title": "made up",
            "core_px": 128,
            "chunk_px": 256,
            "tried": [64, 128, 256],
            "computed": {"bigmap": 5.0625, "by_hand": 2.64},
            "runs": {"bigmap": ours, "by_hand": theirs},
            "share_of_equal_values": 0.5,
        }
    )
    assert "| bigmap | 128 px | 5.06 | 3.00 (2.00 to 4.00) | 1.50 (1.00 to 2.00) | 10.0% |" in text
    assert "takes 3.00 (2.00 to 3.00) times the processor time" in text
    assert "Equal values: 50.000%" in text
