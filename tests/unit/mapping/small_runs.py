"""Runs of a few blocks that need no cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigmap.clusters.driving import ENDS_ALL, Outcome, Policy, Task, Work
from bigmap.errors import BigmapError
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


def do_here(
    client: None,
    work: Work[Any],
    tasks: Iterable[Task[Any]],
    *,
    policy: Policy,
    note: Callable[[str], None],
    watch: Callable[[], None],
) -> Iterator[Outcome[Any, Any]]:
    """Stand in for :func:`bigmap.clusters.driving.drive`: one attempt at each task, right here."""
    for task in tasks:
        try:
            outcome = Outcome(task.item, 1, None, work.run(task.payload, note))
        except ENDS_ALL:
            raise
        except BigmapError as error:
            outcome = Outcome(task.item, policy.attempts, error)
        yield outcome
        watch()


def map_here(client: None, do: Callable[[Any], Any], items: Iterable[Any], **_: Any) -> list[Any]:
    """Stand in for :func:`bigmap.clusters.driving.map_on`."""
    return [do(item) for item in items]
