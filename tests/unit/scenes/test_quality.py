import dataclasses

import numpy as np
import pytest

from bigmap.scenes.quality import (
    CLEAR,
    NO_DATA,
    SPOILT,
    DateRule,
    MaskRule,
    choose_dates,
    classify,
    mosaic_first,
    read_mask,
)

SCL = MaskRule("scl", "scl", clear_values=(4, 5))


def read(values, rule, *, dtype=np.uint8, has_data=None):
    """Read mask values as the reader does: pixel by pixel, then with their neighbours."""
    states = classify(np.array(values, dtype), has_data, rule)
    assert states.dtype == np.uint8
    return read_mask(states, rule)


def test_scl_classes_are_clear_or_spoilt_and_zero_is_no_data():
    clear, has_data = read([[0, 4, 9], [5, 3, 12]], SCL)
    assert clear.tolist() == [[False, True, False], [True, False, False]]
    assert has_data.tolist() == [[False, True, True], [True, True, True]]


@pytest.mark.parametrize(
    ("nodata", "clear_value", "states"),
    [
        (255, 0, [CLEAR, SPOILT, NO_DATA]),
        (None, 0, [CLEAR, SPOILT, SPOILT]),
        (None, 255, [SPOILT, SPOILT, CLEAR]),
        (0, 1, [NO_DATA, CLEAR, SPOILT]),
    ],
)
def test_255_of_a_binary_mask_is_what_the_rule_says(nodata, clear_value, states):
    rule = MaskRule("binary", "clm", clear_values=(clear_value,), nodata=nodata)
    assert classify(np.array([0, 1, 255], np.uint8), None, rule).tolist() == states


@pytest.mark.parametrize(
    ("max_value", "dtype", "values", "clear"),
    [
        (None, np.uint8, [0, 40, 41, 100], [True, True, False, False]),
        (None, np.int16, [0, 40, 41, 100], [True, True, False, False]),
        (255, np.uint8, [0, 102, 103, 255], [True, True, False, False]),
        (1, np.float32, [0, 0.4, 0.401, 1], [True, True, False, False]),
        (10_000, np.uint16, [0, 4000, 4001, 10_000], [True, True, False, False]),
    ],
)
def test_probability_is_clear_up_to_its_limit_on_its_own_scale(max_value, dtype, values, clear):
    rule = MaskRule("probability", "cloud", max_percent=40, max_value=max_value)
    got, has_data = read([values], rule, dtype=dtype)
    assert got.tolist() == [clear]
    assert has_data.all()


@pytest.mark.parametrize(
    ("max_value", "dtype", "value"),
    [(None, np.uint8, 255), (None, np.int16, -1), (1, np.float32, 1.5), (255, np.uint16, 256)],
)
def test_what_is_no_probability_is_refused_unless_it_is_no_data(max_value, dtype, value):
    rule = MaskRule("probability", "cloud", max_percent=40, max_value=max_value)
    values = np.array([[0, value]], dtype)
    with pytest.raises(ValueError, match=f"holds {value:g}, but the mask's probabilities are 0 to"):
        classify(values, None, rule)
    assert classify(values, values == 0, rule).tolist() == [[CLEAR, NO_DATA]]
    if value == 255:
        said = dataclasses.replace(rule, nodata=255)
        assert classify(values, None, said).tolist() == [[CLEAR, NO_DATA]]


@pytest.mark.parametrize(
    "rule",
    [SCL, MaskRule("binary", "m", clear_values=(0,), nodata=255), MaskRule("bits", "m", bits=(1,))],
)
def test_bytes_become_the_states_of_wider_integers(rule):
    values = np.random.default_rng(0).integers(0, 256, (40, 40))
    has_data = values % 7 > 0
    for known in (None, has_data):
        ours = classify(values.astype(np.uint8), known, rule)
        assert ours.dtype == np.uint8
        assert np.array_equal(ours, classify(values.astype(np.int16), known, rule))


def test_shares_that_are_nan_are_no_data():
    rule = MaskRule("probability", "cloud", max_percent=40, max_value=1)
    assert classify(np.array([0.1, np.nan]), None, rule).tolist() == [CLEAR, NO_DATA]


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32])
def test_a_bit_that_is_set_spoils_a_pixel(dtype):
    rule = MaskRule("bits", "qa60", bits=(10, 11, 15))
    values = np.array([0, 1 << 10, 1 << 11, 1 << 9, 3 << 10, 1 << 15], np.uint16).astype(dtype)
    states = [CLEAR, SPOILT, SPOILT, CLEAR, SPOILT, SPOILT]
    assert classify(values, None, rule).tolist() == states


def test_dilation_grows_clouds_but_not_missing_data():
    values = np.full((7, 7), 4, np.uint8)
    values[3, 3] = 9
    values[:, 0] = 0
    clear, has_data = read(values, MaskRule("scl", "scl", clear_values=(4,), dilate_px=1))
    assert not clear[2:5, 2:5].any()
    assert clear[:, 1].all()
    assert not has_data[:, 0].any()
    assert clear.sum() == 7 * 6 - 9


def test_dilation_stays_within_each_item():
    values = np.full((2, 5, 5), 4, np.uint8)
    values[0, 2, 2] = 9
    clear, _ = read(values, MaskRule("scl", "scl", clear_values=(4,), dilate_px=2))
    assert not clear[0].any()
    assert clear[1].all()


def test_mosaic_takes_the_first_item_with_data():
    has_data = np.array([[[0, 0, 1]], [[0, 1, 1]]], dtype=bool)
    assert mosaic_first(has_data).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    ("percent", "rule", "chosen"),
    [
        ([10, 90, 50, 70], DateRule(2, 25), [1, 3]),
        ([10, 90, 50, 70], DateRule(9, 25), [1, 2, 3]),
        ([50, 50, 50], DateRule(2, 0), [0, 1]),
        ([0, 0.01], DateRule(5, 0), [1]),
        ([20, 24.9], DateRule(5, 25), []),
        ([], DateRule(5, 25), []),
    ],
)
def test_dates_are_chosen_clearest_first_and_kept_in_order_of_time(percent, rule, chosen):
    assert choose_dates(np.array(percent, float), rule) == chosen
