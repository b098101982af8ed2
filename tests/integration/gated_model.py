"""A model whose blocks wait at a gate: small-conv, which a test lets pass one by one.

Tests that interrupt a run need one that surely goes on until they have done so, on a fast machine
as on a slow one. So its blocks wait for tickets, not for a time. The model is registered as a
user's would be, by an entry point of the group ``bigmap.models``: :func:`install_gated_model`
writes the files of an installed package into a folder for PYTHONPATH.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

MODULE = '''
import os
import threading
import time
from pathlib import Path
import torch
from bigmap.models.networks.small_conv import SmallConvModel

class GatedModel(SmallConvModel):
    """small-conv, each batch of windows of which needs a ticket, or an open gate."""

    def __init__(self, *, upscale: int = 2, gate: str = "") -> None:
        super().__init__(upscale=upscale)
        self.gate = Path(gate)

    def forward(self, reflectance, dates, clear):
        if type(reflectance) is torch.Tensor:  # planning passes one without values
            self._wait()
        return super().forward(reflectance, dates, clear)

    def _wait(self):
        job = os.environ.get("SLURM_JOB_ID", "0")
        mark = self.gate / f"waits-{job}-{os.getpid()}-{threading.get_ident()}"
        mark.touch()
        while not (self.gate / "open").exists() and not self._take_ticket():
            time.sleep(0.02)
        mark.unlink()

    def _take_ticket(self):
        for ticket in self.gate.glob("ticket-*"):
            try:
                ticket.unlink()
            except FileNotFoundError:
                continue  # another took it
            return True
        return False
'''


def install_gated_model(folder: Path) -> Path:
    """Write the package ``bigmap-gated`` into a folder and return it."""
    metadata = folder / "bigmap_gated-1.0.dist-info"
    shutil.rmtree(metadata, ignore_errors=True)
    metadata.mkdir(parents=True)
    (folder / "bigmap_gated.py").write_text(MODULE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: bigmap-gated\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[bigmap.models]\ngated = bigmap_gated:GatedModel\n")
    return folder


class Gate:
    """A folder at which the blocks of a run wait; closed at first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.numbers = itertools.count()
        folder.mkdir()

    @property
    def model(self) -> dict:
        """The section ``model`` of a recipe whose blocks wait here."""
        return {"name": "gated", "options": {"upscale": 2, "gate": str(self.folder)}}

    def let(self, count: int) -> None:
        """Let so many batches pass, now or later."""
        for _ in range(count):
            (self.folder / f"ticket-{next(self.numbers)}").touch()

    def open(self) -> None:
        """Let all pass from now on."""
        (self.folder / "open").touch()

    def waiting_pids(self) -> set[int]:
        """Return the processes that wait, or did when they were killed."""
        return {int(mark.name.split("-")[2]) for mark in self.folder.glob("waits-*")}

    def waiting_jobs(self) -> set[str]:
        """Return the SLURM jobs whose workers wait, or did when they were killed."""
        return {mark.name.split("-")[1] for mark in self.folder.glob("waits-*")}
