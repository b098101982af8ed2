"""What all tests share: the real scenes beside the project, and one thread per test process."""

from __future__ import annotations

import os
from pathlib import Path

# Test processes run side by side, so that more threads in each would only fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real scenes and catalogue answers, which the repository does not hold."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real scenes are not here: no folder shared/data beside the project")
    return folder
