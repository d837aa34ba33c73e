# `make help` prints the lines behind `##`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is installed beside INFless itself; `make test EXTRAS=cpu,docker,profiler,report,dev,grpc,torch` skips fewer tests.
EXTRAS ?= cpu,docker,profiler,report,dev
STAMP := $(VENV)/.installed-$(EXTRAS)
# onnxruntime 1.29 and newer reports home unless told not to.
export ORT_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help demo test check bench format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("INFless needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	@test -d $(VENV) || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing INFless and its tools into $(VENV) (about a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP) ## the main job on real models: build, profile, deploy, a minute of load, a picture (4 minutes)
	@$(BIN)/python examples/get_models.py
	@$(BIN)/python -m examples.demo

test: $(STAMP) check ## every check and test that this machine can run
	@$(BIN)/python examples/get_models.py
	@$(BIN)/python -m pytest

check: $(STAMP) ## format, lint, types, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache > .lint-imports.log || { cat .lint-imports.log; exit 1; }
	@rm -f .lint-imports.log

bench: $(STAMP) ## every figure of the README, as JSON records in benchmarks/results
	@$(BIN)/python examples/get_models.py
	@$(BIN)/python -m benchmarks.peers.install || true
	@$(BIN)/python -m benchmarks.watchdog
	@$(BIN)/python -m benchmarks.cost
	@$(BIN)/python -m benchmarks.planner
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[torch]'
	@$(BIN)/python -m benchmarks.cop
	@$(BIN)/python -m benchmarks.bearable_load --validate
	@$(BIN)/python -m benchmarks.provider
	@$(BIN)/python -m benchmarks.many_functions
	@$(BIN)/python -m benchmarks.followers
	@$(BIN)/python -m benchmarks.deploy

format: $(STAMP) ## write the code as ruff wants it
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## remove what was made, except the models
	rm -rf $(VENV) build demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis
