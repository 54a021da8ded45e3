# Two commands do everything on a fresh machine: `make run` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install run smoke s3 test test-long coverage check format clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## create the environment and install everything

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.8,<1"
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --quiet --compile-bytecode --constraint constraints.txt --editable ".[dev,pretrain,cluster]"
	touch $@

run: $(STAMP)  ## run the pipeline on the embedded default
	$(BIN)/python flows/snapfusion_flow.py run

smoke: $(STAMP)  ## run every stage on a random micro model (a check of the machinery)
	$(BIN)/python flows/snapfusion_flow.py --config config configs/smoke.toml run

s3: $(STAMP)  ## start an S3 server on loopback and print what to export
	$(BIN)/python -m infra.local

test: $(STAMP)  ## run the tests, two to four files at once
	$(BIN)/python -m pytest -m "not long" $(PARALLEL)

test-long: $(STAMP)  ## run the tests that are long by nature: workflows, clean environments, browsers
	$(BIN)/python -m pytest -m long $(PARALLEL)

coverage: $(STAMP)  ## run the tests and say which branches of steps/ and artifacts_schema/ they take
	mkdir -p .snapfusion/coverage
	$(BIN)/python -m pytest -m "not long" $(PARALLEL) --cov --cov-report=term --cov-report=json:.snapfusion/coverage/coverage.json

check: $(STAMP)  ## formatter, linters, types, layers and circles, security scan, dependency audit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml --severity-level medium snapfusion flows steps artifacts_schema benchmarks infra
	$(BIN)/python -m infra.audit

format: $(STAMP)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment (runs and store in .snapfusion stay)
	rm -rf $(VENV)
