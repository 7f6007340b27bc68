# Two commands: `make demo` and `make test`. Everything else serves them.
PYTHON ?= python3
VENV ?= .venv
# Another torch, for example a CUDA build: make demo TORCH="torch==2.11.0 --index-url ..."
TORCH ?= $(shell grep '^torch==' constraints.txt)
MAX_JOBS ?= $(shell nproc)

BIN = $(VENV)/bin
PIP = $(BIN)/pip install -q --disable-pip-version-check
PINNED = $(PIP) -c $(VENV)/constraints.txt
SOURCES = setup.py pyproject.toml CMakeLists.txt $(shell git ls-files cmake csrc sparsegnn)
export MAX_JOBS

.PHONY: demo test bench wheel lint format clean dev build-emulator build-ptxas

# Trains dense and 90 %-sparse GCN and GAT and prints one table: under five minutes on two cores.
demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

# The whole suite, against the installed package, a worker per processor; their OpenMP threads must not spin while they
# wait for each other. make test ARGS="-k spmm" runs a part of it.
test: $(VENV)/.test
	PATH="$(abspath $(BIN)):$(PATH)" $(MAKE) -s build-emulator build-ptxas
	PATH="$(abspath $(BIN)):$(PATH)" SPARSEGNN_STRICT=1 OMP_WAIT_POLICY=passive \
	  $(BIN)/pytest -n $(MAX_JOBS) --maxprocesses 8 --dist loadfile $(ARGS)

# Kernel microbenchmarks against dense torch, torch.sparse and the torch-sparse family.
bench: $(VENV)/.test
	SPARSEGNN_STRICT=1 $(BIN)/pytest benchmarks --benchmark-only $(ARGS)

# py3-none-<platform>: one wheel for every Python and every torch >= 2.10.
wheel: $(VENV)/.torch
	$(BIN)/pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps -w dist .

lint: $(VENV)/.torch
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files '*.h' '*.cpp' '*.cuh' '*.cu')

format: $(VENV)/.torch
	$(BIN)/ruff check --fix -q . && $(BIN)/ruff format -q .
	$(BIN)/clang-format -i $$(git ls-files '*.h' '*.cpp' '*.cuh' '*.cu')

clean:
	rm -rf build dist *.egg-info sparsegnn/*.so $(VENV)/.demo $(VENV)/.test

# --- environment -----------------------------------------------------------------------------------------------------

# torch first, and from then on pinned to what is there.
$(VENV)/.torch: constraints.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	(grep -v '^torch==' constraints.txt; $(BIN)/pip freeze | grep '^torch==') > $(VENV)/constraints.txt
	$(PINNED) "setuptools>=77" wheel cmake ninja numpy ruff clang-format
	touch $@

$(VENV)/.demo: $(VENV)/.torch $(SOURCES)
	SPARSEGNN_CUDA=$${SPARSEGNN_CUDA:-$$($(BIN)/python -c "import torch; print('auto' if torch.version.cuda else 'off')")} \
	  $(PINNED) --no-build-isolation ".[cli,pyg]"
	rm -f $(VENV)/.test && touch $@

$(VENV)/.test: $(VENV)/.torch $(SOURCES) scripts/install_peers.sh
	$(PINNED) --no-build-isolation ".[dev]"
	scripts/install_peers.sh $(BIN)
	rm -f $(VENV)/.demo && touch $@

# --- development: libraries in the source tree, with the python on the PATH; then PYTHONPATH=. ------------------------

CMAKE_FLAGS = -G Ninja -DSPARSEGNN_TORCH=$(shell python -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])")

dev:
	cmake -S . -B build/dev $(CMAKE_FLAGS) -DSPARSEGNN_CUDA=$(or $(SPARSEGNN_CUDA),off)
	cmake --build build/dev -j $(MAX_JOBS)

build-emulator:
	cmake -S . -B build/emulator $(CMAKE_FLAGS) -DSPARSEGNN_CUDA=off -DSPARSEGNN_EMULATOR=ON
	cmake --build build/emulator -j $(MAX_JOBS) --target sparsegnn_emulated sparsegnn_emulated_asan \
	  sparsegnn_emulated_entries

# PTX and register use of every CUDA kernel, for tests/test_cuda_build.py; nothing where nvcc is missing.
build-ptxas:
	cmake -S . -B build/cuda $(CMAKE_FLAGS) -DSPARSEGNN_CUDA=auto -DSPARSEGNN_OUTPUT=$(CURDIR)/build/cuda/lib
	cmake --build build/cuda -j $(MAX_JOBS) --target ptxas_logs
