# `make train` and `make test` do all the set-up on a machine with Python 3.11-3.13.
PYTHON ?= python3
LOWEST_PYTHON ?= python3.11
DATASET ?= imports
BASE ?= HEAD~1
HEAD ?= HEAD
BIN = .venv/bin
INSTALL = pip install --quiet --disable-pip-version-check

.PHONY: train test test-fast test-lowest test-newest check docs dist bench asv

train: .venv/installed
	$(BIN)/gebt run $(DATASET)

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow"

test-lowest: .venv-lowest/installed
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-newest:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m $(INSTALL) -e '.[dev]'
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs
	@echo "Written: build/docs/index.html"

# The wheel is built from the sdist.
dist: .venv/installed
	rm -rf dist
	$(BIN)/python -m build --quiet

bench: .venv/installed
	$(BIN)/python benchmarks/end_to_end.py

# Two commits in turns, in an environment of asv's own: make asv BASE=HEAD~20
asv: .venv/asv
	cd benchmarks/asv && export OMP_NUM_THREADS=1 MACHINE=$${MACHINE:-this} && \
	  asv=../../$(BIN)/asv && $$asv machine --yes --machine $$MACHINE && \
	  $$asv continuous --machine $$MACHINE --interleave-rounds --split $(BASE) $(HEAD)

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v < (3, 11) and sys.exit("gebt needs Python 3.11 or newer, %s is %d.%d. Try: make PYTHON=python3.12 ..." % (sys.executable, *v))'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m $(INSTALL) -c constraints.txt torch
	$(BIN)/python -m $(INSTALL) -c constraints.txt -e '.[dev]'
	touch $@

.venv/docs: .venv/installed
	$(BIN)/python -m $(INSTALL) -c constraints.txt -e '.[docs]'
	touch $@

.venv/asv: .venv/installed
	$(BIN)/python -m $(INSTALL) -c constraints.txt -e '.[asv]'
	touch $@

# "torch>=2.6" in pyproject.toml is what the lowest is: torch==2.6.
.venv-lowest/installed: pyproject.toml
	$(LOWEST_PYTHON) -m venv --clear .venv-lowest
	grep -oE '"[a-z-]+>=[0-9.]+' pyproject.toml | tr -d '"' | sed 's/>=/==/' > .venv-lowest/pins.txt
	.venv-lowest/bin/python -m $(INSTALL) -c .venv-lowest/pins.txt torch
	.venv-lowest/bin/python -m $(INSTALL) -c .venv-lowest/pins.txt -e '.[dev]'
	touch $@
