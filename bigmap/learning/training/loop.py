"""The training itself: epochs, validation, checkpoints; the same for one process and for many."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch

from bigmap.clusters.sizes import machine_memory_gb
from bigmap.errors import StoppedTrainingError, TrainingError
from bigmap.learning.chips import Chip
from bigmap.learning.training.augmenting import order_chips
from bigmap.learning.training.batches import Batch, ChipFeed, cut_batches, share_out
from bigmap.learning.training.folder import TrainingFolder
from bigmap.learning.training.keeping import Keeper
from bigmap.learning.training.preparing import TrainingJob, check_parts
from bigmap.learning.training.progress import TrainingReporter
from bigmap.learning.training.ranks import Link
from bigmap.learning.training.standing import Position, Stopwatch, TrainingSummary
from bigmap.learning.training.stepping import Learner
from bigmap.learning.training.validating import Scorer, Validation
from bigmap.machine import count_cores

CACHE_SHARE = 0.25
"""Of the machine's memory, for chips that stay in memory."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What a disc says that takes no more; only writing gives these."""
SAMPLE_CHIPS = 4
"""Validation chips of a picture."""


class Trainer:
    """One process of a training run.

    Parameters
    ----------
    job
        What is trained on what.
    folder
        Where the first process writes.
    link
        To the other processes.
    device
        Of this process.
    reporter
        Told of the progress by the first process.
    should_stop
        Asked in each step by every process; all stop where one of them says so.
    """

    def __init__(
        self,
        job: TrainingJob,
        folder: TrainingFolder,
        link: Link,
        device: torch.device,
        *,
        reporter: TrainingReporter,
        should_stop: Callable[[], bool],
    ) -> None:
        check_parts(job.settings, world=link.world)
        self.job, self.link, self.device = job, link, device
        self.settings = job.settings
        self.reporter, self.should_stop = reporter, should_stop
        self.folder = folder
        self.position = Position()
        self.keeper: Keeper | None = None
        """In the first process, once it has started."""
        self.learner = Learner(job, link, device)
        self.feed = self._open_feed()
        self.watch = Stopwatch()
        self.saved_at = time.monotonic()

    def _open_feed(self) -> ChipFeed:
        share = CACHE_SHARE * machine_memory_gb() * 1e9 / self.link.rank.local_world
        is_gpu = self.device.type == "cuda"
        cores = max(1, count_cores() // self.link.rank.local_world)
        threads = min(8, cores) if is_gpu else min(2, cores)
        return ChipFeed(self.job.chips, threads=threads, cache_bytes=int(share))

    def _make_batch(
        self, indices: Sequence[int], chips: Sequence[Chip], *, epoch: int | None = None
    ) -> Batch:
        batch = self.job.make_batch(indices, chips, epoch=epoch)
        return batch.pin() if self.device.type == "cuda" else batch

    def run(self, *, resume: bool) -> TrainingSummary:
        """Train to the end, or until a signal comes; see :meth:`_run`.

        Raises
        ------
        TrainingError
            If the disc is full, too.
        """
        try:
            return self._run(resume=resume)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise TrainingError(
                f"training.weights: {self.folder.path} cannot be written ({error.strerror}); make "
                "room, then go on with the same command and --resume"
            ) from None

    def _run(self, *, resume: bool) -> TrainingSummary:
        """Train to the end, or until a signal comes.

        Parameters
        ----------
        resume
            Go on from the checkpoint.

        Raises
        ------
        TrainingError
            If the checkpoint is of another recipe, or the loss is no finite number.
        LostRankError
            If another process is lost.
        """
        started = time.monotonic()
        if resume:
            self._restore(self.folder.load(self.job.fingerprint))
        stopped = False
        try:
            if self.link.rank.is_first and not self.position.is_finished:
                self.keeper = Keeper(
                    self.job, self.folder, self.reporter, self.position, resume=resume
                )
            while not self.position.is_finished:
                self._run_epoch()
        except StoppedTrainingError:
            stopped = True
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                "training.batch_chips: a part of a batch does not fit the memory of the GPU; raise "
                "training.accumulate"
            ) from error
        finally:
            self.feed.close()
            self.reporter.finish()
            if self.keeper is not None:
                self.keeper.close()
        return self._summarise(time.monotonic() - started, stopped=stopped)

    def _run_epoch(self) -> None:
        position, job = self.position, self.job
        order = order_chips(np.array(job.train), seed=self.settings.seed, epoch=position.epoch)
        steps = cut_batches(order.tolist(), self.settings.batch_chips)[: job.steps_per_epoch]
        parts = self.settings.accumulate
        mine = [self._share(part) for step in steps[position.step :] for part in _cut(step, parts)]
        batches = self.feed.iterate(mine, partial(self._make_batch, epoch=position.epoch))
        epoch_watch = Stopwatch()
        for step in steps[position.step :]:
            self._check_stop()
            started, waited = time.perf_counter(), self.feed.waited_s
            batch = [next(batches) for _ in range(parts)]
            values = self.learner.step(batch, position.total)
            position.step += 1
            position.total += 1
            position.loss_sum += values["loss"]
            times = time.perf_counter() - started, self.feed.waited_s - waited
            self.watch.add(len(step), *times)
            epoch_watch.add(len(step), *times)
            if self.keeper is not None:
                self.keeper.add_step(position, values, self.watch)
            if time.monotonic() - self.saved_at > 60 * self.settings.checkpoint_minutes:
                self._save()
        self._end_epoch(epoch_watch)

    def _share(self, chips: Sequence[int]) -> Sequence[int]:
        return share_out(chips, rank=self.link.rank.rank, world=self.link.world)

    def _check_stop(self) -> None:
        """Stop all processes where one is asked to; what is done is kept."""
        asked = self.link.sum(torch.tensor([float(self.should_stop())]))
        if asked.item():
            self._save()
            raise StoppedTrainingError("stopped; go on with the same command and --resume")

    def _end_epoch(self, watch: Stopwatch) -> None:
        """Validate, keep the best, lower the rate, and tell whether this was the last epoch."""
        position, settings = self.position, self.settings
        found = self._validate() if self.job.validation else None
        position.take(found)
        if found is not None:
            self.learner.schedule.end_epoch(found.loss)
        if self.keeper is not None:
            self.keeper.add_epoch(position, found, watch, self.learner.rate)
            if position.best_epoch == position.epoch + 1:
                self.keeper.save_weights(self.learner.kept_model, position)
                self._draw(self.keeper)
        position.epoch += 1
        position.step, position.loss_sum = 0, 0.0
        has_stalled = (
            settings.early_stop_epochs is not None
            and position.epoch - position.best_epoch >= settings.early_stop_epochs
        )
        position.is_finished = position.epoch >= settings.epochs or has_stalled
        self._save()

    def _draw(self, keeper: Keeper) -> None:
        chosen = self.job.validation[:SAMPLE_CHIPS]
        if not chosen:
            return
        batch = self._make_batch(chosen, self.feed.read(chosen))
        with self.learner.score() as model:
            outputs = self.learner.compute(model, batch.to(self.device))
        keeper.draw(self.position, batch, outputs, model.spec)

    def _validate(self) -> Validation:
        """Score the model on this process's share of the validation chips, and all shares."""
        size = max(1, self.settings.batch_chips // self.settings.accumulate // self.link.world)
        chips = self._share(self.job.validation)
        # Processes have equally many rounds, as all ask in each whether to stop.
        rounds = math.ceil(math.ceil(len(self.job.validation) / self.link.world) / size)
        learner, view = self.learner, self.job.view
        with learner.score() as model:
            scorer = Scorer(
                learner.objective,
                classes=len(model.spec.legend) if view.classes is not None else 0,
                bands=len(view.target_bands or ()),
            )
            batches = self.feed.iterate(cut_batches(chips, size), self._make_batch)
            for _ in range(rounds):
                self._check_stop()
                batch = next(batches, None)
                if batch is not None:
                    weights = learner.objective.weigh(batch)
                    moved = batch.to(self.device)
                    scorer.add(learner.compute(model, moved), moved, weights)
            return scorer.finish(self.link)

    def _save(self) -> None:
        """Write a checkpoint; the first process has all that the others have."""
        self.saved_at = time.monotonic()
        if not self.link.rank.is_first:
            return
        self.folder.save(
            {
                "fingerprint": json.dumps(self.job.fingerprint),
                "position": asdict(self.position),
                **self.learner.state(),
            }
        )

    def _restore(self, content: Mapping[str, Any]) -> None:
        self.position = Position(**content["position"])
        self.learner.load(content)

    def _name_score(self) -> str:
        """Name what tells the best epoch."""
        if not self.job.validation:
            return ""
        if self.position.best_score == -math.inf:
            return "loss"
        return "mcc" if self.job.view.classes is not None else "psnr"

    def _summarise(self, elapsed_s: float, *, stopped: bool) -> TrainingSummary:
        position = self.position
        summary = TrainingSummary(
            weights=os.fspath(self.folder.weights),
            folder=os.fspath(self.folder.path),
            epochs=position.epoch,
            steps=position.total,
            best_epoch=position.best_epoch,
            scores=position.scores,
            chosen_by=self._name_score(),
            processes=self.link.world,
            device=self.device.type,
            is_simulated=self.job.chips.template.is_simulated,
            elapsed_s=elapsed_s,
            chips_per_s=self.watch.chips_per_s,
            wait_share=self.watch.wait_share,
            stopped=stopped,
            stopped_early=position.is_finished and position.epoch < self.settings.epochs,
        )
        if self.link.rank.is_first:
            self.folder.write_summary(asdict(summary))
        return summary


def _cut(chips: Sequence[int], parts: int) -> list[Sequence[int]]:
    """Cut a batch into parts of equal size, or sizes that differ by one."""
    return [share_out(chips, rank=part, world=parts) for part in range(parts)]
