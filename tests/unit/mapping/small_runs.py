"""A run of a few blocks that no cluster is needed for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bigmap.lease import Lease
from bigmap.mapping.plans import Plan
from bigmap.mapping.run_folder import RunFolder
from bigmap.mapping.store.template import complete_map


def start_run(plan: Plan, folder: Path) -> tuple[Plan, RunFolder, Lease]:
    """Begin a run and return its plan, its folder and its lease."""
    output = str(folder / "map.zarr")
    purpose = replace(plan.purpose, path=output)
    plan = replace(plan, purpose=purpose, parts=(replace(plan.only, purpose=purpose),))
    run = RunFolder(output)
    lease = Lease(run.path)
    lease.acquire()
    run.create(plan, lease)
    complete_map(output, plan.only.template())
    return plan, run, lease
