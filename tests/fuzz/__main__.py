"""The long form: ``python -m tests.fuzz --mutations 50000 --seed 1 --out build/fuzz``.

Prints what came of the mutations of each target and the groups of failures, keeps a failing input
of each group in a folder, and ends with 1 if there are any. ``--replay FOLDER`` shows the traceback
of one, whose target is the first word of the folder's name.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.corpus import write_corpus
from tests.fuzz.hunting import Hunt, Result, describe, replay, share_out
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Hunt in all targets, or in some."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--mutations", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--replay", type=Path)
    given = parser.parse_args()
    if given.replay is not None:
        replay(given.replay.resolve(), TARGETS[given.replay.name.partition("-")[0]])
        return 0
    out = given.out.resolve()
    corpus = out / "corpus"
    if not corpus.exists():
        write_corpus(corpus)

    def hunt_in(name: str, mutations: int) -> Result:
        start = time.monotonic()
        result = Hunt(TARGETS[name], corpus, out, given.seed).run(mutations)
        print(f"{describe(result, out)}\n  {time.monotonic() - start:.0f} s", flush=True)
        return result

    with ThreadPoolExecutor(given.processes) as pool:
        shares = share_out(given.mutations, given.targets)
        results = list(pool.map(hunt_in, shares.keys(), shares.values()))
    failures = sum(len(result.failures) for result in results)
    print(f"seed {given.seed}: {given.mutations} mutations, {failures} failures")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
