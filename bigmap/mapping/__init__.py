"""From a recipe to a map: plan, run, blocks, ledger, store, and what a run leaves behind."""
