import numpy as np
import pytest

from bigmap.quality import DateRule, MaskRule, choose_dates, mosaic_first, read_mask

SCL = MaskRule("scl", "scl", clear_values=(4, 5))


def test_scl_classes_are_clear_or_spoilt_and_zero_is_no_data():
    clear, has_data = read_mask(np.array([[0, 4, 9], [5, 3, 12]], np.uint8), SCL)
    assert clear.tolist() == [[False, True, False], [True, False, False]]
    assert has_data.tolist() == [[False, True, True], [True, True, True]]


def test_binary_mask_knows_clear_zero_from_fill():
    rule = MaskRule("binary", "clm", clear_values=(0,))
    clear, has_data = read_mask(np.array([[0, 1, 255]], np.uint8), rule)
    assert clear.tolist() == [[True, False, False]]
    assert has_data.tolist() == [[True, True, False]]


def test_probability_is_clear_up_to_its_limit():
    rule = MaskRule("probability", "cloud", max_percent=40)
    clear, has_data = read_mask(np.array([[0, 40, 41, 255]], np.uint8), rule)
    assert clear.tolist() == [[True, True, False, False]]
    assert has_data.tolist() == [[True, True, True, False]]


def test_dilation_grows_clouds_but_not_missing_data():
    values = np.full((7, 7), 4, np.uint8)
    values[3, 3] = 9
    values[:, 0] = 0
    clear, has_data = read_mask(values, MaskRule("scl", "scl", clear_values=(4,), dilate_px=1))
    assert not clear[2:5, 2:5].any()
    assert clear[:, 1].all()
    assert not has_data[:, 0].any()
    assert clear.sum() == 7 * 6 - 9


def test_dilation_stays_within_each_item():
    values = np.full((2, 5, 5), 4, np.uint8)
    values[0, 2, 2] = 9
    clear, _ = read_mask(values, MaskRule("scl", "scl", clear_values=(4,), dilate_px=2))
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
