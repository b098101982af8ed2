"""What the first process of a training run tells and keeps: progress, logs, weights, pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from bigmap.learning.training.batches import Batch
from bigmap.learning.training.folder import TrainingFolder
from bigmap.learning.training.logs import TrainingLog
from bigmap.learning.training.preparing import TrainingJob
from bigmap.learning.training.progress import StepReport, TrainingReporter
from bigmap.learning.training.standing import Position, Stopwatch
from bigmap.learning.training.validating import Validation
from bigmap.models import ModelSpec, NetworkModel, Training


class Keeper:
    """Tells and writes what comes of a training run.

    Parameters
    ----------
    job
        What is trained on what.
    folder
        Where it writes.
    reporter
        Told of the progress.
    position
        Where the run starts.
    resume
        Whether it goes on with logs that are there.
    """

    def __init__(
        self,
        job: TrainingJob,
        folder: TrainingFolder,
        reporter: TrainingReporter,
        position: Position,
        *,
        resume: bool,
    ) -> None:
        self.job, self.folder, self.reporter = job, folder, reporter
        self.told_undefined = False
        if not resume:
            folder.start()
        names = ("mcc", "mean_iou", "accuracy") * (job.view.classes is not None)
        names += ("psnr", "ssim") * (job.view.target_bands is not None)
        self.log = TrainingLog(
            folder, names if job.validation else (),
            step=position.total if resume else None,
            epoch=position.epoch if resume else None,
        )  # fmt: skip

    def close(self) -> None:
        """End the logs."""
        self.log.close()

    def add_step(self, position: Position, values: dict[str, float], watch: Stopwatch) -> None:
        """Log a step and tell of it."""
        settings = self.job.settings
        times = {"chips_per_s": watch.chips_per_s, "wait_percent": 100 * watch.wait_share}
        self.log.add_step(position.total, values | times)
        steps = settings.epochs * self.job.steps_per_epoch
        per_step = watch.seconds * settings.batch_chips / max(1, watch.chips)
        self.reporter.add_step(
            StepReport(
                epoch=position.epoch + 1, epochs=settings.epochs, done=position.total,
                steps=steps, loss=position.loss_sum / position.step,
                chips_per_s=watch.chips_per_s, wait_share=watch.wait_share,
                left_s=per_step * (steps - position.total),
            )
        )  # fmt: skip

    def add_epoch(
        self, position: Position, found: Validation | None, watch: Stopwatch, rate: float
    ) -> None:
        """Log an epoch and tell of it, and of a score that cannot tell which one is the best."""
        values = {"train_loss": position.loss_sum / self.job.steps_per_epoch}
        if found is not None:
            values |= {"validation_loss": found.loss, **found.scores}
            self._tell_undefined(position, found)
        epoch = position.epoch + 1
        is_best = position.best_epoch == epoch
        more = {
            "is_best": float(is_best),
            "learning_rate": rate,
            "chips_per_s": watch.chips_per_s,
            "wait_percent": 100 * watch.wait_share,
        }
        self.log.add_epoch(epoch, position.total, values | more)
        self.reporter.add_epoch(epoch, values, is_best=is_best)

    def _tell_undefined(self, position: Position, found: Validation) -> None:
        """Say once that another number than the score tells the best epoch."""
        if position.best_score == -math.inf and not self.told_undefined:
            self.reporter.note(
                f"{found.main} is undefined on the validation chips, which hold, or for which the "
                "model predicts, one class only; until it is defined, the epoch of the lowest "
                "validation loss is the best"
            )
            self.told_undefined = True

    def save_weights(self, model: NetworkModel, position: Position) -> None:
        """Save the weights of the epoch that is the best so far."""
        template = self.job.chips.template
        training = Training(
            data=f"{template.source or self.job.chips.path}: {len(self.job.train)} chips of "
            f"{template.chip_px} px at {template.gsd_m:g} m, epoch {position.epoch + 1}",
            is_simulated=template.is_simulated,
            scores={name: value for name, value in position.scores.items() if math.isfinite(value)},
        )
        self.folder.save_weights(model, training)

    def draw(
        self, position: Position, batch: Batch, outputs: Mapping[str, Tensor], spec: ModelSpec
    ) -> None:
        """Draw what the model makes of some validation chips."""
        # It takes a second to import, and only the first process draws.
        from bigmap.learning.training.pictures import draw_samples  # noqa: PLC0415

        self.folder.check_held()
        on_cpu = {key: values.cpu() for key, values in outputs.items()}
        file = self.folder.pictures / f"epoch-{position.epoch + 1:04d}.png"
        draw_samples(file, batch, on_cpu, spec)
