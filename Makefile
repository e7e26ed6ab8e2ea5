# make demo  - install, write the videos, train VL-JEPA, evaluate, leave a report
# make test  - install what the tests need and run them
PYTHON ?= python3
VENV ?= .venv
DEVICES ?= 2
RUNS ?= runs
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo demo-baselines demo-long test test-slow soak fuzz precompile test-beam lint types clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is not Python 3.11 or later; name one: make demo PYTHON=python3.12" >&2; \
	  exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt requirements-text.txt setup.py | $(BIN)/python
	$(BIN)/pip install --disable-pip-version-check -q -r requirements.txt
	$(BIN)/pip install --disable-pip-version-check -q --no-deps --require-hashes -r requirements-text.txt
	$(BIN)/pip install --disable-pip-version-check -q --no-deps -e .
	@touch $@

# Beside the packages, not among them: see jepa/parallel/topology.py.
$(VENV)/.libtpu-installed: requirements-tpu-compile.txt | $(BIN)/python
	$(BIN)/pip install --disable-pip-version-check -q --no-deps --upgrade \
	  --target $(VENV)/libtpu -r requirements-tpu-compile.txt
	@touch $@

$(VENV)/.test-installed: requirements-test.txt $(VENV)/.installed
	$(BIN)/pip install --disable-pip-version-check -q -r requirements-test.txt
	@touch $@

demo: $(VENV)/.installed  ## Train VL-JEPA on the synthetic world and write report.html (DEVICES=2)
	$(BIN)/python -m experiments.quickstart --devices=$(DEVICES) --workdir=$(RUNS)/quickstart

demo-long: $(VENV)/.installed  ## Pretrain the X-encoder first, and say what that is worth
	$(BIN)/python -m experiments.demo_long --devices=$(DEVICES) --workdir=$(RUNS)/quickstart_long

demo-baselines: $(VENV)/.installed  ## make demo, and the same on single and on shuffled frames
	$(BIN)/python -m experiments.quickstart --devices=$(DEVICES) --workdir=$(RUNS)/quickstart \
	  --baselines

test: $(VENV)/.test-installed $(VENV)/.libtpu-installed  ## Run the tests (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest -n 2

test-slow: $(VENV)/.test-installed $(VENV)/.libtpu-installed  ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-beam:  ## Test data preparation with Apache Beam, in an environment of its own
	$(PYTHON) -m venv $(VENV)-beam
	$(VENV)-beam/bin/pip install --disable-pip-version-check -q -e ".[beam]" "google-cloud-storage>=3" "pytest>=8"
	$(VENV)-beam/bin/python -m pytest -q tests/data/test_beam.py

# Two of the pods' programs, quick ones; all of them: experiments.precompile --all.
precompile: $(VENV)/.installed $(VENV)/.libtpu-installed  ## Compile two train steps for TPU pods
	$(BIN)/python -m experiments.precompile --config=configs/pods.py:lejepa_huge@v5e_16x16 --spare=0.08
	$(BIN)/python -m experiments.precompile --config=configs/pods.py:vl_jepa@v5p_4x4x8 --phase=stage_1 \
	  --spare=0.08

soak: $(VENV)/.test-installed  ## Kill, starve and damage runs, and prove that nothing is lost (half an hour)
	$(BIN)/python -m tests.faults.soak --out=$(RUNS)/soak

fuzz: $(VENV)/.test-installed  ## Read 10,000 damaged videos (minutes)
	$(BIN)/python -m tests.faults.fuzz --out=$(RUNS)/fuzz

lint: $(VENV)/.test-installed  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test-installed  ## Check types
	$(BIN)/mypy

clean:  ## Remove the environment and caches, keep runs and data
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
