"""``python -m gebt``."""

from gebt.cli.app import main

main()
