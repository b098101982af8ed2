"""One process on each worker of a Dask cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from bigmap.clusters import Cluster
from bigmap.clusters.ranks import Rank, run_on_workers
from bigmap.clusters.sizes import size_cluster
from bigmap.config import Recipe, parse_recipe
from bigmap.learning.training.preparing import check_parts, prepare_training
from bigmap.learning.training.progress import SilentTraining, TrainingReporter
from bigmap.learning.training.relaying import RelayingReporter, relay
from bigmap.learning.training.standing import TrainingSummary
from bigmap.learning.training.starting import run_rank
from bigmap.signals import note_signals

LOOK_EVERY_S = 1.0


def train_on_cluster(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: TrainingReporter | None = None,
) -> TrainingSummary:
    """Train by one process on each worker of the recipe's cluster.

    Chips and weights lie on a file system that driver and workers share.

    Raises
    ------
    BigmapError
        If the recipe cannot work, the place of the weights is taken, or a worker is lost.
    """
    reporter = reporter or SilentTraining()
    job = prepare_training(recipe)
    job.folder.check(resume=resume, overwrite=overwrite)
    world = size_cluster(recipe.cluster).sure_workers
    check_parts(job.settings, world=world)
    stop = job.folder.path.with_suffix(".stop").absolute()
    stop.unlink(missing_ok=True)
    task = partial(
        _run_rank, content=json.dumps(recipe.model_dump(mode="json")), resume=resume,
        overwrite=overwrite, stop=str(stop),
    )  # fmt: skip
    try:
        with note_signals() as flag, Cluster(recipe, note=reporter.note) as cluster:
            results = run_on_workers(
                cluster.client,
                task,
                world=world,
                receive=lambda line: relay(json.loads(line), reporter),
                tick=lambda: _pass_on(flag, stop),
            )
    finally:
        reporter.finish()
        stop.unlink(missing_ok=True)
    return TrainingSummary(**json.loads(results[0]))


def _pass_on(should_stop: Callable[[], bool], stop: Path) -> None:
    """Ask the workers to stop: a file is what all of them see without asking Dask in each step."""
    if should_stop():
        stop.touch()


def _run_rank(
    rank: Rank,
    send: Callable[[str], None],
    *,
    content: str,
    resume: bool,
    overwrite: bool,
    stop: str,
) -> str:
    """Train as one process, within a worker, and return the summary as JSON."""
    recipe = parse_recipe(json.loads(content), origin="recipe")
    summary = run_rank(
        prepare_training(recipe),
        rank,
        resume=resume,
        overwrite=overwrite,
        reporter=RelayingReporter(send),
        should_stop=_Watch(Path(stop)),
    )
    return json.dumps(asdict(summary))


class _Watch:
    """Looks for a file, once a second at most."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.looked_at = 0.0
        self.found = False

    def __call__(self) -> bool:
        """Tell whether the file is there."""
        if not self.found and time.monotonic() - self.looked_at > LOOK_EVERY_S:
            self.looked_at = time.monotonic()
            self.found = self.file.exists()
        return self.found
