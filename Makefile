PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.DEFAULT_GOAL := help
.PHONY: help run test test-all test-sdk test-sdk-all sdk-table test-fast lint format demo bench fuzz soak lock docs clean install install-dev

help:  ## Show what there is to make
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/.installed: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -r requirements.lock
	$(PIP) install --no-deps -e .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -r requirements-dev.lock
	$(PIP) install --no-deps -e .
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed  ## Install into .venv
install-dev: $(VENV)/.installed-dev  ## Install with what tests and linters need

run: install  ## Start the server on $POTOROO_PORT (8080), data in $POTOROO_HOME (~/.potoroo)
	@exec $(BIN)/potoroo serve

demo: install  ## Try the main job on a throw-away instance
	@exec $(BIN)/potoroo demo

test: install-dev  ## Run the whole suite, but for the releases of the SDK
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not sdk"

test-all: install-dev  ## Run the suite and play the five releases of the SDK
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: install-dev  ## Run the suite without the slow tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not sdk and not browser"

test-sdk: install-dev  ## Play the SDK's scenarios with the five releases of CI, and write docs/sdk-releases.md
	$(BIN)/python -m pytest tests/sdk -m sdk -q ; status=$$? ; $(BIN)/python -m tests.sdk.table && exit $$status

test-sdk-all: install-dev  ## The same with every release from 2023.2.1 on
	POTOROO_TEST_SDK=all $(BIN)/python -m pytest tests/sdk -m sdk -q ; status=$$? ; $(BIN)/python -m tests.sdk.table && exit $$status

sdk-table: install-dev  ## Write docs/sdk-releases.md from the reports of the last runs
	$(BIN)/python -m tests.sdk.table

lint: install-dev  ## Check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-dev  ## Format the code
	$(BIN)/ruff check --fix -q . ; $(BIN)/ruff format -q .

bench: install-dev  ## Measure, against peers, and write docs/performance.md
	$(BIN)/python -m bench

fuzz: install-dev  ## Send an engine malformed HTTP, JSON and Arrow, 30 seconds of each
	$(BIN)/python -m tests.engine.server.fuzz --seconds 90

soak: install-dev  ## Load a server for ten minutes and look for what grows
	$(BIN)/python -m bench.soak

docs: install-dev  ## Write the generated pages of docs/
	$(BIN)/python docs/generate.py

lock: install-dev  ## Pin the dependencies anew
	$(PIP) install uv
	$(BIN)/uv pip compile pyproject.toml --universal --generate-hashes --no-emit-index-url --no-header --no-annotate -q -o requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-emit-index-url --no-header --no-annotate -q -o requirements-dev.lock

clean:  ## Remove what was installed and cached
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
