# What there is to do here, each in one command; `make` alone lists it.
# .venv is made by the first command that needs it, from the exact versions in constraints.txt; it is used at once after that.

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -m
ARGS ?=
ROWS ?=
PLATFORM ?=
unexport PYTHONDONTWRITEBYTECODE  # each of many commands would compile all that it imports, again and again

.DEFAULT_GOAL := help
.PHONY: help setup train ui up status down deploy check hooks test test-all gpu constraints clean

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-12s %s\n' "$$name" "$$text"; done

setup: .venv/.installed-local  ## make .venv with what a run needs

train: .venv/.installed-local  ## train a model; ARGS='--preset notebook', ROWS=20000000 for more generated rows
	@$(RUN) deployments.local $(if $(ROWS),--rows $(ROWS)) -- $(RUN) flows.training $(ARGS)

ui: .venv/.installed-local  ## open Prefect's and MLflow's pages on this machine, until Ctrl-C
	@$(RUN) deployments.pages

up: .venv/.installed-local  ## both pages, a worker, and the deployments on their schedules, until Ctrl-C; ROWS as above
	@$(RUN) deployments.up $(if $(ROWS),--rows $(ROWS))

status: .venv/.installed-local  ## what of `make up` runs, and what its worker does
	@$(RUN) deployments.up status

down: .venv/.installed-local  ## stop `make up`, as Ctrl-C does
	@$(RUN) deployments.up down

deploy: .venv/.installed-local  ## to the Prefect server of PREFECT_API_URL; PLATFORM=docker, kubernetes or ecs
	@$(RUN) deployments.applying $(if $(PLATFORM),--platform $(PLATFORM))

check: .venv/.installed-test  ## format, lint and types
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy

hooks:  ## let every commit call `make check` first
	git config core.hooksPath .githooks

# The stream's tests fork worker processes: they run in a process in which no Prefect engine has run before. Once one has, a
# forked child ends with exit code 1 (an assertion in Prefect's services at exit, which its own fork handler has reset).
# Without the long ones they wait for servers more than they compute: four processes on however few cores.
STREAM := tests/test_stream_*.py
OTHERS := --ignore-glob='tests/test_stream_*.py' --no-loadscope-reorder  # what takes longest first, not what has most tests

test: check  ## check, then the tests (some minutes)
	$(RUN) pytest -n 4 $(STREAM) $(ARGS)
	$(RUN) pytest $(OTHERS) $(ARGS)

test-all: check .venv/.installed-kernels  ## check, then every test, the long ones too
	$(RUN) pytest --long $(STREAM) $(ARGS)
	$(RUN) pytest --long $(OTHERS) $(ARGS)

gpu:  ## on a machine with a CUDA device: test and measure there, with PYTHON as it is, without .venv
	@$(PYTHON) -m tests.gpu

constraints: .venv/.installed-test  ## write constraints.txt anew: the newest versions that pyproject.toml admits
	$(RUN) pip install --quiet --disable-pip-version-check -c constraints.txt '.[tools]'
	$(RUN) uv pip compile --universal --python-version 3.11 --all-extras --upgrade --no-emit-index-url \
		--custom-compile-command 'make constraints' pyproject.toml -o constraints.txt

clean:  ## remove .venv and caches; .shardline, with all runs and generated data, stays
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info build $(KERNELS:.c=.*.so)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

KERNELS := tasks/streaming/formats/kernel.c tasks/learning/tally.c

.venv/.installed-local: pyproject.toml constraints.txt $(wildcard $(KERNELS))
	@$(call install,local)

.venv/.installed-test: pyproject.toml constraints.txt $(wildcard $(KERNELS))
	@$(call install,local$(comma)test)
	@touch .venv/.installed-local

.venv/.installed-kernels: .venv/.installed-test
	@$(call install,local$(comma)test$(comma)kernels)

comma := ,

# $(1): the extras to install. One line for what is missing, one when it is done. Compiled by all cores: pip takes one,
# and some packages hold templates that are no Python yet.
define install
	set -e; began=$$(date +%s); \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "shardline needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1 | tail -n 1):" \
			"make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "Python's venv is missing; install the package python3-venv (or" \
			"$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'))," \
			"then again: make $(MAKECMDGOALS)" >&2; exit 1; }; \
	echo "Setting up .venv with the versions of constraints.txt; some minutes the first time." >&2; \
	$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv; \
	$(RUN) pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[$(1)]'; \
	$(RUN) compileall -qq -j 0 -x /tests/ .venv/lib || true; \
	touch $@; \
	decoder=$$($(BIN)/python -c 'from tasks.streaming.formats import native; print(native.describe_decoder())'); \
	echo "Set up in $$(( $$(date +%s) - began )) s. CSV will be decoded by $$decoder." >&2
endef
