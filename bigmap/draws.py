"""Draws that are functions of a seed and a place: no state, the same in every process and window.

Splits of users' labels, the order of chips and the simulated world hang on them. So their values
are part of what bigmap promises: they never change, and tests hold some of them.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]

_MULTIPLIERS = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))
_STEP = np.uint64(0x9E3779B97F4A7C15)


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose, independent of those for others."""
    text = ":".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def hash_ints(seed: int, *values: npt.ArrayLike) -> U64:
    """Hash integers element by element to 64 evenly spread bits.

    Every value passes through the finaliser of MurmurHash3 (A. Appleby, public domain).

    Parameters
    ----------
    seed
        From :func:`derive_seed`.
    values
        int arrays that broadcast together.

    Returns
    -------
    numpy.ndarray
        uint64, at least one-dimensional.
    """
    state: U64 = np.array([seed], dtype=np.uint64)
    for value in values:
        number = np.atleast_1d(np.asarray(value, dtype=np.int64)).view(np.uint64)
        state = state ^ (number + _STEP)
        for multiplier in _MULTIPLIERS:
            state = (state ^ (state >> np.uint64(33))) * multiplier
        state = state ^ (state >> np.uint64(33))
    return state


def to_uniform(bits: U64, *, draw: int = 0) -> F64:
    """Turn hashes into numbers in [0, 1); each ``draw`` of one hash is independent."""
    if draw:
        bits = hash_ints(draw, bits.view(np.int64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
