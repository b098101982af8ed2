import datetime as dt
import itertools

import numpy as np
import pytest

from bigmap.scenes.radiometry import (
    OFFSET_DAY,
    OffsetEvidence,
    check_scaling,
    decide_dn_shift,
    parse_baseline,
    to_canonical,
    to_reflectance,
)

FLAGS = (True, False, None)
OLD, NEW = "03.01", "04.00"
BEFORE, AFTER = OFFSET_DAY - dt.timedelta(seconds=1), OFFSET_DAY

# (flag, baseline, offset): dn_shift with `flag`, dn_shift with `baseline`, contradiction
TABLE = {
    (True, NEW, -0.1): (1000, 1000, False),
    (True, NEW, 0.0): (1000, 1000, False),
    (True, NEW, None): (1000, 1000, False),
    (True, OLD, -0.1): (1000, 1000, True),
    (True, OLD, 0.0): (1000, 1000, True),
    (True, OLD, None): (1000, 1000, True),
    (True, None, -0.1): (1000, 1000, False),
    (True, None, 0.0): (1000, 1000, False),
    (True, None, None): (1000, 1000, False),
    (False, NEW, -0.1): (0, 1000, True),
    (False, NEW, 0.0): (0, 1000, True),
    (False, NEW, None): (0, 1000, True),
    (False, OLD, -0.1): (1000, 1000, True),
    (False, OLD, 0.0): (1000, 1000, False),
    (False, OLD, None): (1000, 1000, False),
    (False, None, -0.1): (0, 0, False),
    (False, None, 0.0): (1000, 1000, False),
    (None, NEW, -0.1): (0, 0, False),
    (None, NEW, 0.0): (1000, 0, True),
    (None, NEW, None): (0, 0, False),
    (None, OLD, -0.1): (0, 1000, True),
    (None, OLD, 0.0): (1000, 1000, False),
    (None, OLD, None): (1000, 1000, False),
    (None, None, -0.1): (0, 0, False),
    (None, None, 0.0): (1000, 1000, False),
}


def test_the_table_holds_every_combination():
    every = set(itertools.product(FLAGS, (NEW, OLD, None), (-0.1, 0.0, None)))
    assert every - set(TABLE) == {(False, None, None), (None, None, None)}


@pytest.mark.parametrize(("claims", "expected"), TABLE.items(), ids=str)
@pytest.mark.parametrize("processed", [BEFORE, AFTER, None], ids=["before", "after", "unknown"])
def test_every_combination_of_flag_baseline_and_offset(claims, expected, processed):
    evidence = OffsetEvidence(*claims, processed)
    by_flag, by_baseline, contradiction = expected
    for harmonise, shift in (("flag", by_flag), ("baseline", by_baseline)):
        decision = decide_dn_shift(evidence, harmonise)
        assert (decision.dn_shift, decision.contradiction) == (shift, contradiction)
    for harmonise in ("drop", "refuse"):
        decision = decide_dn_shift(evidence, harmonise)
        assert decision.dn_shift == (None if contradiction else by_flag)
        assert decision.contradiction == contradiction


@pytest.mark.parametrize("flag", [False, None])
@pytest.mark.parametrize(("processed", "shift"), [(BEFORE, 1000), (AFTER, 0), (None, 1000)])
def test_without_any_statement_the_date_decides_and_the_reason_says_so(flag, processed, shift):
    decision = decide_dn_shift(OffsetEvidence(flag, None, None, processed), "refuse")
    assert decision.dn_shift == shift
    assert "assumed" in decision.reason


def test_a_contradiction_names_all_claims():
    decision = decide_dn_shift(OffsetEvidence(False, "04.00", -0.1, None), "refuse")
    assert decision.reason == "flag false against baseline 04.00 against raster offset -0.1"


@pytest.mark.parametrize(
    ("text", "version"),
    [("04.00", (4, 0)), ("5.9", (5, 9)), ("00.01", (0, 1)), ("02.14", (2, 14)), (None, None),
     ("", None), ("new", None), ("04.00.1", None)],
)  # fmt: skip
def test_baselines_are_read_as_numbers(text, version):
    assert parse_baseline(text) == version


@pytest.mark.parametrize(
    ("scale", "offset", "wrong"),
    [(1e-4, -0.1, False), (1e-4, 0, False), (None, None, False), (0.0001, None, False),
     (2.75e-05, -0.2, True), (1.0, None, True), (1e-4, -1000, True), (1e-4, 0.1, True)],
)  # fmt: skip
def test_other_scales_and_offsets_are_refused(scale, offset, wrong):
    assert (check_scaling(scale, offset) is not None) == wrong


def test_nodata_stays_and_valid_pixels_saturate():
    dn = np.array([[0, 1, 999], [64535, 64536, 65535]], dtype=np.uint16)
    shifted = to_canonical(dn, 1000)
    assert shifted.dtype == np.uint16
    assert shifted.tolist() == [[0, 1001, 1999], [65535, 65535, 65535]]
    assert np.array_equal(to_canonical(dn, 0), dn)


def test_no_valid_pixel_of_any_value_becomes_nodata():
    every = np.arange(65536, dtype=np.uint16)
    for shift in (0, 1000):
        assert np.array_equal(to_canonical(every, shift) == 0, every == 0)
    assert np.array_equal(to_canonical(every, 1000)[1:], np.minimum(every[1:] + 1000.0, 65535))


def test_both_conventions_give_one_reflectance():
    reflectance = np.array([0.0001, 0.05, 0.3, 1.2])
    without = np.round(reflectance * 1e4).astype(np.uint16)
    with_offset = np.round((reflectance + 0.1) * 1e4).astype(np.uint16)
    assert np.array_equal(to_canonical(without, 1000), to_canonical(with_offset, 0))
    assert np.allclose(to_reflectance(with_offset), reflectance, atol=1e-6)


def test_reflectance_is_float32_and_nan_without_data():
    values = to_reflectance(np.array([0, 1000, 11000], dtype=np.uint16))
    assert values.dtype == np.float32
    assert np.isnan(values[0])
    assert values[1:] == pytest.approx([0, 1], abs=1e-6)


def test_dask_arrays_stay_lazy():
    array = pytest.importorskip("dask.array")
    dn = array.from_array(np.array([0, 5000], dtype=np.uint16))
    shifted = to_canonical(dn, 1000)
    assert isinstance(shifted, array.Array)
    assert shifted.compute().tolist() == [0, 6000]
    assert to_reflectance(shifted).dtype == np.float32


@pytest.mark.parametrize("shift", [-1000, 1, 2000])
def test_other_shifts_are_refused(shift):
    with pytest.raises(ValueError, match="dn_shift"):
        to_canonical(np.zeros(1, dtype=np.uint16), shift)


def test_scaled_values_are_refused():
    with pytest.raises(TypeError, match="uint16"):
        to_canonical(np.zeros(1, dtype=np.float32), 1000)
