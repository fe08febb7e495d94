# `make demo` on a fresh machine: environment, a real search on simulated data, and a report worth opening.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help setup demo test lint fuzz format clean

help:
	@echo "make setup   create $(VENV) and install the project with pinned versions"
	@echo "make demo    search hyperparameters on simulated survival data and write a report (a few minutes)"
	@echo "make lint    style, types and import rules"
	@echo "make test    lint and all tests"
	@echo "make fuzz    22,000 mutated files against the readers (about 10 minutes)"
	@echo "make format  rewrite the sources in the project's style"
	@echo "make clean   remove the environment and caches; data/ and runs/ stay"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing pinned versions into $(VENV); this takes a minute or two"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/python -m tune.search tasks/tcga_survival.yaml --demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest

fuzz: setup
	$(BIN)/python -m tests.fuzz

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
