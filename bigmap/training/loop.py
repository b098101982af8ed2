"""The training itself: steps, validation, checkpoints; the same for one process and for many."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bigmap.chips import Chip
from bigmap.clusters.sizes import machine_memory_gb
from bigmap.errors import StoppedTrainingError, TrainingError
from bigmap.machine import count_cores
from bigmap.models import NetworkModel, Training
from bigmap.training.augmenting import order_chips
from bigmap.training.batches import Batch, ChipFeed, cut_batches, share_out
from bigmap.training.folder import TrainingFolder
from bigmap.training.logs import TrainingLog
from bigmap.training.norms import synchronise_norms
from bigmap.training.optimising import MovingAverage, Schedule, clip_gradients, make_optimiser
from bigmap.training.preparing import TrainingJob, check_parts
from bigmap.training.progress import StepReport, TrainingReporter
from bigmap.training.ranks import Link
from bigmap.training.validating import Scorer, Validation

CACHE_SHARE = 0.25
"""Of the machine's memory, for chips that stay in memory."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What a disc says that takes no more; only writing gives these."""
SAMPLE_CHIPS = 4
"""Validation chips of a picture."""


@dataclass
class Position:
    """Where a run is."""

    epoch: int = 0
    """Epochs that are done, validation included."""
    step: int = 0
    """Steps of the epoch that are done."""
    total: int = 0
    """Steps of all epochs that are done."""
    loss_sum: float = 0.0
    """Of the epoch's steps."""
    best_epoch: int = 0
    """Counted from 1; 0 before the first."""
    best_score: float = -math.inf
    best_loss: float = math.inf
    """Of the best epoch; decides where the score is undefined."""
    is_finished: bool = False
    scores: dict[str, float] = field(default_factory=dict)
    """Of the best epoch."""


@dataclass(frozen=True)
class TrainingSummary:
    """What a run came to."""

    weights: str
    folder: str
    epochs: int
    """Done, those of earlier attempts included."""
    steps: int
    best_epoch: int
    scores: dict[str, float]
    """Of the best epoch, on the validation chips."""
    chosen_by: str
    """The score that tells the best epoch; ``loss`` where it is undefined, empty where there are
    no validation chips and the last epoch counts."""
    processes: int
    device: str
    is_simulated: bool
    elapsed_s: float
    """Of this attempt."""
    chips_per_s: float
    """In training steps of this attempt, over all processes."""
    wait_share: float
    """Of the time of those steps: waiting for data, in the first process."""
    stopped: bool = False
    stopped_early: bool = False
    """Whether the score had not risen for so long as the recipe allows."""

    @property
    def exit_code(self) -> int:
        """0 done, 75 stopped and can be resumed."""
        return 75 if self.stopped else 0


class Stopwatch:
    """Chips and seconds of training steps, of this attempt and since the last look."""

    def __init__(self) -> None:
        self.chips = 0
        self.seconds = self.waited = 0.0

    def add(self, chips: int, seconds: float, waited: float) -> None:
        """Add a step."""
        self.chips += chips
        self.seconds += seconds
        self.waited += waited

    @property
    def chips_per_s(self) -> float:
        """Chips a second, 0 before the first step."""
        return self.chips / self.seconds if self.seconds else 0.0

    @property
    def wait_share(self) -> float:
        """Share of the time that was spent waiting for data."""
        return self.waited / self.seconds if self.seconds else 0.0


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
        self.log: TrainingLog | None = None
        self.told_undefined = False
        self.model = job.build_model()
        self.objective = job.build_objective(self.model).to(device).train()
        self.model.to(device)
        if link.world > 1:
            self._synchronise()
        self.average = (
            MovingAverage(self.model, self.settings.ema_decay) if self.settings.ema_decay else None
        )
        self.optimiser = make_optimiser(self.model, self.objective, self.settings.optimiser)
        self.schedule = Schedule(
            self.settings.schedule, epochs=self.settings.epochs, steps_per_epoch=job.steps_per_epoch
        )
        self.feed = self._open_feed()
        self.watch = Stopwatch()
        self.saved_at = time.monotonic()

    @property
    def trained(self) -> nn.ModuleList:
        """Model and objective."""
        return nn.ModuleList([self.model, self.objective])

    @property
    def kept_model(self) -> NetworkModel:
        """The model that is validated and saved."""
        if self.average is None:
            return self.model
        averaged = self.average.model
        assert isinstance(averaged, NetworkModel)
        return averaged

    def _synchronise(self) -> None:
        """Let all processes start alike, and normalise over all of them."""
        self.link.copy_first([*self.trained.parameters(), *self.trained.buffers()])
        if self.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
            self.objective = nn.SyncBatchNorm.convert_sync_batchnorm(self.objective)
        else:
            synchronise_norms(self.model, self.link.sum)
            synchronise_norms(self.objective, self.link.sum)

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
                self._open_log(resume=resume)
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
            if self.log is not None:
                self.log.close()
        return self._summarise(time.monotonic() - started, stopped=stopped)

    def _open_log(self, *, resume: bool) -> None:
        if not resume:
            self.folder.start()
        names = ("mcc", "mean_iou", "accuracy") * (self.job.view.classes is not None)
        names += ("psnr", "ssim") * (self.job.view.target_bands is not None)
        self.log = TrainingLog(
            self.folder, names if self.job.validation else (),
            step=self.position.total if resume else None,
            epoch=self.position.epoch if resume else None,
        )  # fmt: skip

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
            values = self._step(batch)
            position.step += 1
            position.total += 1
            position.loss_sum += values["loss"]
            times = time.perf_counter() - started, self.feed.waited_s - waited
            self.watch.add(len(step), *times)
            epoch_watch.add(len(step), *times)
            self._tell_step(values)
            if time.monotonic() - self.saved_at > 60 * self.settings.checkpoint_minutes:
                self._save()
        self._end_epoch(epoch_watch)

    def _share(self, chips: Sequence[int]) -> Sequence[int]:
        return share_out(chips, rank=self.link.rank.rank, world=self.link.world)

    def _step(self, parts: list[Batch]) -> dict[str, float]:
        """Do one step; the batch has come in parts."""
        position = self.position
        rate = self.settings.optimiser.learning_rate * self.schedule.factor(position.total)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        weights = torch.stack([self.objective.weigh(part) for part in parts])
        whole = self.link.sum(weights.sum(dim=0))
        coefficients = torch.tensor(list(self.objective.coefficients.values())).double()
        shares = torch.where(whole > 0, coefficients * weights / whole, 0)
        self.optimiser.zero_grad(set_to_none=True)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, (part, share) in enumerate(zip(parts, shares, strict=True)):
            self._seed_torch(number)
            batch = part.to(self.device)
            terms = self.objective(self.compute(self.model, batch), batch)
            part_loss = (terms * share.to(terms)).sum()
            part_loss.backward()
            loss += part_loss.detach()
        value = float(self.link.sum(loss.cpu()))
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} in step {position.total + 1}; lower "
                "training.optimiser.learning_rate, or set training.clip_norm"
            )
        self.link.sum_gradients(self.trained.parameters())
        norm = clip_gradients(self.optimiser.param_groups, self.settings.clip_norm)
        self.optimiser.step()
        if self.average is not None:
            self.average.update(self.model, position.total)
        values = {"loss": value, "learning_rate": rate}
        return values | ({} if norm is None else {"gradient_norm": float(norm)})

    def compute(self, model: NetworkModel, batch: Batch) -> dict[str, Tensor]:
        """Run a model on a batch in the recipe's precision; outputs are float32."""
        is_half = self.settings.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_half):
            outputs = model.compute(batch.prepare(model.mean_reflectance), batch.dates, batch.clear)
        return {name: values.float() for name, values in outputs.items()}

    def _seed_torch(self, part: int) -> None:
        """Seed what models draw themselves by where the run is, so that a resumed one agrees."""
        parts = [self.settings.seed, self.position.total, part, self.link.rank.rank]
        torch.manual_seed(int(np.random.SeedSequence(parts).generate_state(1)[0]))

    def _check_stop(self) -> None:
        """Stop all processes where one is asked to; what is done is kept."""
        asked = self.link.sum(torch.tensor([float(self.should_stop())]))
        if asked.item():
            self._save()
            raise StoppedTrainingError("stopped; go on with the same command and --resume")

    def _tell_step(self, values: dict[str, float]) -> None:
        position, watch = self.position, self.watch
        if not self.link.rank.is_first:
            return
        assert self.log is not None
        times = {"chips_per_s": watch.chips_per_s, "wait_percent": 100 * watch.wait_share}
        self.log.add_step(position.total, values | times)
        steps = self.settings.epochs * self.job.steps_per_epoch
        per_step = watch.seconds * self.settings.batch_chips / max(1, watch.chips)
        self.reporter.add_step(
            StepReport(
                epoch=position.epoch + 1, epochs=self.settings.epochs, done=position.total,
                steps=steps, loss=position.loss_sum / position.step,
                chips_per_s=watch.chips_per_s, wait_share=watch.wait_share,
                left_s=per_step * (steps - position.total),
            )
        )  # fmt: skip

    def _end_epoch(self, watch: Stopwatch) -> None:
        """Validate, keep the best, lower the rate, and tell whether this was the last epoch."""
        position, settings = self.position, self.settings
        found = self._validate() if self.job.validation else None
        is_best = (
            found is None
            or position.best_epoch == 0
            or found.is_better(position.best_score, position.best_loss)
        )
        if is_best:
            position.best_epoch = position.epoch + 1
            position.scores = {} if found is None else found.scores
        if is_best and found is not None:
            position.best_score = found.score
            position.best_loss = math.inf if math.isnan(found.loss) else found.loss
        if found is not None:
            self.schedule.end_epoch(found.loss)
            self._tell_undefined(found)
        values = {"train_loss": position.loss_sum / self.job.steps_per_epoch}
        if found is not None:
            values |= {"validation_loss": found.loss, **found.scores}
        if self.link.rank.is_first:
            self._keep(values, watch, is_best=is_best)
        position.epoch += 1
        position.step, position.loss_sum = 0, 0.0
        has_stalled = (
            settings.early_stop_epochs is not None
            and position.epoch - position.best_epoch >= settings.early_stop_epochs
        )
        position.is_finished = position.epoch >= settings.epochs or has_stalled
        self._save()

    def _tell_undefined(self, found: Validation) -> None:
        """Say once that another number than the score tells the best epoch."""
        is_undefined = self.position.best_score == -math.inf
        if is_undefined and not self.told_undefined and self.link.rank.is_first:
            self.reporter.note(
                f"{found.main} is undefined on the validation chips, which hold, or for which the "
                "model predicts, one class only; until it is defined, the epoch of the lowest "
                "validation loss is the best"
            )
            self.told_undefined = True

    def _keep(self, values: dict[str, float], watch: Stopwatch, *, is_best: bool) -> None:
        """Log an epoch, and save weights and a picture where it is the best."""
        position = self.position
        assert self.log is not None
        more = {
            "is_best": float(is_best),
            "learning_rate": self.optimiser.param_groups[0]["lr"],
            "chips_per_s": watch.chips_per_s,
            "wait_percent": 100 * watch.wait_share,
        }
        self.log.add_epoch(position.epoch + 1, position.total, values | more)
        self.reporter.add_epoch(position.epoch + 1, values, is_best=is_best)
        if not is_best:
            return
        template = self.job.chips.template
        training = Training(
            data=f"{template.source or self.job.chips.path}: {len(self.job.train)} chips of "
            f"{template.chip_px} px at {template.gsd_m:g} m, epoch {position.epoch + 1}",
            is_simulated=template.is_simulated,
            scores={name: value for name, value in position.scores.items() if math.isfinite(value)},
        )
        self.folder.save_weights(self.kept_model, training)
        if self.job.validation:
            self._draw(f"epoch-{position.epoch + 1:04d}.png")

    def _draw(self, name: str) -> None:
        # It takes a second to import, and only the first process draws.
        from bigmap.training.pictures import draw_samples  # noqa: PLC0415

        chosen = self.job.validation[:SAMPLE_CHIPS]
        batch = self._make_batch(chosen, self.feed.read(chosen))
        model = self.kept_model.eval()
        with torch.inference_mode():
            outputs = self.compute(model, batch.to(self.device))
        self.model.train()
        self.folder.check_held()
        on_cpu = {key: values.cpu() for key, values in outputs.items()}
        draw_samples(self.folder.pictures / name, batch, on_cpu, model.spec)

    def _validate(self) -> Validation:
        """Score the model on this process's share of the validation chips, and all shares."""
        size = max(1, self.settings.batch_chips // self.settings.accumulate // self.link.world)
        chips = self._share(self.job.validation)
        # Processes have equally many rounds, as all ask in each whether to stop.
        rounds = math.ceil(math.ceil(len(self.job.validation) / self.link.world) / size)
        model = self.kept_model.eval()
        self.objective.eval()
        spec = model.spec
        scorer = Scorer(
            self.objective,
            classes=len(spec.legend) if self.job.view.classes is not None else 0,
            bands=len(self.job.view.target_bands or ()),
        )
        try:
            with torch.inference_mode():
                batches = self.feed.iterate(cut_batches(chips, size), self._make_batch)
                for _ in range(rounds):
                    self._check_stop()
                    batch = next(batches, None)
                    if batch is not None:
                        weights = self.objective.weigh(batch)
                        moved = batch.to(self.device)
                        scorer.add(self.compute(model, moved), moved, weights)
                return scorer.finish(self.link)
        finally:
            self.objective.train()
            self.model.train()

    def _save(self) -> None:
        """Write a checkpoint; the first process has all that the others have."""
        self.saved_at = time.monotonic()
        if not self.link.rank.is_first:
            return
        self.folder.save(
            {
                "fingerprint": json.dumps(self.job.fingerprint),
                "position": asdict(self.position),
                "model": self.model.state_dict(),
                "objective": self.objective.state_dict(),
                "average": None if self.average is None else self.average.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "schedule": self.schedule.state(),
                "random": torch.get_rng_state(),
            }
        )

    def _restore(self, content: Mapping[str, Any]) -> None:
        self.position = Position(**content["position"])
        self.model.load_state_dict(content["model"])
        self.objective.load_state_dict(content["objective"])
        if self.average is not None:
            self.average.model.load_state_dict(content["average"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.schedule.load(content["schedule"])
        torch.set_rng_state(content["random"])

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
