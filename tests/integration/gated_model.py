"""A model that takes its time: small-conv, with a sleep for each batch of windows.

Tests that must interrupt a run need blocks that last. The model is registered as a user's would
be, by an entry point of the group ``bigmap.models``: :func:`install_slow_model` writes the files of
an installed package into a folder for PYTHONPATH.
"""

from __future__ import annotations

import shutil
from pathlib import Path

MODULE = '''
import time
from bigmap.models.small_conv import SmallConvModel

class SlowModel(SmallConvModel):
    """small-conv, later."""

    def __init__(self, *, upscale: int = 2, seconds: float = 1.0) -> None:
        super().__init__(upscale=upscale)
        self.seconds = seconds

    def forward(self, reflectance, dates, clear):
        time.sleep(self.seconds)
        return super().forward(reflectance, dates, clear)
'''


def install_slow_model(folder: Path) -> Path:
    """Write the package ``bigmap-slow`` into a folder and return it."""
    metadata = folder / "bigmap_slow-1.0.dist-info"
    shutil.rmtree(metadata, ignore_errors=True)
    metadata.mkdir(parents=True)
    (folder / "bigmap_slow.py").write_text(MODULE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: bigmap-slow\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[bigmap.models]\nslow = bigmap_slow:SlowModel\n")
    return folder
