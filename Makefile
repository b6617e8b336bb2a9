# The commands of this checkout. Each sets up what it needs: packaging/setup.sh.
# Tests run in the order of their speed. BENCH, TESTS and PYTEST_ARGS narrow what runs; WORKERS is how many at once.

SHELL := /bin/bash
PYTHON ?=
export PYTHON
.DEFAULT_GOAL := help

bin := .venv/bin
TESTS ?= $(wildcard tests/unit tests/contract tests/system tests/network tests/booted tests/packaging)
PYTEST_ARGS ?=
BENCH ?=
MUTANTS ?=
# Most tests wait more than they compute. WORKERS=0 runs them one by one.
WORKERS ?= $(shell echo $$(( $$(nproc) + 2 )))

.PHONY: help setup setup-dev demo test lint soak mutants bench package fresh clean

help: ## list these commands
	@echo 'quaymaster: make COMMAND'
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1	\2/p' $(MAKEFILE_LIST) | expand -t 14

setup: ## .venv with quaymaster in it, ready to run
	@packaging/setup.sh runtime

setup-dev: ## the same, with what tests, linters and benchmarks need
	@packaging/setup.sh dev

demo: setup ## the service at work on real files in a throwaway directory (about 15 s)
	@$(bin)/python packaging/demo.py

test: lint ## linters, then every test but the soak tests
	$(bin)/pytest -n $(WORKERS) --dist loadfile $(TESTS) $(PYTEST_ARGS)

lint: setup-dev ## ruff, mypy, and the direction of imports
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/lint-imports --no-cache

soak: setup-dev ## the long tests: hours of landing files, with faults; fuzzers for longer
	$(bin)/pytest -m soak $(TESTS) $(PYTEST_ARGS)
	QUAYMASTER_EXAMPLES=5000 $(bin)/pytest -o timeout=7200 tests/system/test_campaign_hostile.py -k 'mutated or every_path'

mutants: setup-dev ## break the product on purpose, to see that its tests notice; MUTANTS="NAME…" chooses some
	$(bin)/python tests/mutants/run.py $(MUTANTS)

bench: setup-dev ## benchmarks; BENCH="NAME…" chooses some
	$(bin)/python tests/bench/run.py $(BENCH)

package: ## the deb for Debian 12 and 13 and the rpm, into dist/ (root only; the first time some minutes)
	@packaging/build.sh

fresh: ## make demo and make test on a minimal Debian 12 made for the purpose (root only)
	@tests/packaging/fresh_machine.sh

clean: ## remove .venv, caches and what builds left
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build daemon/*.egg-info
	find daemon tests packaging -name __pycache__ -type d -prune -exec rm -rf {} +
