# Everything runs in .venv, which `make install` makes from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := worker,embedded,console,flower,demo,dev

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format docs worker up bench reference clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## Make .venv with everything; trainpack is then .venv/bin/trainpack

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $(STAMP)

# the demo's model, outputs and services stay in this directory; the end-to-end tests use the same model
demo: export TRAINPACK_HOME := $(or $(TRAINPACK_HOME),$(CURDIR)/.cache)
demo: install ## Train a small LoRA, package it through the real service, ask before and after
	$(BIN)/trainpack demo

test: install ## Run all tests: unit, integration (real servers and workers), end to end (real weights)
	$(BIN)/python -m pytest

lint: install ## Formatter, linter and type checker
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

worker: install ## Run a worker against TRAINPACK_REDIS_URL
	$(BIN)/trainpack worker

up: install ## Run the embedded stack: Valkey, SeaweedFS and a worker
	$(BIN)/trainpack up

docs: install ## Write the READMEs' tables anew from the code
	$(BIN)/python -m tests.readme_tables

bench: install ## Speed and memory against the usual scripts, in one run
	$(BIN)/python -m tests.bench

reference: install ## Build llama-quantize and llama-imatrix for the benchmarks (about 10 minutes, needs cmake)
	$(BIN)/python -m tests.bench.reference

clean: ## Remove the environment and caches
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
