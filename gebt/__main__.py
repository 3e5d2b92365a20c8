"""``python -m gebt``."""

from gebt.cli.entry import main

main()
