"""The exception tree of bigmap.

Every message is one clear sentence that names the field, file or block concerned
and says what to do. The command line turns a :class:`BigmapError` into that sentence
and exit code 2; anything else is a fault of bigmap itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from bigmap.redaction import redact

MOST_LETTERS, KEPT_LETTERS = 1_500, 700
"""Of a message, and of each end of one that is longer."""
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+\b")
"""Where an object lay in memory, which libraries' words about it tell."""


class BigmapError(Exception):
    """Base of all errors that the user of bigmap can act on.

    Its message is kept in ledgers and logs, so it is one printable line without secrets, whatever
    it repeats of a file, an href or of another library's words.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(redact(_to_line(message)))


class RecipeError(BigmapError):
    """A recipe, an override or a file that a recipe names is wrong."""


class EmptyAreaError(RecipeError):
    """The area, cut by a box or a zone, holds nothing to map."""


class CatalogError(BigmapError):
    """A catalogue cannot be reached, holds nothing, or contradicts itself."""


class ReadError(BigmapError):
    """Pixels could not be read after all retries; names the asset."""


class UnfitFileError(ReadError):
    """A file can be read, but holds what is not expected of it: trying again does not help."""


class ModelError(BigmapError):
    """A model is unknown, or its weights or options do not fit it."""


class ScoresError(BigmapError):
    """A model's scores are not finite; fails the block."""


class SamplesError(BigmapError):
    """Labels or chips are wrong, missing, or do not fit the model."""


class TrainingError(BigmapError):
    """Training cannot start or go on; its message says what to do."""


class LostRankError(TrainingError):
    """One of the processes that train together has gone; training can be resumed."""


class StoppedTrainingError(TrainingError):
    """A signal asked training to stop; it can be resumed."""


class PlanError(BigmapError):
    """The plan cannot work: it does not fit in memory, or covers nothing."""


class OutputError(BigmapError):
    """The output cannot be written, exists already, or is not a map of this run."""


class ClusterError(BigmapError):
    """A cluster cannot be started or reached, or its workers cannot do their work."""


class RunError(BigmapError):
    """A run stopped before its end; its message says how to go on."""


class StoppedError(RunError):
    """A signal asked the run to stop; it can be resumed."""


class BlockTimeoutError(RunError):
    """A block took longer than its recipe allows."""


class LostClusterError(RunError):
    """The cluster has gone under a run; it can be resumed on another."""


class LostTaskError(RunError):
    """A task lost every worker that had it."""


class LeaseError(OutputError):
    """The output belongs to another run."""


@contextmanager
def drop_causes() -> Iterator[None]:
    """Let errors leave a task without what caused them.

    An error travels from a worker with its causes. Some, such as GDAL's in rasterio, cannot be
    unpickled, and the driver would get an error of another type, with other rules for what is
    tried again.
    """
    try:
        yield
    except Exception as error:
        error.__cause__ = error.__context__ = None
        raise


def _to_line(text: str) -> str:
    """Leave out the middle of a long text, and show what cannot be printed as its escape."""
    text = ADDRESS.sub("", text)
    if len(text) > MOST_LETTERS:
        text = f"{text[:KEPT_LETTERS]} ... {text[-KEPT_LETTERS:]}"
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in " ".join(text.split())
    )
