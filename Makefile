# SPDX-License-Identifier: BSD-2-Clause
# Everything happens in .venv, which is made on demand and made anew when pyproject.toml changes.
#   PYTHON  interpreter for .venv (3.11 or later)      JOBS  pytest-xdist workers
#   ARGS    extra arguments of run, test, soak, bench

PYTHON ?= python3
JOBS ?= auto
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
EXTRAS := crypto,fuzz,conformance
CONSUMER_VENV := build/consumer-venv

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test lint style types imports dependencies licences format docs doctest dist packaging gates bench speed explore \
    compiled compiled-check compiled-speed soak ci clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

run: $(VENV)/.run ## simulate the built-in scenario and print its result table
	$(BIN)/optee-mediator run $(ARGS)

test: $(VENV)/.test ## the test suite, within 5 minutes on 2 cores
	$(PYTEST) -n $(JOBS) --dist worksteal -q $(ARGS)

lint: style types imports dependencies licences ## formatting, lint, strict types, import contracts, dependencies, licences

style: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

imports: $(VENV)/.dev
	$(BIN)/lint-imports --no-logo

dependencies: $(VENV)/.dev
	$(BIN)/deptry .

licences: $(VENV)/.dev
	$(BIN)/reuse lint --quiet || $(BIN)/reuse lint

format: $(VENV)/.dev ## rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev ## the documentation as HTML, warnings are errors
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

doctest: $(VENV)/.dev ## every example in documentation, README and docstrings
	$(PYTEST) -q README.md docs smccc secure_world mediator specs fuzz

dist: $(VENV)/.dev ## wheel and sdist, contents checked
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/check-wheel-contents dist/*.whl

packaging: dist ## wheel contents, and the consumers against the wheel in a fresh environment
	rm -rf $(CONSUMER_VENV)
	$(PYTHON) -m venv $(CONSUMER_VENV)
	$(CONSUMER_VENV)/bin/python -m pip --disable-pip-version-check install -q \
	    "$$(ls $(CURDIR)/dist/*.whl)[$(EXTRAS)]"
	OPTEE_MEDIATOR_DIST=$(CURDIR)/dist \
	OPTEE_MEDIATOR_CONSUMER_PYTHON=$(CURDIR)/$(CONSUMER_VENV)/bin/python \
	$(PYTEST) -q tests/packaging

explore: $(VENV)/.test ## docs/evidence/explorer.md anew: all interleavings, some minutes
	$(BIN)/python -m tests.explore.evidence > docs/evidence/explorer.md

gates: $(VENV)/.test ## the deterministic speed gates: counts, not times
	$(PYTEST) -q tests/gates

bench: $(VENV)/.test ## all benchmarks as ratios, median of 9 rounds; exit 1 on a breach
	$(BIN)/python -m benchmarks $(ARGS)

speed: $(VENV)/.test ## docs/evidence/speed.md anew; wants a machine that does nothing else
	$(BIN)/python -m benchmarks --markdown docs/evidence/speed.md $(ARGS)

compiled: $(VENV)/.dev ## a copy of the project with its hot modules compiled, in build/compiled
	$(BIN)/python -m benchmarks.compiled.build $(ARGS)

compiled-check: $(VENV)/.dev ## the compiled modules behave as the interpreted ones
	$(BIN)/python -m benchmarks.compiled.check

compiled-speed: $(VENV)/.dev ## how much faster they make an invoke; exit 1 if less than 1.4 times
	$(BIN)/python -m benchmarks.compiled $(ARGS)

soak: $(VENV)/.test ## property tests at random and for hours; finds are kept in .hypothesis
	HYPOTHESIS_PROFILE=soak $(PYTEST) -n $(JOBS) --dist worksteal -q -o timeout=0 $(ARGS)

campaign: $(VENV)/.test ## ten million SMCs under faults; an hour on 2 cores, goes on where it stopped
	mkdir -p build
	$(BIN)/python -m fuzz.campaign --workers 2 --seed 4 --resume build/campaign.json \
	    --markdown build/campaign.md --commit "$$(git rev-parse --short=12 HEAD)" $(ARGS)

ci: ## what the continuous integration runs
	.ci/run

clean: ## remove everything that is generated
	rm -rf $(VENV) build dist docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/.pip: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is older than 3.11: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "$(PYTHON) has no venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install -q --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.run: $(VENV)/.pip
	$(PIP) install -q -e '.[crypto]'
	@touch $@

$(VENV)/.test: $(VENV)/.pip
	$(PIP) install -q -e '.[$(EXTRAS)]' --group test
	@touch $@

$(VENV)/.dev: $(VENV)/.pip
	$(PIP) install -q -e '.[$(EXTRAS)]' --group dev
	@touch $@
