"""Where training starts: as one process, as one of several, or as the one that starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from bigmap.clusters.ranks import Rank
from bigmap.config import Recipe
from bigmap.errors import BigmapError, OutputError, TrainingError
from bigmap.learning.training.folder import TrainingFolder
from bigmap.learning.training.launching import launch
from bigmap.learning.training.loop import Trainer
from bigmap.learning.training.preparing import TrainingJob, check_parts, prepare_training
from bigmap.learning.training.progress import SilentTraining, TrainingReporter
from bigmap.learning.training.ranks import Link, find_rank, open_link
from bigmap.learning.training.standing import TrainingSummary
from bigmap.lease import Lease
from bigmap.machine import count_cores, count_gpus
from bigmap.mapping.run_folder import mark_run_folder
from bigmap.signals import note_signals


def train_recipe(
    recipe: Recipe,
    *,
    processes: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    reporter: TrainingReporter | None = None,
) -> TrainingSummary:
    """Train the recipe's model on this machine, or as one task of several.

    Parameters
    ----------
    recipe
        Its ``model``, ``samples`` and ``training`` count.
    processes
        By default one for each GPU, or one. Where torchrun or srun started this process, it is
        one of theirs, and the number is theirs.
    resume
        Go on from the checkpoint if there is one.
    overwrite
        Start anew even if there are weights or a run.
    reporter
        Shows progress; by default nothing is shown.

    Raises
    ------
    BigmapError
        If the recipe cannot work, or the place of the weights is taken, now or while it trains.
    """
    reporter = reporter or SilentTraining()
    rank = find_rank()
    job = prepare_training(recipe)
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        resume, overwrite = True, False
    with note_signals() as flag:
        if rank is None and (wanted := processes or max(1, count_gpus())) > 1:
            check_parts(job.settings, world=wanted)
            job.folder.check(resume=resume, overwrite=overwrite)
            return launch(
                recipe, processes=wanted, resume=resume, overwrite=overwrite, reporter=reporter,
                should_stop=flag,
            )  # fmt: skip
        return run_rank(
            job, rank or Rank(), resume=resume, overwrite=overwrite, reporter=reporter,
            should_stop=flag,
        )  # fmt: skip


def run_rank(
    job: TrainingJob,
    rank: Rank,
    *,
    resume: bool,
    overwrite: bool,
    reporter: TrainingReporter,
    should_stop: Callable[[], bool],
) -> TrainingSummary:
    """Train as one process of all; see :func:`train_recipe`."""
    device = choose_device(rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    elif "OMP_NUM_THREADS" not in os.environ or rank.local_world > 1:
        torch.set_num_threads(max(1, count_cores() // rank.local_world))
    with (
        open_link(rank, device) as link,
        _take_folder(job, link, resume=resume, overwrite=overwrite) as (folder, resuming),
    ):
        trainer = Trainer(
            job, folder, link, device,
            reporter=reporter if rank.is_first else SilentTraining(), should_stop=should_stop,
        )  # fmt: skip
        return trainer.run(resume=resuming)


@contextmanager
def _take_folder(
    job: TrainingJob, link: Link, *, resume: bool, overwrite: bool
) -> Iterator[tuple[TrainingFolder, bool]]:
    """Let the first process take the place of the weights, and tell all whether to resume.

    The folder is the first process's to write, as long as its lease lasts.
    """
    lease = Lease(str(job.folder.path))
    refusal: BigmapError | None = None
    verdict = torch.zeros(2)
    if link.rank.is_first:
        try:
            job.folder.check(resume=resume, overwrite=overwrite)
            lease.acquire()
            # Again, since another may have had the lease until now.
            verdict[0] = float(job.folder.check(resume=resume, overwrite=overwrite))
            mark_run_folder(str(job.folder.path), "training", lease)
        except (TrainingError, OutputError) as error:
            refusal, verdict[1] = error, 1.0
    try:
        link.sum(verdict)
        if refusal is not None:
            raise refusal
        if verdict[1]:
            raise TrainingError("the first process cannot start; it says why")
        held = TrainingFolder(job.folder.weights, lease if link.rank.is_first else None)
        yield held, bool(verdict[0])
    finally:
        if link.rank.is_first:
            lease.release()


def choose_device(rank: Rank) -> torch.device:
    """Return the GPU of a process, or the CPU; SLURM may show each task its own GPU only."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", rank.local_rank % torch.cuda.device_count())
