"""``python -m bigmap.cli`` is ``bigmap``."""

from bigmap.cli import main

main()
