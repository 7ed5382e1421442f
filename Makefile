# Two commands set everything up on a fresh machine: `make run`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-all tpu-compile clean

# The main job on a small simulated log, to a written report.
run: $(VENV)/.installed
	$(BIN)/python -m dynllm_jax.main --config=configs/demo.py --workdir=runs/demo

# Each contract once for each system, at tiny width.
test: $(VENV)/.installed
	$(BIN)/python -m pytest -q -n 2 --dist=worksteal

# Every combination.
test-all: $(VENV)/.installed
	$(BIN)/python -m pytest -q -n 2 --dist=worksteal --all-combinations

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

# Compiles for TPU slices, without a TPU; takes minutes and jax[tpu].
tpu-compile:
	$(PYTHON) -m venv .venv-tpu
	.venv-tpu/bin/pip install --quiet -c constraints.txt -e '.[tpu]'
	.venv-tpu/bin/python -m experiments.tpu_compile

clean:
	rm -rf $(VENV) .venv-tpu runs build *.egg-info
