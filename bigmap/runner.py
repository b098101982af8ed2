"""Plan + Dask client -> map: one task per block, bounded in flight, a ledger, resume, audit."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import math
import signal
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import FrameType
from typing import Any, Protocol

from distributed import CancelledError, Client, Future, WorkerPlugin, get_worker, wait
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker

from bigmap.blocks import BlockJob, run_block
from bigmap.clusters.mapping import map_on
from bigmap.errors import (
    BigmapError,
    BlockTimeoutError,
    LeaseError,
    LostClusterError,
    ModelError,
    OutputError,
    ReadError,
    RunError,
    SamplesError,
    StoppedError,
    UnfitFileError,
    drop_causes,
)
from bigmap.grid import ROI
from bigmap.inference import limit_threads
from bigmap.items import ItemRow, ItemTable
from bigmap.lease import Lease
from bigmap.ledger import FAILED, UNREAD, BlockRecord, Ledger, add_km2, list_replaced
from bigmap.planning import Plan
from bigmap.redaction import redact
from bigmap.reuse import copy_unchanged
from bigmap.runs import RunFolder, check_output
from bigmap.store import (
    MapTemplate,
    ShardKey,
    check_shards,
    complete_map,
    overview_places,
    write_overview,
)

LOG = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
MAX_LOSSES = 10
"""A lost worker is no fault of its blocks; but a block that has lost so many may well be why."""
SUSPECT_LOSSES = 3
"""A block that has lost so many waits for the end and then runs alone, so that one which takes its
workers' memory does not take the others' blocks with it."""
RETRY_DELAY_S = 5.0
IN_FLIGHT_PER_SLOT = 2
COUNT_WORKERS_S = 5.0
TICK_S = 5.0
BRING_ROUNDS = 10
END_WORKER_S = 60.0
"""How long a new worker in the place of one that was ended is waited for."""
FINAL_STATES = ("done", "empty")
REDO_STATES = ("failed", "degraded")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

BlockTask = Callable[[Any, ROI, Sequence[ItemRow]], BlockRecord]
"""Does one block with the job that all blocks share."""


class Reporter(Protocol):
    """Shows how a run goes on."""

    def start(self, plan: Plan, todo: int, recorded: Counter[str]) -> None:
        """Tell that blocks are about to be sent."""

    def add(self, record: BlockRecord) -> None:
        """Tell of one finished block."""

    def note(self, message: str) -> None:
        """Tell of something that is not a block."""

    def finish(self) -> None:
        """Tell that no more blocks will come."""


class SilentReporter:
    """Shows nothing."""

    def start(self, plan: Plan, todo: int, recorded: Counter[str]) -> None:
        """Ignore the start."""

    def add(self, record: BlockRecord) -> None:
        """Ignore a block."""

    def note(self, message: str) -> None:
        """Ignore a message."""

    def finish(self) -> None:
        """Ignore the end."""


@dataclass
class RunSummary:
    """What a run did, and the audit of its map."""

    planned: int
    """Blocks of this run, those of earlier attempts included."""
    states: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    """Blocks done in this attempt."""
    mapped_km2: float = 0.0
    """Pixels with a value, of this attempt."""
    whole_mapped_km2: float = 0.0
    """Pixels with a value, of all attempts."""
    without_data_km2: Counter[str] = field(default_factory=Counter)
    """Pixels of the area without a value, of all attempts, by the reason."""
    elapsed_s: float = 0.0
    seconds: Counter[str] = field(default_factory=Counter)
    """Time of each stage, added up over the blocks of this attempt."""
    stopped: bool = False
    missing_shards: tuple[str, ...] = ()
    has_overviews: bool = True
    failures: tuple[tuple[str, str], ...] = ()
    replaced: tuple[str, ...] = ()
    """Items whose files were replaced since the run began, so that the map mixes two."""

    @property
    def missing(self) -> int:
        """Planned blocks without a record."""
        return self.planned - sum(self.states.values())

    @property
    def exit_code(self) -> int:
        """0 done, 3 not all is as it should be, 75 stopped early."""
        if self.stopped:
            return 75
        is_whole = self.has_overviews and not (self.failures or self.missing_shards or self.missing)
        return 0 if is_whole and not (self.is_blank or self.replaced) else 3

    @property
    def is_blank(self) -> bool:
        """Tell whether blocks were done and not one pixel has a value."""
        return bool(self.states) and not self.whole_mapped_km2


class _JobPlugin(WorkerPlugin):
    """Brings the job to every worker once, also to those that come later."""

    def __init__(
        self, name: str, job: Any, task: BlockTask, threads: int, *, tells_start: bool
    ) -> None:
        self.name = name
        self.job = job
        self.task = task
        self.threads = threads
        self.tells_start = tells_start

    def setup(self, worker: Any) -> None:
        """Share the cores among the workers of a machine."""
        del worker
        limit_threads(self.threads)


@drop_causes()
def _call_task(plugin: str, key: str, block: ROI, rows: bytes) -> None:
    """Do a block and tell the driver.

    The rows are bytes, which the scheduler passes on as they are. The record travels as an event,
    which comes before the news that the task is done: fetching results took most of the driver's
    time, and they were lost with a worker that had done its block.
    """
    worker = get_worker()
    held: Any = worker.plugins[plugin]
    if held.tells_start:
        worker.log_event(plugin, [key, None, worker.address])
    record: BlockRecord = held.task(held.job, block, ItemTable.from_bytes(rows))
    worker.log_event(plugin, [key, record.to_json(), worker.address])


def run_plan(
    plan: Plan,
    client: Client,
    *,
    resume: bool = False,
    limit: int | None = None,
    reporter: Reporter | None = None,
    task: BlockTask = run_block,
    redo: Collection[str] | None = None,
    reuse: str | None = None,
    overwrite: bool = False,
) -> RunSummary:
    """Run a plan to its end.

    Parameters
    ----------
    plan
        Its blocks are sent in their order.
    client
        Of the cluster that works.
    resume
        Go on with the run that is there; otherwise the output is started anew.
    limit
        Send so many blocks only.
    reporter
        Shows progress.
    task
        What a worker does with a block.
    redo
        With ``resume``: do these blocks again and no others, by name; ``failed`` and
        ``degraded`` stand for all in that state.
    reuse
        An earlier map, from which blocks that would be alike are copied.
    overwrite
        Without ``resume``: remove what lies at the output, also if another run has put it there
        since it was looked at.

    Raises
    ------
    OutputError
        If the output is taken, or cannot be resumed.
    LeaseError
        If another driver writes this output, or has taken it over.
    LostClusterError
        If the cluster is lost; the run can be resumed.
    PlanError
        As :meth:`bigmap.planning.Plan.check_rendered`.
    """
    plan.check_rendered()
    reporter = reporter or SilentReporter()
    folder = RunFolder(plan.recipe.output.path)
    lease = Lease(folder.path)
    lease.acquire(reporter.note)
    try:
        _open_run(folder, plan, lease, reporter, resume=resume, overwrite=overwrite)
        ledger = folder.open_ledger(lease)
        recorded = ledger.latest() if resume else {}
        todo = _choose_blocks(plan, recorded, redo)
        if reuse is not None:
            folder.mark_overviews(lease, complete=False)
            copied = _reuse_blocks(plan, todo, reuse, ledger, reporter)
            recorded |= copied
            todo = [block for block in todo if plan.name(block) not in copied]
        todo = todo[:limit]
        planned = len(recorded.keys() | {plan.name(block) for block in todo})
        summary = RunSummary(planned=planned)
        driver = BlockDriver(plan, client, ledger, lease, reporter, summary)
        started = time.perf_counter()
        reporter.start(plan, len(todo), Counter(record.state for record in recorded.values()))
        try:
            with stop_on_signals():
                if todo:
                    folder.mark_overviews(lease, complete=False)
                job = plan.job(folder.path, lease.state.owner)
                driver.drive(todo, job, task, plan.sizes.threads)
                if not folder.has_overviews():
                    _write_overviews(client, plan, lease, reporter)
                    folder.mark_overviews(lease, complete=True)
        except StoppedError:
            summary.stopped = True
        finally:
            ledger.flush()
            reporter.finish()
        summary.elapsed_s = time.perf_counter() - started
        _audit(summary, folder, ledger)
        return summary
    finally:
        lease.release()


def _open_run(
    folder: RunFolder,
    plan: Plan,
    lease: Lease,
    reporter: Reporter,
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    """Start the output anew, or check that it is that of the plan.

    Another run may have had the lease since the output was looked at, so it is looked at again.
    """
    if check_output(plan.recipe, resume=resume, overwrite=overwrite and not resume):
        folder.check_plan(plan)
        for each in folder.mend(plan, lease):
            reporter.note(each)
    elif resume:
        raise OutputError(f"output.path: {folder.output}: its run was removed; start it again")
    else:
        # The map last: what is killed in between can be resumed.
        folder.clear(lease)
        folder.create(plan, lease)
    lease.check()
    for key in complete_map(folder.output, plan.template()):
        if resume:
            reporter.note(f"{folder.output}/{key}: was missing or damaged, and is made anew")


def _is_open(record: BlockRecord | None, lost: set[str]) -> bool:
    """Tell whether a block is still to be done: without a good record, or without its objects."""
    if record is None or record.state not in FINAL_STATES:
        return True
    return any(key in lost for key, _ in record.shards)


def _choose_blocks(
    plan: Plan, recorded: Mapping[str, BlockRecord], redo: Collection[str] | None
) -> list[ROI]:
    """Return the blocks that are to be done: those still open, or those named."""
    if redo is None:
        lost = set(check_shards(plan.recipe.output.path, _shards_of(recorded.values())))
        return [b for b in plan.blocks if _is_open(recorded.get(plan.name(b)), lost)]
    by_name = {plan.name(block): block for block in plan.blocks}
    unknown = sorted(set(redo) - by_name.keys() - set(REDO_STATES))
    if unknown:
        raise OutputError(
            f"--redo {', '.join(unknown)}: this map has no such block; blocks are named as in "
            f"{next(iter(by_name))}, or give failed or degraded"
        )
    return [
        block
        for name, block in by_name.items()
        if name in redo or (name in recorded and recorded[name].state in redo)
    ]


def _reuse_blocks(
    plan: Plan, blocks: Sequence[ROI], old: str, ledger: Ledger, reporter: Reporter
) -> dict[str, BlockRecord]:
    """Copy blocks of an earlier map and record them; return their records by name."""
    copied = {}
    for record in copy_unchanged(plan, blocks, old):
        ledger.append(record)
        copied[record.block] = record
    ledger.flush()
    reporter.note(f"reused {len(copied)} of {len(blocks)} blocks of {old}")
    return copied


def _shards_of(records: Iterable[BlockRecord]) -> Iterator[ShardKey]:
    return (ShardKey(*shard) for record in records for shard in record.shards)


class BlockDriver:
    """Keeps a bounded number of blocks in flight and records what becomes of them."""

    def __init__(
        self, plan: Plan, client: Client, ledger: Ledger, lease: Lease, reporter: Reporter,
        summary: RunSummary,
    ) -> None:  # fmt: skip
        self.plan = plan
        self.client = client
        self.ledger = ledger
        self.lease = lease
        self.reporter = reporter
        self.summary = summary
        self.waiting: deque[tuple[float, ROI, int]] = deque()
        self.suspects: deque[tuple[ROI, int]] = deque()
        self.flying: dict[Future[None], tuple[ROI, int]] = {}
        self.records: dict[str, str] = {}
        """Records of blocks that are done, by the key of their task, as JSON."""
        self.timeout_s = plan.recipe.run.block_timeout_s
        self.started: dict[str, tuple[float, str]] = {}
        """When blocks began to run, and on which worker, by the key of their task; kept only where
        a block may not take as long as it likes."""
        self.ended: set[str] = set()
        """Addresses of workers that were ended because a block took too long."""
        self.losses: Counter[str] = Counter()
        self.serial = 0
        self.slots, self.counted = 1, -math.inf
        self.scheduler = ""
        self.told_waiting = False
        self.plugin = f"bigmap-{uuid.uuid4().hex}"

    def drive(self, todo: Sequence[ROI], job: Any, task: BlockTask, threads: int) -> None:
        """Send all blocks and wait for them."""
        if not todo:
            return
        source = iter(todo)
        try:
            self.client.subscribe_topic(self.plugin, self._receive)
            tells_start = self.timeout_s is not None
            self._bring(_JobPlugin(self.plugin, job, task, threads, tells_start=tells_start))
            self._refill(source)
            while self.flying or self.waiting or self.suspects:
                for future in self._wait_for_some():
                    block, attempt = self.flying.pop(future)
                    self._settle(future, block, attempt)
                self._end_overdue()
                self.ledger.flush_late()
                self._refill(source)
                if self.lease.is_lost:
                    self.lease.check()
        except (CommClosedError, TimeoutError, OSError) as error:
            self.lease.check()
            raise LostClusterError(
                f"the cluster was lost ({str(error) or type(error).__name__}); go on with --resume"
            ) from error
        finally:
            self._stop()

    def _bring(self, plugin: _JobPlugin) -> None:
        """Bring the job to the workers; one that is lost at that moment costs another round."""
        for is_last in (*[False] * BRING_ROUNDS, True):
            try:
                self.client.register_plugin(plugin)
            except (CommClosedError, TimeoutError, OSError):
                if is_last or self.client.status != "running":
                    raise
            else:
                return

    def _stop(self) -> None:
        if self.client.status != "running":
            return
        # A cluster that stops too, as it does when a job is cancelled, needs no tidying.
        with contextlib.suppress(CommClosedError, OSError, TimeoutError):
            self.client.unsubscribe_topic(self.plugin)
            self.client.cancel(list(self.flying))
            self.client.unregister_worker_plugin(self.plugin)

    def _receive(self, event: tuple[float, tuple[str, str | None, str]]) -> None:
        """Keep what a worker has sent, a record or a start; called from the client's own thread."""
        key, record, worker = event[1]
        if record is None:
            self.started[key] = time.monotonic(), worker
        else:
            self.records[key] = record

    def _end_overdue(self) -> None:
        """Give blocks up that have run for too long, and end the workers that are at them."""
        if self.timeout_s is None:
            return
        latest = time.monotonic() - self.timeout_s
        overdue = {
            future: self.started[key][1]
            for future in self.flying
            if (key := str(future.key)) not in self.records
            and self.started.get(key, (math.inf, ""))[0] < latest
        }
        if not overdue:
            return
        # Given up first: the scheduler would send them to other workers by itself.
        self.client.cancel(list(overdue))
        for future in overdue:
            block, attempt = self.flying.pop(future)
            del self.started[str(future.key)]
            error = BlockTimeoutError(
                f"took longer than run.block_timeout_s ({self.timeout_s:g} s), so its worker was "
                "ended; raise it if the block is healthy"
            )
            self._fail(error, block, attempt)
        self._end_workers(set(overdue.values()))

    def _end_workers(self, addresses: set[str]) -> None:
        """Kill worker processes, which their nannies start anew."""
        known = self.client.scheduler_info(n_workers=-1)["workers"]
        watched = [each for each in addresses if each in known and known[each]["nanny"]]
        for address in addresses & known.keys() - set(watched):
            self.reporter.note(
                f"worker {address} has no nanny, so it goes on with a block that was given up; "
                "start workers with one"
            )
        self.ended |= set(watched)
        # One that has left in the meantime is not in the answer.
        with contextlib.suppress(KeyError):
            self.client.restart_workers(watched, timeout=END_WORKER_S, raise_for_error=False)

    def _slots(self) -> int:
        """Return how many blocks the workers run at once; asked anew every few seconds."""
        if time.monotonic() - self.counted < COUNT_WORKERS_S:
            return self.slots
        self.counted = time.monotonic()
        scheduler = self.client.scheduler_info(n_workers=-1)
        if self.scheduler not in ("", scheduler["id"]):
            raise CommClosedError("its scheduler was started anew")
        self.scheduler = scheduler["id"]
        workers = scheduler["workers"].values()
        if not workers and not self.told_waiting:
            self.reporter.note("the cluster has no worker at present; waiting for one")
        self.told_waiting = not workers
        self.slots = max(1, sum(int(worker["nthreads"]) for worker in workers))
        return self.slots

    def _wait_for_some(self) -> list[Future[None]]:
        """Return the blocks that have come back; none after a while, so that the lease is seen."""
        if not self.flying:
            next_s = self.waiting[0][0] - time.monotonic() if self.waiting else 0.0
            time.sleep(min(TICK_S, max(0.0, next_s)))
        elif all(future.status == "pending" for future in self.flying):
            with contextlib.suppress(TimeoutError, CancelledError):
                wait(list(self.flying), timeout=TICK_S, return_when="FIRST_COMPLETED")
        if self.client.status != "running":
            raise CommClosedError("its scheduler has gone")
        return [future for future in self.flying if future.status != "pending"]

    def _refill(self, source: Iterator[ROI]) -> None:
        """Send blocks until enough are in flight."""
        room = IN_FLIGHT_PER_SLOT * self._slots() - len(self.flying)
        chosen = [each for _ in range(room) if (each := self._choose(source)) is not None]
        if not chosen and not self.flying and not self.waiting and self.suspects:
            chosen = [self.suspects.popleft()]
        if not chosen:
            return
        blocks = [block for block, _ in chosen]
        keys = [f"block-{self.plan.name(block)}-{self._count()}-{self.plugin}" for block in blocks]
        futures = self.client.map(
            _call_task,
            [self.plugin] * len(blocks),
            keys,
            blocks,
            [self.plan.rows_of(block).to_bytes() for block in blocks],
            key=keys,
            pure=False,
        )
        self.flying.update(zip(futures, chosen, strict=True))

    def _choose(self, source: Iterator[ROI]) -> tuple[ROI, int] | None:
        """Return the next block and its attempt; one that failed goes first when its time comes."""
        if self.waiting and self.waiting[0][0] <= time.monotonic():
            _, block, attempt = self.waiting.popleft()
            return block, attempt
        following = next(source, None)
        return None if following is None else (following, 1)

    def _count(self) -> int:
        """Return a number that no task had before."""
        self.serial += 1
        return self.serial

    def _settle(self, future: Future[None], block: ROI, attempt: int) -> None:
        """Record a block, or send it again later if it failed."""
        record = self.records.pop(str(future.key), None)
        self.started.pop(str(future.key), None)
        if record is not None:
            done = BlockRecord.from_dict(json.loads(record))
            self._record(replace(done, attempts=attempt))
            return
        error = future.exception() if future.status == "error" else None
        if isinstance(error, (LeaseError, ModelError, SamplesError)):
            raise error
        name = self.plan.name(block)
        if isinstance(error, KilledWorker) and error.last_worker.address in self.ended:
            self.reporter.note(f"block {name}: its worker was ended; sent again")
            self.waiting.appendleft((time.monotonic(), block, attempt))
            return
        if error is None or isinstance(error, KilledWorker):
            self.losses[name] += 1
            if self.losses[name] < MAX_LOSSES:
                self._send_again(name, block, attempt)
                return
        self._fail(error, block, attempt)

    def _fail(self, error: BaseException | None, block: ROI, attempt: int) -> None:
        """Send a block again later, or record that it has failed."""
        name = self.plan.name(block)
        is_final = error is None or isinstance(error, (KilledWorker, UnfitFileError))
        if not is_final and attempt < MAX_ATTEMPTS:
            self.reporter.note(f"block {name}: attempt {attempt} failed: {_say(error)}")
            self.waiting.append((time.monotonic() + RETRY_DELAY_S * attempt, block, attempt + 1))
            return
        if error is not None and not isinstance(error, BigmapError):
            LOG.debug("block %s failed", name, exc_info=error)
        reason = UNREAD if isinstance(error, ReadError) else FAILED
        self._record(
            BlockRecord(
                name,
                "failed",
                attempts=attempt,
                without_data_km2={reason: self.plan.count_km2(block)},
                error=_say(error),
                finished=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            )
        )

    def _send_again(self, name: str, block: ROI, attempt: int) -> None:
        """Send a block again whose worker was lost, by itself if that happened too often."""
        if self.losses[name] < SUSPECT_LOSSES:
            self.reporter.note(f"block {name}: its worker has left or was lost; sent again")
            self.waiting.appendleft((time.monotonic(), block, attempt))
            return
        self.reporter.note(
            f"block {name}: {self.losses[name]} workers have left or were lost while they had it; "
            "sent again by itself when the others are done"
        )
        self.suspects.append((block, attempt))

    def _record(self, record: BlockRecord) -> None:
        record = self.ledger.append(record)
        self.summary.sent += 1
        self.summary.mapped_km2 += record.mapped_km2
        self.summary.seconds.update(record.seconds)
        self.reporter.add(record)


def _say(error: BaseException | None) -> str:
    if error is None or isinstance(error, KilledWorker):
        return (
            f"{MAX_LOSSES} workers were lost while they had it; raise cluster.memory_gb (or the "
            "walltime), or lower grid.block_px, dates.max_per_cell or inference.batch_windows"
        )
    if isinstance(error, BigmapError):
        return str(error)
    return redact(f"{type(error).__name__}: {error}")


def _write_overviews(client: Client, plan: Plan, lease: Lease, reporter: Reporter) -> None:
    """Halve the map level by level; each task owns whole shards of its level."""
    template = plan.template()
    for level in range(1, template.overviews + 1):
        places = list(overview_places(template, level))
        reporter.note(f"overview {level} of {template.overviews}: {len(places)} shards")
        task = partial(
            _write_place,
            job=plan.job(RunFolder(plan.recipe.output.path).path, lease.state.owner),
            template=template,
            level=level,
        )
        try:
            for _ in map_on(client, task, places, advice="go on with --resume"):
                if lease.is_lost:
                    lease.check()
        except LostClusterError:
            lease.check()
            raise
        except RunError as error:
            raise OutputError(f"{plan.recipe.output.path}: overview {level}: {error}") from error


def _write_place(place: ROI, *, job: BlockJob, template: MapTemplate, level: int) -> None:
    job.check_lease()
    write_overview(job.output, template, level=level, place=place)


def _audit(summary: RunSummary, folder: RunFolder, ledger: Ledger) -> None:
    """Compare the map with the ledger: every block accounted for, every object there."""
    records = ledger.latest()
    summary.states = Counter(record.state for record in records.values())
    summary.failures = tuple(
        (record.block, record.error or "") for record in records.values()
        if record.state == "failed"
    )  # fmt: skip
    summary.whole_mapped_km2, summary.without_data_km2 = add_km2(records.values())
    summary.replaced = list_replaced(records.values())
    summary.has_overviews = folder.has_overviews()
    summary.missing_shards = tuple(check_shards(folder.output, _shards_of(records.values())))


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Turn the signals by which users and schedulers stop a job into an orderly end.

    Inside, the first of them raises; the end that follows is not disturbed by more of them, only
    by a second Ctrl-C.

    Raises
    ------
    StoppedError
        When SIGINT, SIGTERM or SIGUSR1 comes.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is _raise_stopped:
        yield
        return
    before = {number: signal.signal(number, _raise_stopped) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    del frame
    for other in STOP_SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    raise StoppedError(
        f"stopped by {signal.Signals(number).name}: go on with the same command and --resume"
    )
