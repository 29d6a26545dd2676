# Targets for people and for .ci/run. `make` lists them.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip
STAMP := $(VENV)/.installed
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install test lint types demo clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv and install the pinned versions (PYTHON=python3.12 chooses the Python)

test: $(STAMP) ## run the tests (ARGS="-m slow" for the long ones)
	$(VENV)/bin/python -m pytest $(ARGS)

lint: $(STAMP) ## check style and formatting
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

types: $(STAMP) ## check the type annotations
	$(VENV)/bin/python -m mypy

demo: $(STAMP) ## run the whole path on a small example
	PYTHON="$(CURDIR)/$(VENV)/bin/python" bash configs/demo.sh

clean: ## remove caches and build outputs; .venv, data/ and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -path ./.git -prune -o -type d -name __pycache__ -exec rm -rf {} +

$(VENV)/bin/python:
	@command -v "$(PYTHON)" >/dev/null || \
		{ echo "No Python at '$(PYTHON)': name one of 3.10 or newer, make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python must be 3.10 or newer, got $$("$(PYTHON)" --version 2>&1): make PYTHON=python3.12" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

# A constraints file does not reach pip's isolated build environment, so the pinned setuptools builds in .venv itself.
$(STAMP): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --constraint constraints.txt setuptools
	$(PIP) install --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	touch $@
