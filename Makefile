# Two commands set everything up on a fresh machine: `make run`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-all clean

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

clean:
	rm -rf $(VENV) runs build *.egg-info
