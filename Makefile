# Every target sets up what it needs first; a second set-up takes no time.
# Variables can be given on the command line or in the environment, as can every LORADOCK_* setting.

PYTHON ?= python3
VENV ?= .venv
ENGINE ?= auto
BENCH ?= gateway
JOBS ?= 2
LORADOCK_HOME ?= ./.loradock

export VENV ENGINE LORADOCK_HOME

.PHONY: help setup setup-dev serve test lint bench

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile

setup: ## what serving needs, with the engine for this machine (ENGINE=cpu, gpu or none to choose)
	@$(PYTHON) tools/install.py

setup-dev: ## the same, with what tests, lint and training need
	@$(PYTHON) tools/install.py dev

serve: setup ## bring up the endpoint
	@$(VENV)/bin/loradock serve

test: setup-dev ## run the tests, those against the real engine too (PYTEST_ADDOPTS is heeded)
	@$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadgroup

lint: setup-dev ## check style, types and layers
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: setup-dev ## run one benchmark, BENCH=gateway by default, and print its JSON
	@$(VENV)/bin/python -m bench.$(BENCH)
