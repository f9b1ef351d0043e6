# Everything runs in .venv, which `make install` makes from pyproject.toml and constraints.txt.
# `make install EXTRAS=worker` installs less. `make install HASHES=no` takes the same versions from any index and checks no
# hash: for builds of torch that constraints.txt does not know.
PYTHON ?= python3
HASHES ?= yes
TEST_JOBS ?= 3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
EXTRAS ?= worker,embedded,console,flower,demo,dev

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format docs pictures consumers worker up bench bench-gpu reference lock licences sbom audit clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## Make .venv with everything; trainpack is then .venv/bin/trainpack

# Each file's hash is checked; then the project itself, which has none, is added without asking any index. A build of torch
# in a directory that pip is told of (PIP_FIND_LINKS) goes before the index's. PyPI's for Linux wants CUDA libraries that a
# build for the CPU does not: what the installed one says of itself decides.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python scripts/pins.py --extras $(EXTRAS) --hashes $(HASHES) > $(VENV)/pins.txt
ifeq ($(HASHES),yes)
	@$(BIN)/python scripts/pins.py --extras $(EXTRAS) --package torch > $(VENV)/torch.txt
	@$(PIP) install --quiet --no-deps --no-index --require-hashes --requirement $(VENV)/torch.txt 2>/dev/null \
	  || echo "no build of torch with a known hash on this disk: taking the index's"
	$(PIP) install --quiet --no-deps --require-hashes --requirement $(VENV)/pins.txt
	@if $(PIP) show torch 2>/dev/null | grep -q -E '^Requires:.*(cuda|nvidia)-'; then \
	  $(BIN)/python scripts/pins.py --extras cuda > $(VENV)/cuda.txt && \
	  $(PIP) install --quiet --no-deps --require-hashes --requirement $(VENV)/cuda.txt; fi
	$(PIP) install --quiet --no-deps --no-index --no-build-isolation --editable '.[$(EXTRAS)]'
else
	$(PIP) install --quiet --constraint $(VENV)/pins.txt --editable '.[$(EXTRAS)]'
endif
	$(PIP) check
	@touch $(STAMP)

lock: ## Write constraints.txt anew: versions, hashes of all files (LOCK=--upgrade: newest versions)
	$(PYTHON) scripts/lock.py $(LOCK)

licences: install ## Check the licences of all dependencies and write docs/licences.md
	$(BIN)/python scripts/licences.py

sbom: install ## Write build/sbom.json, the bill of materials (CycloneDX)
	@mkdir -p build
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file build/sbom.json $(BIN)/python

audit: install ## Look all pins up in a vulnerability service (AUDIT="--service osv" for another)
	$(BIN)/python scripts/audit.py $(AUDIT)

# the demo's model, outputs and services stay in this directory; the end-to-end tests use the same model
demo: export TRAINPACK_HOME := $(or $(TRAINPACK_HOME),$(CURDIR)/.cache)
demo: install ## Train a small LoRA, package it through the real service, ask before and after
	$(BIN)/trainpack demo

# A file of tests stays in one process, as its servers and workers do, and long ones begin first (tests/conftest.py). Much of
# the time is waiting for leases and processes.
test: install ## Run all tests: unit, integration (real servers and workers), end to end (real weights)
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder

lint: install ## Formatter, linter, type checker, and which rooms may import which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: install ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

worker: install ## Run a worker against TRAINPACK_REDIS_URL
	$(BIN)/trainpack worker

up: install ## Run the embedded stack: Valkey, SeaweedFS and a worker
	$(BIN)/trainpack up

docs: install ## Write the tables of READMEs and reference pages anew from the code
	$(BIN)/python -m tests.reference_tables

pictures: export TRAINPACK_HOME := $(or $(TRAINPACK_HOME),$(CURDIR)/.cache)
pictures: install ## Make the READMEs' pictures anew from the job of make demo (needs Chromium)
	$(BIN)/python scripts/pictures.py

consumers: install ## Pyright on a producer's code, clients in two languages from the OpenAPI document, both tried (fetches the tools)
	$(BIN)/python scripts/consumers.py

bench: install ## Speed and memory against the usual scripts, in one run
	$(BIN)/python -m tests.bench

bench-gpu: install ## Bytes and speeds of everything that runs on a GPU, in one call (needs one)
	$(BIN)/python -m tests.bench gpu

reference: install ## Build llama-quantize and llama-imatrix for the benchmarks (about 10 minutes, needs cmake)
	$(BIN)/python -m tests.bench.reference

clean: ## Remove the environment, caches and the demo's model and outputs
	rm -rf $(VENV) build .cache .import_linter_cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
