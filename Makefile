# `make run` and `make test` do everything on a machine that has only Python (3.11 or newer), pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Small models train faster and steadier on one thread per process; parallelism comes from processes.
export OMP_NUM_THREADS ?= 1

.PHONY: run test fast slow install dev lint clean

run: install
	$(BIN)/python -m trainer

test: lint fast

fast: dev
	$(BIN)/python -m pytest -n 2 -m "not slow and not clients and not gpu" tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "clients and not slow" tests/clients

slow: dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow" tests

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

install: $(VENV)/.installed
dev: $(VENV)/.dev

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .venv-clients build dist .pytest_cache .ruff_cache
