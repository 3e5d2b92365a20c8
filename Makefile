# `make train` and `make test` do all the set-up on a machine with Python 3.11-3.13.
PYTHON ?= python3
DATASET ?= digits
BIN = .venv/bin

.PHONY: train test test-fast check bench

train: .venv/installed
	$(BIN)/gebt run $(DATASET)

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test-fast: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow"

check: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python benchmarks/end_to_end.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v < (3, 11) and sys.exit("gebt needs Python 3.11 or newer, %s is %d.%d. Try: make PYTHON=python3.12 ..." % (sys.executable, *v))'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
