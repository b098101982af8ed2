"""The loop of resampling: neighbours of each place weighed, in one fixed order, in float32."""

from __future__ import annotations

import numpy as np

from bigmap.compiling import compile_loop

_F = np.float32


@compile_loop(joins_products=False)
def weigh(pixels, nodata, first, row_weights, col_weights, total, width, out, is_complete):
    """Weigh the neighbours of places; of missing ones the others make up the weight.

    Parameters
    ----------
    pixels
        Of the file, (pixel,), any dtype.
    nodata
        Value of missing pixels.
    first
        int32, (y, x): flat index of the first neighbour.
    row_weights, col_weights
        Tuples of float32, (y, x): weight of each neighbour along an axis.
    total
        float32, (y, x): sum of the weights where kernels are stretched; or of no element.
    width
        Of the file's pixels, which neighbours of the next row lie behind.
    out
        float32, (y, x): the weighed mean; NaN where there is no neighbour.
    is_complete
        bool, (y, x): whether no neighbour was missing.
    """
    height, length = first.shape
    last = len(pixels) - 1
    is_stretched = total.size > 0
    for y in range(height):
        for x in range(length):
            result, present, missing = _F(0), _F(0), _F(0)
            for row in range(len(row_weights)):
                line, line_present, line_missing = _F(0), _F(0), _F(0)
                for col in range(len(col_weights)):
                    place = min(max(first[y, x] + row * width + col, 0), last)
                    weight, value = col_weights[col][y, x], pixels[place]
                    if value == nodata:
                        line_missing += abs(weight)
                    else:
                        line += _F(value) * weight
                        line_present += weight
                weight = row_weights[row][y, x]
                result += line * weight
                present += line_present * weight
                missing += line_missing * abs(weight)
            is_complete[y, x] = missing == 0
            if missing != 0:
                result /= present
            elif is_stretched:
                result /= total[y, x]
            out[y, x] = result
