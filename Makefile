# `make` alone prints the targets. Each one does its own set-up, in .venv; `make test` also installs Debian's chromium
# (for the browser tests) when it is missing and it may.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-oldest test-peers lint types format browser bench bench-quality evaluation clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv with everything that development needs

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.x")'
	@$(PYTHON) -m venv .venv || { echo 'no venv here: install it (Debian: apt-get install python3-venv) and try again'; exit 1; }
	@echo 'installing into .venv (two minutes or so the first time)'
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## find, show, switch off and amplify a concept in a real model, and report it
	@$(BIN)/monosem demo

test: lint types browser  ## lint, type check and every test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

# PyPI's torch 2.6 brings CUDA, gigabytes of it
OLDEST ?= torch==2.6.0 transformers==5.23.0
test-oldest:  ## the tests with the oldest allowed torch and transformers (own environment, .venv-oldest)
	@test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	@.venv-oldest/bin/pip install --quiet --disable-pip-version-check -e '.[dev]' $(OLDEST)
	OMP_NUM_THREADS=1 .venv-oldest/bin/pytest -n 2

lint: $(READY)  ## style, without changing anything
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY)  ## type check
	$(BIN)/mypy

format: $(READY)  ## fix the style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

SUDO := $(if $(filter 0,$(shell id -u)),,sudo -n)

browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null \
	|| { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -qq -y chromium chromium-driver; } >/dev/null 2>&1 \
	|| echo 'no chromium here and it cannot be installed: the browser tests will be skipped'

# TransformerLens 4 in a folder of its own: SAELens does not allow it; nor does sae-dashboard the transformers of today
DASHBOARD := sae-dashboard==0.8.0 eindex-callum==0.1.2 dataclasses-json==0.6.7 marshmallow==3.26.1 typing-inspect==0.9.0 \
	mypy-extensions==1.1.0 matplotlib==3.10.8 contourpy==1.3.3 cycler==0.12.1 fonttools==4.61.1 kiwisolver==1.4.9 \
	pyparsing==3.3.1 pillow==12.1.0
bench: browser  ## measure against SAELens, TransformerLens and nnsight (own environment, .venv-bench)
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -r bench/requirements.txt -e .
	@test -d .venv-bench/transformer-lens-4 || .venv-bench/bin/pip install --quiet --disable-pip-version-check --no-deps \
		--target .venv-bench/transformer-lens-4 transformer-lens==4.3.0
	@test -d .venv-bench/direction-peers || .venv-bench/bin/pip install --quiet --disable-pip-version-check --no-deps \
		--target .venv-bench/direction-peers repeng==0.4.0 steering-vectors==0.12.2 gguf==0.19.0
	@test -d .venv-bench/dashboard-peers || .venv-bench/bin/pip install --quiet --disable-pip-version-check --no-deps \
		--target .venv-bench/dashboard-peers $(DASHBOARD)
	.venv-bench/bin/python bench/run.py

SHIPPED = $(patsubst src/monosem/assets/%/cfg.json,%,$(wildcard src/monosem/assets/smollm2/*/cfg.json))

evaluation: $(READY)  ## every benchmark for the shipped dictionaries, in one report (runs/evaluation; goes on where it stopped)
	OMP_NUM_THREADS=1 $(BIN)/monosem benchmark $(SHIPPED) --out runs/evaluation

bench-quality:  ## train beside SAELens on the same activations, and judge both (after `make bench`)
	.venv-bench/bin/python bench/run.py --only quality

PEERS := .venv-peers

# Both versions of TransformerLens are called transformer_lens: 3.9 has a folder of its own. So have the dictionary
# packages, which ask for versions that exclude each other, and SAELens for TransformerLens before 4
test-peers:  ## TransformerLens, tuned-lens and four dictionary packages beside monosem (own environment, .venv-peers)
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -r peers/requirements.txt -e .
	@test -d $(PEERS)/transformer-lens-3 || $(PEERS)/bin/pip install --quiet --disable-pip-version-check --no-deps \
		--target $(PEERS)/transformer-lens-3 transformer-lens==3.9.0 better-abc==0.0.3
	@test -d $(PEERS)/tuned-lens || $(PEERS)/bin/pip install --quiet --disable-pip-version-check --no-deps \
		--target $(PEERS)/tuned-lens tuned-lens==0.2.0
	@test -d $(PEERS)/dictionaries || $(PEERS)/bin/pip install --quiet --disable-pip-version-check --no-deps \
		--target $(PEERS)/dictionaries sae-lens==6.54.12 eai-sparsify==1.3.3 dictionary-learning==0.1.0 circuit-tracer==0.5.0
	OMP_NUM_THREADS=1 $(PEERS)/bin/python -m pytest peers
	OMP_NUM_THREADS=1 PYTHONPATH=$(PEERS)/transformer-lens-3:$(PEERS)/tuned-lens:$(PEERS)/dictionaries \
		$(PEERS)/bin/python -m pytest peers

clean:  ## remove .venv, caches and builds
	rm -rf .venv .venv-oldest .venv-bench .venv-peers .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
