# `make help` lists the targets. Everything is installed into VENV, which is made where it is missing;
# VENV=$VIRTUAL_ENV uses an environment of your own, with the torch that it holds.

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?= --disable-pip-version-check --quiet
# The torch to install where VENV has none: the newest where a GPU is visible, else a fixed one.
TORCH ?= $(shell nvidia-smi -L > /dev/null 2>&1 && echo 'torch>=2.11' || echo 'torch==2.13.0')

PY := $(VENV)/bin/python
STAMP := $(VENV)/.vsegops
EXTRAS_demo := models
EXTRAS_bench := bench
EXTRAS_test := models,bench,test,triton
EXTRAS_lint := lint
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)
CXX_FILES := $(shell find csrc tests/cuda_host -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help build demo test bench lint format wheel clean distclean
.DELETE_ON_ERROR:

help: ## what there is
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(STAMP)-demo ## predict the frames of a real video, segment it; writes demo-output/ (ARGS="--frames 24")
	$(PY) -m vsegops.models.video.demo $(ARGS)

test: $(STAMP)-test ## run the tests (ARGS="-k warp"; ARGS="-n 0 --pdb" in one process)
	$(PY) -m pytest -n auto --maxprocesses 4 $(ARGS)

bench: $(STAMP)-bench ## run the benchmarks, some 20 minutes on a CPU (ARGS=--quick for a look)
	$(PY) -m bench run $(ARGS)

lint: $(STAMP)-lint ## check style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)

format: $(STAMP)-lint ## put Python and C++ into the project's style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

build: $(STAMP)-demo ## compile the kernels, install in place
	$(PY) -m vsegops

wheel: $(STAMP)-torch ## build a wheel for VENV's torch and its successors: dist/
	$(PY) -m pip wheel $(PIP_FLAGS) --no-deps --wheel-dir dist .

clean: ## remove what was compiled, measured and written
	rm -rf build dist *.egg-info vsegops/lib vsegops/_codec.*.so demo-output bench/output
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .ci/work
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
	rm -f $(STAMP)-demo $(STAMP)-test $(STAMP)-bench $(STAMP)-lint

distclean: clean ## clean, and remove the environments made here
	rm -rf .venv .venv-cuda

$(PY):
	$(PYTHON) -m venv $(VENV)

$(STAMP)-torch: | $(PY)
	$(PY) -c 'import torch' 2> /dev/null || $(PY) -m pip install $(PIP_FLAGS) '$(TORCH)'
	touch $@

# pip compiles what has changed and adds the packages that the target needs.
$(STAMP)-%: $(STAMP)-torch $(SOURCES)
	@echo "compiling and installing into $(VENV) (a minute or two the first time)"
	$(PY) -m pip install $(PIP_FLAGS) --editable '.[$(EXTRAS_$*)]'
	touch $@
