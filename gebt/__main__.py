"""``python -m gebt``."""

from gebt.cli import main

main()
