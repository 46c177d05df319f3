# Thin names for a few commands. The first run of each creates .venv and installs what it needs;
# later runs start at once, until pyproject.toml or constraints.txt changes.
#
#   make demo                            the browser demo
#   make demo ARGS="--port 7861"         arguments for the command itself
#   make test ARGS="-k masking" JOBS=4   arguments for pytest, and its number of processes
#   make check                           what can be checked in a few minutes, before each commit

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
ARGS ?=
JOBS ?= 2

PIP := .venv/bin/python -m pip --disable-pip-version-check
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: help install demo check test lint bench clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

install: .venv/.installed  ## create .venv and install maskimg into it

demo: .venv/.installed  ## open the browser demo with the bundled model
	.venv/bin/maskimg demo $(ARGS)

check: lint  ## lint, types, the fast tests
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(JOBS) --dist worksteal $(ARGS) $$(cat tests/fast.txt)

test: lint  ## lint, types, the whole test suite
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: .venv/.installed-dev  ## ruff and pyright
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

bench: .venv/.installed  ## speed of the bundled model on this machine
	.venv/bin/python benchmarks/speed.py $(ARGS)

clean:  ## remove build products and caches; keeps .venv, runs/ and out/
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

# An environment with a pip of its own. One that already works is kept.
.venv/.created:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "maskimg needs Python 3.11 or newer, and there is no \`$(PYTHON)\`: install one, or name it with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { \
	  echo "maskimg needs Python 3.11 or newer, and \`$(PYTHON)\` is $$($(PYTHON) -V 2>&1): name a newer one, as in make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PIP) --version >/dev/null 2>&1 && .venv/bin/python -c '$(NEW_ENOUGH)' \
	  || $(PYTHON) -m venv --clear .venv \
	  || { echo "\`$(PYTHON) -m venv\` failed: on Debian and Ubuntu, install the package python3-venv" >&2; exit 1; }
	@touch $@

.venv/.installed: .venv/.created pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e .
	@touch $@

# The link is for pyright alone, see [tool.pyright] in pyproject.toml.
.venv/.installed-dev: .venv/.created pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e '.[dev]'
	@mkdir -p .venv/mapped && ln -sfn ../../apps .venv/mapped/maskimg_apps
	@touch .venv/.installed $@
