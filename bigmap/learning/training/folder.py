"""The run folder beside the weights: checkpoint, logs, pictures."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bigmap.errors import ModelError, TrainingError
from bigmap.files import parse_json, write_and_sync
from bigmap.lease import LEASE_FOLDER, Lease
from bigmap.mapping.places import list_differing
from bigmap.mapping.run_folder import MARK, check_run_folder
from bigmap.models import MapModel, Training, save_weights
from bigmap.models.checkpoint import read_pickle

VERSION = 1
"""Of checkpoints; others are refused."""


class TrainingFolder:
    """What a training run writes, all of it by its first process.

    Parameters
    ----------
    weights
        Where the best weights go; the folder has their name and ends in ``.run``.
    lease
        Of who writes, asked before each write; None for one that only reads.
    """

    def __init__(self, weights: str | Path, lease: Lease | None = None) -> None:
        self.lease = lease
        self.weights = Path(weights)
        self.path = self.weights.with_name(f"{self.weights.stem}.run")
        self.checkpoint = self.path / "checkpoint.pt"
        self.pictures = self.path / "samples"
        self.summary = self.path / "summary.json"

    def check(self, *, resume: bool, overwrite: bool) -> bool:
        """Tell whether a run is there that shall go on, and refuse one that is in the way.

        Raises
        ------
        TrainingError
            If there is a run or weights and neither flag is given, or the place cannot be written.
        """
        if resume and overwrite:
            raise TrainingError("--resume and --overwrite contradict each other; give one")
        check_run_folder(str(self.path), "training", signs=(self.checkpoint.name,))
        taken = next((each for each in (self.path, self.weights) if self._holds_run(each)), None)
        if taken is not None and not (resume or overwrite):
            raise TrainingError(
                f"training.weights: {taken} exists; add --resume to go on with it or --overwrite "
                "to start again"
            )
        if resume and self.weights.exists() and not self._holds_run(self.path):
            raise TrainingError(
                f"training.weights: {self.weights} exists without its run folder {self.path}, so "
                "it cannot be resumed; add --overwrite to start again"
            )
        try:
            self.weights.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(self.weights.parent, os.W_OK):
                raise PermissionError(13, "permission denied")
        except OSError as error:
            raise TrainingError(
                f"training.weights: {self.weights.parent} cannot be written ({error.strerror})"
            ) from None
        return resume and self.checkpoint.exists()

    def is_unfinished(self) -> bool:
        """Tell whether a run is here that has not come to its end, or was stopped."""
        if not self.path.exists():
            return False  # weights from elsewhere
        try:
            return bool(parse_json(self.summary.read_bytes())["stopped"])
        except (OSError, ValueError, KeyError, TypeError):
            return True

    def _holds_run(self, path: Path) -> bool:
        """Tell whether weights are there, or a run folder with more than a lease."""
        if path != self.path:
            return path.exists()
        return path.exists() and any(each.name != LEASE_FOLDER for each in path.iterdir())

    def check_held(self) -> None:
        """Refuse to write where another training has taken over.

        Raises
        ------
        LeaseError
            If the lease is not ours any more.
        """
        if self.lease is not None:
            self.lease.check()

    def start(self) -> None:
        """Make the folder anew, without what an earlier run left but for the lease of this one."""
        self.check_held()
        self.path.mkdir(parents=True, exist_ok=True)
        for each in self.path.iterdir():
            if each.name in (LEASE_FOLDER, MARK):
                continue
            if each.is_dir():
                shutil.rmtree(each)
            else:
                each.unlink()
        for file in (self.weights, self.weights.with_suffix(".json")):
            file.unlink(missing_ok=True)

    def save(self, content: Mapping[str, Any]) -> None:
        """Write a checkpoint: the old one or the new one is there, never half of one."""
        buffer = io.BytesIO()
        torch.save({"version": VERSION, **content}, buffer)
        self.check_held()
        write_and_sync(self.checkpoint, buffer.getbuffer())

    def load(self, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
        """Read the checkpoint; nothing in it is run.

        Parameters
        ----------
        fingerprint
            Of the recipe and the chips.

        Raises
        ------
        TrainingError
            If it is damaged, or was made with other settings or chips; names the field.
        """
        try:
            content = read_pickle(self.checkpoint)
            version, stored = content["version"], parse_json(content["fingerprint"])
        except (ModelError, ValueError, KeyError, TypeError):
            raise TrainingError(
                f"{self.checkpoint}: is no checkpoint that can be read; start again with "
                "--overwrite"
            ) from None
        if version != VERSION:
            raise TrainingError(
                f"{self.checkpoint}: is of another version of bigmap ({version}); start again "
                "with --overwrite"
            )
        # As JSON holds it: tuples are lists.
        given = json.loads(json.dumps(fingerprint))
        changed = list(list_differing(stored, given))
        if changed:
            raise TrainingError(
                f"training.weights: {self.weights} was started with another {', '.join(changed)}; "
                "set it back, choose another training.weights, or start again with --overwrite"
            )
        found: dict[str, Any] = content
        return found

    def save_weights(self, model: MapModel, training: Training) -> None:
        """Replace the best weights and their card."""
        self.check_held()
        fresh = self.path / "fresh"
        fresh.mkdir(exist_ok=True)
        file = fresh / self.weights.name
        try:
            save_weights(model, file, training=training)
            self.check_held()
            for each in (file, file.with_suffix(".json")):
                each.replace(self.weights.with_name(each.name))
        finally:
            shutil.rmtree(fresh)  # half of a file keeps a full disc full

    def write_summary(self, content: Mapping[str, Any]) -> None:
        """Write what the run came to, as JSON."""
        text = json.dumps(content, indent=2)
        self.check_held()
        write_and_sync(self.summary, text.encode())


class Table:
    """A CSV file that grows by rows; those after a checkpoint are cut off when a run goes on.

    Parameters
    ----------
    file
        Where it lies.
    columns
        The first is a rising number.
    last
        Rows up to this number are kept; None starts anew.
    """

    def __init__(self, file: Path, columns: tuple[str, ...], *, last: int | None) -> None:
        self.columns = columns
        kept = []
        if last is not None and file.exists():
            with file.open(newline="", encoding="utf-8") as stream:
                rows = [row for row in csv.reader(stream) if len(row) == len(columns)]
            kept = [row for row in rows[1:] if row[0].isdigit() and int(row[0]) <= last]
        self.stream = file.open("w", newline="", encoding="utf-8")
        self.writer = csv.writer(self.stream)
        self.writer.writerow(columns)
        self.writer.writerows(kept)
        self.stream.flush()

    def add(self, **values: object) -> None:
        """Add a row; what is not given stays empty."""
        self.writer.writerow([values.get(column, "") for column in self.columns])
        self.stream.flush()

    def close(self) -> None:
        """Close the file."""
        self.stream.close()
