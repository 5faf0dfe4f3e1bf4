# Everything a newcomer types. `make` alone lists it. Settings: ARGS (for demo, bench), PYTEST_ARGS, TEST_PROCESSES, PYTHON, TORCH.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
BIN := .venv/bin
ARGS ?=
PYTEST_ARGS ?=
TEST_PROCESSES ?= 2

.PHONY: help setup setup-tests demo test bench docs screenshots constraints clean

help: ## list these targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 20

setup: ## set up .venv with every pinned package (quick when up to date)
	@.ci/setup

setup-tests: # what the tests need beyond `setup`: a browser to look at the status page with
	@.ci/setup tests

demo: setup ## three simulated nodes, three faults, every culprit named; ARGS='--seed 7 --data DIR'
	@$(BIN)/instep demo $(ARGS)

test: setup-tests ## linter, types, import contracts, all tests; PYTEST_ARGS='-k hang' selects
	@echo "== ruff: style and likely mistakes"; $(BIN)/ruff check --quiet . && $(BIN)/ruff format --check --quiet .
	@echo "== mypy: types"; $(BIN)/mypy
	@echo "== lint-imports: who may import whom"; $(BIN)/lint-imports --no-logo
	@echo "== pytest: behaviour"; .ci/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile $(PYTEST_ARGS)

bench: setup ## the numbers: make bench ARGS='hang --runs 20'
	@$(BIN)/instep bench $(ARGS)

docs: setup ## write the pages that are generated from the code
	@$(BIN)/python -m instep.reference docs/reference/cli.md
	@$(BIN)/python -m instep_agent.reference docs/reference/agent-metrics.md
	@$(BIN)/python -m instep_diagnosis.catalogue_page docs/reference/catalogues.md

screenshots: setup-tests ## take the README's pictures from a real run
	@$(BIN)/python -m tests.pictures docs/pictures

constraints: setup ## write constraints.txt from what is installed in .venv
	@{ sed '/^[^#]/,$$d' constraints.txt; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//'; } >.constraints.new
	@mv .constraints.new constraints.txt

clean: ## remove .venv, caches and built files
	@rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
