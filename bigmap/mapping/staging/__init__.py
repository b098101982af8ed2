"""Scenes of a plan -> a folder that a run reads instead, where compute nodes have no network.

The folder holds ``scenes/`` with a folder per item; ``items.parquet``, the plan's catalogue with
its decisions and with hrefs relative to itself; ``manifest.jsonl`` with size and SHA-256 of each
file; and ``stage.json``, which says what was staged. It can be moved as a whole.
"""
