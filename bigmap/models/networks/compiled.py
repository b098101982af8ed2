"""Loops over pixels that do in the processor's first caches what tensors would do in memory.

Loops over lanes, pixels side by side, become vector instructions;
there is always a whole number of vectors, so each pixel is computed by the same instructions
wherever it lies.
"""

from __future__ import annotations

import numpy as np

from bigmap.compiling import compile_loop
from bigmap.models.networks.loops import SLOPE

LANES = 128
"""Pixels at once: with 16 channels of 12 dates 98 KB, well within a second cache."""
_F = np.float32
_compile = compile_loop(joins_products=True)
_SLOPE = _F(SLOPE)
_LOG2_E = _F(1 / np.log(2))
_LEAST_POWER = _F(-126)
_EXPONENT_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)
_POWER_OF_TWO = tuple(map(_F, (
    0.9999998983500237, 0.6931544896632368, 0.24014181820147967, 0.0558603370770161,
    0.008949590423711129, 0.0018937540580168388,
)))  # fmt: skip
"""2 ** r for r in 0..1 to 1.8e-7: the polynomial through the Chebyshev nodes."""


@_compile
def attend(pixels, look, look_bias, bring, bring_bias, skip, slope, first, last):
    """Let the dates of each pixel look at each other, in place.

    With x the leaky ReLU of a pixel's dates, each date becomes leaky(bring (softmax(x . y) x) +
    bring_bias + skip x), where y = look x + look_bias.

    Parameters
    ----------
    pixels
        float32, (time, pixel, channel).
    look, bring
        float32, (channel, channel).
    look_bias, bring_bias, skip
        float32, (channel,).
    slope
        float32: of the last leaky ReLU; 1 leaves it out.
    first, last
        Which pixels; others stay as they are.
    """
    dates, _, channels = pixels.shape
    seen = np.zeros((dates, channels, LANES), np.float32)
    wanted = np.empty((channels, LANES), np.float32)
    weight = np.empty((dates, LANES), np.float32)
    most = np.empty(LANES, np.float32)
    total = np.empty(LANES, np.float32)
    power_bits = np.empty(LANES, np.int32)
    power = power_bits.view(np.float32)
    mixed = np.empty((channels, LANES), np.float32)
    made = np.empty((channels, LANES), np.float32)
    for start in range(first, last, LANES):
        count = min(LANES, last - start)
        for date in range(dates):
            for lane in range(count):
                for channel in range(channels):
                    value = pixels[date, start + lane, channel]
                    seen[date, channel, lane] = max(value, value * _SLOPE)
        for date in range(dates):
            _project(seen[date], look, look_bias, wanted)
            for other in range(0, dates - 1, 2):
                _multiply(wanted, seen[other], seen[other + 1], weight[other], weight[other + 1])
            if dates % 2:
                _multiply(wanted, seen[-1], seen[-1], weight[-1], weight[-1])
            for lane in range(LANES):
                most[lane] = weight[0, lane]
                total[lane] = _F(0)
            for other in range(1, dates):
                for lane in range(LANES):
                    most[lane] = max(most[lane], weight[other, lane])
            for other in range(dates):
                for lane in range(LANES):
                    octaves = max((weight[other, lane] - most[lane]) * _LOG2_E, _LEAST_POWER)
                    whole = np.floor(octaves)
                    rest = octaves - whole
                    power_bits[lane] = (np.int32(whole) + _EXPONENT_BIAS) << _MANTISSA_BITS
                    value = _POWER_OF_TWO[5]
                    value = value * rest + _POWER_OF_TWO[4]
                    value = value * rest + _POWER_OF_TWO[3]
                    value = value * rest + _POWER_OF_TWO[2]
                    value = value * rest + _POWER_OF_TWO[1]
                    weight[other, lane] = value * rest + _POWER_OF_TWO[0]
                for lane in range(LANES):
                    value = weight[other, lane] * power[lane]
                    weight[other, lane] = value
                    total[lane] += value
            for lane in range(LANES):
                total[lane] = _F(1) / total[lane]
            _mix(weight, seen, mixed)
            for channel in range(channels):
                for lane in range(LANES):
                    mixed[channel, lane] *= total[lane]
            _project(mixed, bring, bring_bias, made)
            for channel in range(channels):
                share = skip[channel]
                for lane in range(LANES):
                    value = made[channel, lane] + share * seen[date, channel, lane]
                    made[channel, lane] = max(value, value * slope)
            for lane in range(count):
                for channel in range(channels):
                    pixels[date, start + lane, channel] = made[channel, lane]


@_compile
def add_gated(features, change, gate, first, last):
    """Set change to features + gate * change.

    Parameters
    ----------
    features, change
        float32, (time, pixel, channel).
    gate
        float32, (time, channel).
    first, last
        Which pixels.
    """
    dates, _, channels = features.shape
    side_by_side = np.empty(LANES * channels, np.float32)
    for date in range(dates):
        for lane in range(LANES):
            side_by_side[lane * channels : (lane + 1) * channels] = gate[date]
        for start in range(first, last, LANES):
            stop = min(start + LANES, last)
            old = features[date, start:stop].reshape(-1)
            new = change[date, start:stop].reshape(-1)
            for k in range(len(old)):
                new[k] = old[k] + side_by_side[k] * new[k]


@_compile
def filter_dates(features, filters, out, first, last):
    """Filter each date with its own kernel, beyond the edge with zeros, and add the dates up.

    Parameters
    ----------
    features
        float32, (time, y, x, channel).
    filters
        float32, (time, 5, 5).
    out
        float32, (y, x, channel).
    first, last
        Which rows.
    """
    dates, height, width, channels = features.shape
    size = width * channels
    row = np.zeros(size + 4 * channels, np.float32)
    total = np.empty(size, np.float32)
    # Parts of their own: an index that might be negative, for all the compiler knows, makes a loop
    # of single steps.
    first_row, second_row, third_row = row[:size], row[channels:], row[2 * channels :]
    fourth_row, fifth_row = row[3 * channels :], row[4 * channels :]
    for y in range(first, last):
        total[:] = _F(0)
        for date in range(dates):
            for tap in range(max(0, 2 - y), min(5, height + 2 - y)):
                row[2 * channels : 2 * channels + size] = features[date, y + tap - 2].reshape(-1)
                a, b, c, d, e = filters[date, tap]
                for k in range(size):
                    total[k] += (
                        a * first_row[k] + b * second_row[k] + c * third_row[k]
                        + d * fourth_row[k] + e * fifth_row[k]
                    )  # fmt: skip
        out[y] = total.reshape(width, channels)


@_compile
def add_enlarged(total, taps, scale, first_coarse, first, last):
    """Add a 3 x 3 convolution of an image that is enlarged bilinearly, without enlarging it.

    Products with the weights are made before, of fewer pixels, and are what is enlarged: first
    along y, with the rows of the kernel added up, then along x.

    Parameters
    ----------
    total
        float32, (y, x, channel), which is added to; zeros lie beyond its edge.
    taps
        float32, (coarse y, coarse x, 9 * channel): for each pixel the products with each weight
        of the kernel, rows first.
    scale
        How many times the image is enlarged.
    first_coarse
        Row of the coarse image that ``taps`` begins with.
    first, last
        Which rows of ``total``.
    """
    height, width, channels = total.shape
    coarse_rows, coarse_width = height // scale, taps.shape[1]
    size = 3 * channels
    by_row = taps.reshape(len(taps), coarse_width, 3, size)
    rows = np.empty((coarse_width, size), np.float32)
    by_column = rows.reshape(coarse_width, 3, channels)
    for y in range(first, last):
        rows[:] = _F(0)
        for tap in range(max(0, 1 - y), min(3, height + 1 - y)):
            low, high, share = _between(y + tap - 1, scale, coarse_rows)
            rest = _F(1) - share
            low, high = low - first_coarse, high - first_coarse
            for x in range(coarse_width):
                for k in range(size):
                    rows[x, k] += rest * by_row[low, x, tap, k] + share * by_row[high, x, tap, k]
        for x in range(width):
            for tap in range(max(0, 1 - x), min(3, width + 1 - x)):
                low, high, share = _between(x + tap - 1, scale, coarse_width)
                rest = _F(1) - share
                for k in range(channels):
                    total[y, x, k] += (
                        rest * by_column[low, tap, k] + share * by_column[high, tap, k]
                    )


@_compile
def _between(place, scale, count):
    """Return the coarse pixels around the centre of a fine one, and the share of the second."""
    centre = max((_F(place) + _F(0.5)) / _F(scale) - _F(0.5), _F(0))
    low = int(centre)
    return low, min(low + 1, count - 1), centre - _F(low)


@_compile
def _project(values, matrix, bias, out):
    """Set out[c] = bias[c] + sum over k of matrix[c, k] * values[k], for lanes side by side."""
    rows, columns = matrix.shape
    for row in range(0, rows, 2):
        other = min(row + 1, rows - 1)  # of an odd number the last one twice
        for lane in range(LANES):
            out[row, lane] = bias[row]
            out[other, lane] = bias[other]
        for column in range(0, columns - 3, 4):
            a, b = matrix[row, column], matrix[row, column + 1]
            c, d = matrix[row, column + 2], matrix[row, column + 3]
            e, f = matrix[other, column], matrix[other, column + 1]
            g, h = matrix[other, column + 2], matrix[other, column + 3]
            for lane in range(LANES):
                p, q = values[column, lane], values[column + 1, lane]
                r, s = values[column + 2, lane], values[column + 3, lane]
                one = out[row, lane] + (a * p + b * q + c * r + d * s)
                two = out[other, lane] + (e * p + f * q + g * r + h * s)
                out[row, lane] = one
                out[other, lane] = two
        for column in range(columns - columns % 4, columns):
            a, e = matrix[row, column], matrix[other, column]
            for lane in range(LANES):
                one = out[row, lane] + a * values[column, lane]
                two = out[other, lane] + e * values[column, lane]
                out[row, lane] = one
                out[other, lane] = two


@_compile
def _multiply(some, others, more, out, more_out):
    """Set outputs to the sums over k of some[k] * others[k] and some[k] * more[k]."""
    channels = len(some)
    for lane in range(LANES):
        out[lane] = _F(0)
        more_out[lane] = _F(0)
    for k in range(0, channels - 3, 4):
        for lane in range(LANES):
            a, b, c, d = some[k, lane], some[k + 1, lane], some[k + 2, lane], some[k + 3, lane]
            one = out[lane] + (
                a * others[k, lane] + b * others[k + 1, lane]
                + c * others[k + 2, lane] + d * others[k + 3, lane]
            )  # fmt: skip
            two = more_out[lane] + (
                a * more[k, lane] + b * more[k + 1, lane]
                + c * more[k + 2, lane] + d * more[k + 3, lane]
            )  # fmt: skip
            out[lane] = one
            more_out[lane] = two
    for k in range(channels - channels % 4, channels):
        for lane in range(LANES):
            one = out[lane] + some[k, lane] * others[k, lane]
            two = more_out[lane] + some[k, lane] * more[k, lane]
            out[lane] = one
            more_out[lane] = two


@_compile
def _mix(weight, seen, out):
    """Set out[c] to the sum over dates of weight[date] * seen[date, c], for lanes side by side."""
    dates, channels, _ = seen.shape
    for channel in range(0, channels, 2):
        other = min(channel + 1, channels - 1)  # of an odd number the last one twice
        for lane in range(LANES):
            out[channel, lane] = _F(0)
            out[other, lane] = _F(0)
        for date in range(0, dates - 3, 4):
            for lane in range(LANES):
                a, b = weight[date, lane], weight[date + 1, lane]
                c, d = weight[date + 2, lane], weight[date + 3, lane]
                one = out[channel, lane] + (
                    a * seen[date, channel, lane] + b * seen[date + 1, channel, lane]
                    + c * seen[date + 2, channel, lane] + d * seen[date + 3, channel, lane]
                )  # fmt: skip
                two = out[other, lane] + (
                    a * seen[date, other, lane] + b * seen[date + 1, other, lane]
                    + c * seen[date + 2, other, lane] + d * seen[date + 3, other, lane]
                )  # fmt: skip
                out[channel, lane] = one
                out[other, lane] = two
        for date in range(dates - dates % 4, dates):
            for lane in range(LANES):
                one = out[channel, lane] + weight[date, lane] * seen[date, channel, lane]
                two = out[other, lane] + weight[date, lane] * seen[date, other, lane]
                out[channel, lane] = one
                out[other, lane] = two
