"""Loops over pixels that Numba compiles for the processor that they run on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba


def compile_loop(*, joins_products: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that compiles a loop which holds no lock of the interpreter.

    What was compiled is kept on disk, where a folder for it can be written.

    Parameters
    ----------
    joins_products
        Whether a product and a sum may become one instruction, which rounds once: faster, and other
        bits than NumPy's.
    """
    fastmath = {"contract"} if joins_products else False
    decorate = functools.partial(numba.njit, nogil=True, fastmath=fastmath, error_model="numpy")

    def compile_it(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            compiled: Callable[..., Any] = decorate(cache=True)(function)
        except RuntimeError:  # nowhere to keep it
            compiled = decorate()(function)
        return compiled

    return compile_it
