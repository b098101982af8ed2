"""Plan + Dask client -> blocks done, part by part: the one flow of maps and of chips.

A place is taken, blocks are chosen by the ledger, sent, and recorded; what is there at the end is
compared with the ledger. Maps are given overviews, chips are joined
(:mod:`bigmap.learning.samples`).
"""

from __future__ import annotations

import datetime as dt
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, zip_longest
from typing import Any

from distributed import Client

from bigmap.clusters.driving import drive, map_on
from bigmap.clusters.tasks import Policy, Task, Work
from bigmap.errors import LostClusterError, OutputError, ReadError, RunError, StoppedError
from bigmap.grid import ROI
from bigmap.lease import Lease
from bigmap.mapping.blocks import BlockJob, run_block
from bigmap.mapping.engine import limit_threads
from bigmap.mapping.ledger import FAILED, UNREAD, BlockRecord, Ledger, add_km2, list_replaced
from bigmap.mapping.places import Attempt, Taken, take_place
from bigmap.mapping.plans import Part, Plan
from bigmap.mapping.reporting import Reporter, RunSummary, SilentReporter
from bigmap.mapping.reuse import copy_unchanged
from bigmap.mapping.run_folder import PartFolder, RunFolder
from bigmap.mapping.store.overviews import overview_places, write_overview
from bigmap.mapping.store.shards import ShardKey, check_shards
from bigmap.mapping.store.template import MapTemplate, complete_map, create_root
from bigmap.scenes.items import ItemRow, ItemTable
from bigmap.signals import stop_on_signals

FINAL_STATES = ("done", "empty")
REDO_STATES = ("failed", "degraded")
RESUME = "go on with --resume"
LOSS_ADVICE = (
    "raise cluster.memory_gb (or the walltime), or lower grid.block_px, dates.max_per_cell or "
    "inference.batch_windows"
)

BlockTask = Callable[[Any, ROI, Sequence[ItemRow]], BlockRecord]
"""Does one block with the job that all blocks share."""


def run_plan(
    plan: Plan,
    client: Client,
    attempt: Attempt | None = None,
    *,
    reporter: Reporter | None = None,
    task: BlockTask = run_block,
) -> RunSummary:
    """Make a map.

    Parameters
    ----------
    plan
        Its blocks are sent in their order, part by part.
    client
        Of the cluster that works.
    attempt
        How to go about the place of the map; by default it must be free.
    reporter
        Shows progress.
    task
        What a worker does with a block.

    Returns
    -------
    RunSummary
        The sum over the parts; one that the limit or a stop did not reach is not in it.

    Raises
    ------
    OutputError
        If the output is taken, or cannot be resumed.
    LeaseError
        If another driver writes this output, or has taken it over.
    LostClusterError
        If the cluster is lost; the run can be resumed.
    PlanError
        As :meth:`bigmap.mapping.plans.Plan.check_rendered`.
    """
    attempt, reporter = attempt or Attempt(), reporter or SilentReporter()
    plan.check_rendered()
    redo = _split_redo(plan, attempt.redo)
    with take_place(plan, attempt, reporter.note) as taken:
        _complete_stores(plan, attempt, reporter)
        total = RunSummary(planned=0)
        for part in plan.parts:
            if part.name:
                reporter.note(f"{part.name}: {part.area.area_km2:,.0f} km² in {part.lattice.crs}")
            run = PartRun(part, taken, client, reporter)
            left = None if attempt.limit is None else attempt.limit - total.sent
            own = replace(attempt, limit=left, redo=redo[part.name])
            summary = _map_part(run, own, task)
            if summary.planned:
                total = total.add(summary, part.name)
            if summary.stopped:
                break
        return total


def _complete_stores(plan: Plan, attempt: Attempt, reporter: Reporter) -> None:
    """Create the map, or what of its metadata is missing or damaged."""
    for part in plan.parts:
        for key in complete_map(part.store, part.template()):
            if attempt.resume:
                reporter.note(f"{part.store}/{key}: was missing or damaged, and is made anew")
    groups = [part.name for part in plan.parts if part.name]
    if groups:
        create_root(plan.output, plan.parts[0].attributes(), groups)


def _split_redo(plan: Plan, redo: Collection[str] | None) -> dict[str, frozenset[str] | None]:
    """Return which blocks of each part are to be done again; None where nothing was asked for."""
    names = [part.name for part in plan.parts]
    if redo is None:
        return dict.fromkeys(names)
    if names == [""]:
        return {"": frozenset(redo)}
    split: dict[str, set[str]] = {name: set() for name in names}
    for asked in redo:
        name, _, block = asked.rpartition("/")
        if asked in REDO_STATES:
            for own in split.values():
                own.add(asked)
        elif name in split:
            split[name].add(block)
        elif name:
            raise OutputError(f"--redo {asked}: there is no such zone; there are {names}")
        else:
            raise OutputError(f"--redo {asked}: name its zone too, as in {names[0]}/{asked}")
    return {name: frozenset(own) for name, own in split.items()}


def _map_part(run: PartRun, attempt: Attempt, task: BlockTask) -> RunSummary:
    """Map one part: its blocks first, then its overviews."""
    part, folder, lease = run.part, run.folder, run.lease
    todo = run.choose(attempt.redo)
    if attempt.reuse is not None:
        folder.mark_overviews(lease, complete=False)
        copied = run.copy(todo, RunFolder(attempt.reuse))
        todo = [block for block in todo if part.name_block(block) not in copied]
    todo = todo[: attempt.limit]
    if not todo and not run.records:
        return run.summary
    with run.going(todo):
        if todo:
            folder.mark_overviews(lease, complete=False)
        job = part.job(run.taken.folder.path, lease.state.owner)
        run.do(todo, job, task)
        if not folder.has_overviews():
            _write_overviews(run, job)
            folder.mark_overviews(lease, complete=True)
    run.summary.has_overviews = folder.has_overviews()
    run.audit()
    return run.summary


@dataclass
class PartRun:
    """One part of a run: which blocks are to be done, and what becomes of them."""

    part: Part
    taken: Taken
    client: Client
    reporter: Reporter
    objects: str = ""
    """Path or URL below which the objects of records lie; by default the part's store."""
    ledger: Ledger = field(init=False)
    records: Mapping[str, BlockRecord] = field(init=False)
    """What was recorded before, by the name of the block."""
    summary: RunSummary = field(init=False)

    def __post_init__(self) -> None:
        self.objects = self.objects or self.part.store
        self.ledger = self.folder.open_ledger(self.lease)
        self.records = self.ledger.latest()
        self.summary = RunSummary(planned=len(self.records))

    @property
    def folder(self) -> PartFolder:
        """What the run keeps of the part."""
        return self.taken.folder.part(self.part.name)

    @property
    def lease(self) -> Lease:
        """Under which all is written."""
        return self.taken.lease

    def choose(self, redo: Collection[str] | None = None) -> list[ROI]:
        """Return the blocks that are to be done: those still open, or those named."""
        by_name = {self.part.name_block(block): block for block in self.part.blocks}
        if redo is None:
            lost = set(check_shards(self.objects, _shards_of(self.records.values())))
            return [b for name, b in by_name.items() if _is_open(self.records.get(name), lost)]
        unknown = sorted(set(redo) - by_name.keys() - set(REDO_STATES))
        if unknown:
            raise OutputError(
                f"--redo {', '.join(unknown)}: this map has no such block; blocks are named as in "
                f"{next(iter(by_name))}, or give failed or degraded"
            )
        return [
            block
            for name, block in by_name.items()
            if name in redo or (name in self.records and self.records[name].state in redo)
        ]

    def copy(self, blocks: Sequence[ROI], old: RunFolder) -> Collection[str]:
        """Copy blocks of an earlier map and record them; return their names."""
        copied = {}
        for record in copy_unchanged(self.part, blocks, old):
            self.ledger.append(record)
            copied[record.block] = record
        self.ledger.flush()
        self.reporter.note(f"reused {len(copied)} of {len(blocks)} blocks of {old.output}")
        self.records = {**self.records, **copied}
        return copied.keys()

    @contextmanager
    def going(self, todo: Sequence[ROI]) -> Iterator[None]:
        """Tell of the start and the end; a signal ends it in order."""
        names = {self.part.name_block(block) for block in todo}
        self.summary.planned = len(self.records.keys() | names)
        started = time.perf_counter()
        states: Counter[str] = Counter(record.state for record in self.records.values())
        self.reporter.start(self.part, len(todo), states)
        try:
            with stop_on_signals():
                yield
        except StoppedError:
            self.summary.stopped = True
        finally:
            self.ledger.flush()
            self.reporter.finish()
        self.summary.elapsed_s = time.perf_counter() - started

    def do(self, todo: Sequence[ROI], job: Any, task: BlockTask) -> None:
        """Send blocks, wait for them and record what becomes of each."""
        limit_s = self.part.recipe.run.block_timeout_s
        policy = Policy(
            advice=RESUME,
            loss_advice=LOSS_ADVICE,
            timeout_s=limit_s,
            timeout_advice=f"run.block_timeout_s ({limit_s or 0:g} s), so its worker was ended; "
            "raise it if the block is healthy",
        )
        work = Work(_BlockWork(job, task), partial(limit_threads, self.part.sizes.threads))
        outcomes = drive(
            self.client, work, map(self._pack, alternate(todo, self.part.sizes.workers)),
            policy=policy, note=self.reporter.note, watch=self.watch,
        )  # fmt: skip
        try:
            with closing(outcomes):
                for outcome in outcomes:
                    if outcome.error is None:
                        self._record(replace(outcome.take(), attempts=outcome.attempts))
                    else:
                        self._record(self._fail(outcome.item, outcome.error, outcome.attempts))
        except LostClusterError:
            self.lease.check()
            raise

    def watch(self) -> None:
        """Write down what was recorded a while ago; give up where another driver took over."""
        self.ledger.flush_late()
        if self.lease.is_lost:
            self.lease.check()

    def _pack(self, block: ROI) -> Task[ROI]:
        # As bytes, which the scheduler passes on as they are.
        rows = self.part.rows_of(block).to_bytes()
        return Task(block, f"block {self.part.name_block(block)}", (block, rows))

    def _fail(self, block: ROI, error: Exception, attempts: int) -> BlockRecord:
        reason = UNREAD if isinstance(error, ReadError) else FAILED
        return BlockRecord(
            self.part.name_block(block),
            "failed",
            attempts=attempts,
            without_data_km2={reason: self.part.count_km2(block)},
            error=str(error),
            finished=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        )

    def _record(self, record: BlockRecord) -> None:
        record = self.ledger.append(record)
        self.summary.sent += 1
        self.summary.mapped_km2 += record.mapped_km2
        self.summary.seconds.update(record.seconds)
        self.reporter.add(record)

    def audit(self) -> None:
        """Compare what is there with the ledger: every block accounted for, every object there."""
        self.ledger.flush()
        self.records = records = self.ledger.latest()
        summary = self.summary
        summary.states = Counter(record.state for record in records.values())
        summary.failures = tuple(
            (record.block, record.error or "") for record in records.values()
            if record.state == "failed"
        )  # fmt: skip
        summary.whole_mapped_km2, summary.without_data_km2 = add_km2(records.values())
        summary.replaced = list_replaced(records.values())
        summary.missing_shards = tuple(check_shards(self.objects, _shards_of(records.values())))


def alternate(blocks: Sequence[ROI], workers: int) -> list[ROI]:
    """Order blocks so that workers which take turns each go along neighbours.

    These share tiles of files, which a worker then fetches once.
    """
    size = max(1, math.ceil(len(blocks) / workers))
    strips = [blocks[first : first + size] for first in range(0, len(blocks), size)]
    turns = chain.from_iterable(zip_longest(*strips))
    return [block for block in turns if block is not None]


@dataclass(frozen=True)
class _BlockWork:
    """Does a block on a worker."""

    job: Any
    task: BlockTask

    def __call__(self, payload: tuple[ROI, bytes]) -> BlockRecord:
        block, rows = payload
        return self.task(self.job, block, ItemTable.from_bytes(rows))


def _is_open(record: BlockRecord | None, lost: set[str]) -> bool:
    """Tell whether a block is still to be done: without a good record, or without its objects."""
    if record is None or record.state not in FINAL_STATES:
        return True
    return any(key in lost for key, _ in record.shards)


def _shards_of(records: Iterable[BlockRecord]) -> Iterator[ShardKey]:
    return (ShardKey(*shard) for record in records for shard in record.shards)


def _write_overviews(run: PartRun, job: BlockJob) -> None:
    """Halve the map level by level; each task owns whole shards of its level."""
    template = run.part.template()
    for level in range(1, template.overviews + 1):
        places = list(overview_places(template, level))
        run.reporter.note(f"overview {level} of {template.overviews}: {len(places)} shards")
        task = partial(_write_place, job=job, template=template, level=level)
        policy = Policy(advice=RESUME)
        try:
            for _ in map_on(run.client, task, places, policy=policy, watch=run.watch):
                pass
        except LostClusterError:
            run.lease.check()
            raise
        except RunError as error:
            raise OutputError(f"{run.part.store}: overview {level}: {error}") from error


def _write_place(place: ROI, *, job: BlockJob, template: MapTemplate, level: int) -> None:
    job.check_lease()
    write_overview(job.output, template, level=level, place=place)
