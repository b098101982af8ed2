"""What one pass of a model takes, memory and operations, without computing it.

The model runs on fake tensors, which have shapes and lifetimes but no values, so that a pass which
would take minutes takes a second. The most bytes alive at once agree with what PyTorch's allocator
hands out in a real pass to some percent.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bigmap.models.base import MapModel
from bigmap.models.devices import has_bfloat16

SMALL_PX = 32
"""Side of the window that a model sees for real where fake tensors do not do."""

_KNOWN: dict[tuple[Any, ...], int] = {}


@dataclass(frozen=True)
class PassSize:
    """Shape of what a model sees at once."""

    windows: int
    dates: int
    side_px: int
    """Of a window, its halo included, in input pixels."""
    precision: Literal["float32", "bfloat16"] = "float32"


def count_pass_bytes(model: MapModel, size: PassSize) -> int:
    """Return the most bytes of tensors alive at once in a pass on the CPU, without the weights.

    Where bfloat16 is emulated, float32 copies of its tensors come on top, which no tensor shows.

    Parameters
    ----------
    model
        As it predicts, see :func:`bigmap.mapping.engine.optimise`.
    size
        What it sees at once.
    """
    key = (type(model), model.spec, tuple(model.options.items()), size)
    if key not in _KNOWN:
        try:
            _KNOWN[key] = _run(model, size, is_fake=True)
        except RuntimeError:
            # Where its steps depend on values, a small real window tells, in proportion.
            side_px = max(SMALL_PX, 2 * model.spec.multiple_px)
            small = PassSize(size.windows, size.dates, side_px, size.precision)
            share = (size.side_px / side_px) ** 2
            _KNOWN[key] = round(_run(model, small, is_fake=False) * share)
    if size.precision == "bfloat16" and not has_bfloat16():
        return _KNOWN[key] + count_pass_bytes(model, replace(size, precision="float32"))
    return _KNOWN[key]


@torch.no_grad()
def _run(model: MapModel, size: PassSize, *, is_fake: bool) -> int:
    lead, plane = (size.windows, size.dates), (size.side_px, size.side_px)
    shape = (*lead, len(model.spec.bands), *plane)
    dates = torch.ones(lead, dtype=torch.bool)
    clear = torch.ones(*lead, *plane, dtype=torch.bool)
    clear[..., 0, 0] = False  # Some models fill pixels that are clear on no date.
    weights: Mapping[str, Tensor] = {}
    if is_fake:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with mode:
            reflectance = torch.empty(shape)
        named = [*model.named_parameters(), *model.named_buffers()]
        weights = {name: mode.from_tensor(each) for name, each in named}
    else:
        reflectance = torch.zeros(shape)
    live = _LiveBytes()
    with torch.autocast("cpu", torch.bfloat16, enabled=size.precision == "bfloat16"), live:
        torch.func.functional_call(model, dict(weights), (reflectance, dates, clear))
    return live.most + reflectance.untyped_storage().nbytes()


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self.now = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count what it made."""
        del types
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size_bytes = storage._cdata, storage.nbytes()  # noqa: SLF001 - its identity
        if key in self.alive:
            return
        self.alive.add(key)
        self.now += size_bytes
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, size_bytes)

    def _forget(self, key: int, size_bytes: int) -> None:
        self.alive.discard(key)
        self.now -= size_bytes
