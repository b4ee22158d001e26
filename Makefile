# Every target does its own set-up from python3, make and a package index.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.run
DEV_STAMP := $(VENV)/.dev
# Start processes, kernels, PostgreSQL or load for long. Single slow tests are marked; the CPU time of one run is about three minutes.
QUICK = --ignore tests/integration --ignore tests/notebook/test_kernel.py --ignore tests/test_notebooks.py --ignore tests/typing --ignore tests/cli
LEFT_OUT ?= slow or local or ollama or postgres
# Each of the many processes of a test run would compile the package again, and each worker the tests: measured, a fifth
# of the processor's time of `make quick`.
unexport PYTHONDONTWRITEBYTECODE
# What tests write stays in memory where there is room: each commit would wait for the disk (measured: 7 ms against 0.006),
# and processes are killed in tests, never the machine.
ROOMY = $(shell df --output=avail --block-size=M /dev/shm 2>/dev/null | awk 'NR == 2 && $$1 + 0 >= 4096 {print "/dev/shm"}')
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode

.PHONY: help demo test quick again notebooks lint types docs build bench ollama migration errors-page statements settings statistics lock check-pth clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(BIN)/uv: requirements/bootstrap.txt
	$(PYTHON) -c 'import sys; sys.exit("llmkit needs Python 3.11 or later; set PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	@touch $@

$(RUN_STAMP): requirements/run.txt pyproject.toml | $(BIN)/uv
	$(INSTALL) --require-hashes -r requirements/run.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

$(DEV_STAMP): requirements/dev.txt pyproject.toml | $(BIN)/uv
	$(INSTALL) --require-hashes -r requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@ $(RUN_STAMP)

demo: $(RUN_STAMP) ## evaluate few-shot against zero-shot on a real model in this machine, and compare
	$(BIN)/python scripts/demo.py

test: $(DEV_STAMP) ## run every test, offline; fails below 80 % of the lines
	$(if $(ROOMY),PYTEST_DEBUG_TEMPROOT=$(ROOMY)) $(BIN)/python -m pytest -n 2 --dist worksteal -p tests.support.line_coverage --durations=10

quick: $(DEV_STAMP) ## run the fast tests, in under two minutes: no real model, no PostgreSQL, nothing slow
	$(if $(ROOMY),PYTEST_DEBUG_TEMPROOT=$(ROOMY)) $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not ($(LEFT_OUT))" $(QUICK)

again: $(DEV_STAMP) ## run the tests that failed in the last run once more, one after another
	$(if $(ROOMY),PYTEST_DEBUG_TEMPROOT=$(ROOMY)) $(BIN)/python -m pytest --last-failed --last-failed-no-failures=none

notebooks: $(DEV_STAMP) ## execute the notebooks from their recordings, offline
	$(BIN)/python -m pytest --nbmake -p no:randomly notebooks

lint: $(DEV_STAMP) ## style, complexity, docstrings and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(DEV_STAMP) ## static types, strict
	$(BIN)/mypy

docs: $(DEV_STAMP) ## build the documentation site into docs/_build/html, with warnings as errors
	$(BIN)/sphinx-build -n -W -q -E -b html docs docs/_build/html
	cp docs/llms.txt docs/_build/html/

build: $(DEV_STAMP) ## make wheel and sdist, check them, and install the wheel with each extra into an empty environment
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	bash scripts/try_wheel.sh

errors-page: $(DEV_STAMP) ## regenerate docs/errors.md
	$(BIN)/python -m tests.support.errors_page

statements: $(DEV_STAMP) ## recompile the SQLite statements and schema of the store
	$(BIN)/python -m scripts.compile_statements

settings: $(DEV_STAMP) ## regenerate the settings table of the README
	$(BIN)/python scripts/settings_table.py

statistics: $(DEV_STAMP) ## recompute the tables of docs/statistics.md by simulation (two minutes)
	$(BIN)/python scripts/statistics_tables.py

check-pth: $(DEV_STAMP) ## fail on unknown code that runs when Python starts
	$(BIN)/python scripts/check_pth.py

ollama: $(DEV_STAMP) ## build a real Ollama into the user's cache, for the tests and the demo
	$(BIN)/python scripts/build_ollama.py

bench: $(DEV_STAMP) ## measure; every figure is a ratio within one run
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

migration: $(DEV_STAMP) ## draft a migration from the tables: make migration m="what changes"
	$(BIN)/alembic revision --autogenerate -m "$(m)"

lock: | $(BIN)/uv ## resolve the requirement files, with hashes and without index addresses
	bash scripts/lock.sh

clean: ## remove what the targets made in this folder
	rm -rf $(VENV) .venv-3.* dist build docs/_build docs/reference docs/tutorials docs/settings.md docs/llms.txt .pytest_cache .mypy_cache .ruff_cache .hypothesis
