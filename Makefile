# `make up` and `make test` set up .venv first, which takes a minute once.

PYTHON ?= python3
DATA ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help up venv test reliability mutants compose-test lint bench bench-access bench-score bench-gaps bench-words bench-public bench-peers docs dist sbom lock audit clean

help:
	@echo 'make up [DATA=routes.csv] [ARGS="--champion spline"]   set up, train once, run everything until Ctrl-C'
	@echo 'make test [ARGS="-k schema"]                           set up and run the tests'
	@echo 'make lint | reliability | mutants | compose-test | bench | bench-access | bench-score | bench-gaps | bench-words | bench-public | bench-peers | docs | dist | sbom | lock | audit | clean'

up: venv
	@exec $(BIN)/gleaner up $(DATA) $(ARGS)

# Three files at a time: tests wait for processes to start and end. The order is that of tests/conftest.py.
test: venv
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

# Tests that take too long for every run: kills and stops at more moments, more load and damaged input, a soak, every
# drill, and schemathesis. It asserts times, so nothing else should run on the machine.
reliability: venv
	@MOMENTS=20 CONTRACT_EXAMPLES=1000 CONNECTIONS=1300 STOPS=300 RELIABILITY_TABLE=docs/reliability.md \
	  $(BIN)/python -m pytest --timeout 3000 tests/reliability tests/integration/test_protocols.py \
	  tests/integration/test_formats.py tests/integration/test_drill_command.py tests/running/test_supervisor.py \
	  tests/scoring/test_csv.py tests/scoring/test_score.py
	@MOMENTS=20 $(BIN)/python -m pytest -n 2 --dist loadfile --timeout 3000 -m slow --ignore tests/reliability

# Small changes of the source that the tests should see: at most two hours. ARGS="--mutants 20 --part table" tries fewer.
mutants: venv
	@$(PYTHON) -m venv --clear .venv-mutants
	@$(BIN)/uv pip install --quiet --python .venv-mutants/bin/python cosmic-ray==8.7.0
	@.venv-mutants/bin/python tests/mutants/run.py $(ARGS)

# docker-compose.yml, built and run without Docker; needs root on Debian.
compose-test: venv
	@$(BIN)/python tests/compose/prove.py $(ARGS)

lint: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python tests/lint_words.py
	@tests/lint_rules.sh
	@tests/lint_units.sh
	@$(BIN)/hadolint --failure-threshold warning deploy/Dockerfile
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

bench: venv
	@$(BIN)/python bench/serving.py
	@$(BIN)/python bench/training.py

bench-access: venv
	@$(BIN)/python bench/access.py $(ARGS)

bench-score: venv
	@$(BIN)/python bench/scoring.py

bench-gaps: venv
	@$(BIN)/python bench/gaps.py $(ARGS)

bench-words: venv
	@$(BIN)/python bench/words.py $(ARGS)

bench-public: venv
	@$(BIN)/python bench/public_tables.py $(ARGS)

bench-peers: venv
	@$(BIN)/python bench/comparison.py $(ARGS)

# The locked versions, checked by hash. uv takes seconds; pip takes over if uv cannot reach the index that pip is set up for.
venv: $(VENV)/.made

$(VENV)/.made: pyproject.toml requirements/uv.lock requirements/dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: wanted Python 3.11 or newer, got $(PYTHON) " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
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
	@$(BIN)/python docs/make_cli.py > docs/cli.md
	@$(BIN)/gleaner config render --for compose

# The sdist and the wheel made from it, with checked metadata. A fresh environment then tries the wheel.
dist: venv
	@rm -rf dist
	@$(BIN)/uv build --quiet --no-build-isolation --python $(BIN)/python
	@$(BIN)/twine check --strict dist/*
	@$(BIN)/python tests/wheel/prove.py

# A software bill of materials for each PART of the image: sbom/PART.cdx.json, in CycloneDX.
sbom: venv
	@$(BIN)/python requirements/make_sbom.py sbom

# The newest versions that pyproject.toml allows, with hashes. An image of each PART installs one of these locks;
# all of them can check signatures.
lock: venv
	@for extras in serve:--extra=signing $(foreach extra,train parquet monitoring,$(extra):--extra=$(extra),--extra=signing) \
	    dev:--all-extras,--group=dev; do \
	  $(BIN)/uv pip compile --quiet --universal --upgrade --generate-hashes --python-version 3.11 \
	    --custom-compile-command 'make lock' $$(echo $${extras#*:} | tr , ' ') pyproject.toml \
	    --output-file requirements/$${extras%%:*}.lock; \
	done
	@for tool in uv hatchling; do \
	  echo $$tool | $(BIN)/uv pip compile --quiet --universal --upgrade --generate-hashes --python-version 3.11 \
	    --custom-compile-command 'make lock' - --output-file requirements/$$tool.lock; \
	done

# Known advisories for the locked versions; needs a network. ARGS go to pip-audit.
audit: venv
	@$(BIN)/python requirements/audit.py $(ARGS)

clean:
	rm -rf $(VENV) .venv-mutants .gleaner .gleaner-bench .pytest_cache .mypy_cache .ruff_cache .hypothesis dist sbom
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
