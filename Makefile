# The two commands to know are `make up` and `make test`; both make .venv first, and are quick the second time.

PYTHON ?= python3
DATA ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help up venv test reliability compose-test lint bench bench-score bench-peers docs lock clean

help:
	@echo 'make up [DATA=routes.csv] [ARGS="--champion spline"]   set up, train once, run everything until Ctrl-C'
	@echo 'make test [ARGS="-k schema"]                           set up and run the tests'
	@echo 'make lint | reliability | compose-test | bench | bench-score | bench-peers | docs | lock | clean'

up: venv
	@exec $(BIN)/gleaner up $(DATA) $(ARGS)

# Two files at a time: half of the time is waiting for processes that start and end.
test: venv
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# What takes too long for every run: more moments to be killed at, and some minutes of schemathesis.
reliability: venv
	@MOMENTS=20 CONTRACT_EXAMPLES=1000 $(BIN)/python -m pytest --timeout 1800 tests/reliability tests/integration/test_protocols.py

# docker-compose.yml, built and run without Docker; for root on Debian.
compose-test: venv
	@$(BIN)/python tests/compose/prove.py $(ARGS)

lint: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@tests/lint_rules.sh
	@$(BIN)/hadolint --failure-threshold warning deploy/Dockerfile
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

bench: venv
	@$(BIN)/python bench/serving.py
	@$(BIN)/python bench/training.py

bench-score: venv
	@$(BIN)/python bench/scoring.py

bench-peers: venv
	@$(BIN)/python bench/comparison.py $(ARGS)

# What the locks say, checked by hash. uv does it in seconds; where it cannot reach what pip is set up for, pip does.
venv: $(VENV)/.made

$(VENV)/.made: pyproject.toml requirements/uv.lock requirements/dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is wanted, $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	@echo 'making $(VENV), once; this takes a minute'
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r requirements/dev.lock \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q src
	@touch $@

docs: venv
	@$(BIN)/gleaner config describe > docs/settings.md
	@$(BIN)/gleaner config render --for compose

# The newest versions that fit pyproject.toml, with hashes and without addresses.
lock: venv
	@for extras in serve: train:--extra=train dev:--extra=train,--extra=monitoring,--extra=parquet,--group=dev; do \
	  $(BIN)/uv pip compile --quiet --universal --upgrade --generate-hashes --python-version 3.11 \
	    --custom-compile-command 'make lock' $$(echo $${extras#*:} | tr , ' ') pyproject.toml \
	    --output-file requirements/$${extras%%:*}.lock; \
	done
	@for tool in uv hatchling; do \
	  echo $$tool | $(BIN)/uv pip compile --quiet --universal --upgrade --generate-hashes --python-version 3.11 \
	    --custom-compile-command 'make lock' - --output-file requirements/$$tool.lock; \
	done

clean:
	rm -rf $(VENV) .gleaner .gleaner-bench .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
