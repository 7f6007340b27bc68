# Two commands: `make demo` and `make test`. Everything else serves them.
PYTHON ?= python3
VENV ?= .venv
# A pinned CPU build unless another is given: make demo TORCH="torch==2.11.0 --index-url ..."
TORCH ?= $(shell grep '^torch==' constraints.txt)
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
SOURCES = $(shell find csrc sparsegnn cmake -type f -not -name '*.so' -not -name '*.pyc') CMakeLists.txt setup.py pyproject.toml

.PHONY: demo test bench wheel dev emulator build-emulator lint format clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: $(STAMP) emulator
	CI_ENV=$(CI) SPARSEGNN_STRICT=1 $(BIN)/pytest $(ARGS)

# --- environment -----------------------------------------------------------------------------------------------------

$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check $(TORCH)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt setuptools wheel ninja numpy
	touch $@

$(VENV)/.demo: $(VENV)/.torch $(SOURCES)
	SPARSEGNN_CUDA=$(or $(SPARSEGNN_CUDA),$(shell $(BIN)/python -c "import torch; print('auto' if torch.version.cuda else 'off')")) \
	  $(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -c constraints.txt ".[cli,pyg]"
	touch $@

$(STAMP): $(VENV)/.torch $(SOURCES)
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -c constraints.txt ".[dev]"
	scripts/install_peers.sh $(BIN)/pip
	touch $@

# --- development -----------------------------------------------------------------------------------------------------

CMAKE_FLAGS = -G Ninja -DSPARSEGNN_TORCH=$(shell python -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])")

# Libraries in the source tree, for PYTHONPATH=. or an editable install; uses the python on the PATH.
dev:
	cmake -S . -B build/dev $(CMAKE_FLAGS) -DSPARSEGNN_CUDA=$(or $(SPARSEGNN_CUDA),off)
	cmake --build build/dev -j $(or $(MAX_JOBS),2)

emulator: $(VENV)/.torch
	@if [ -f tests/csrc/CMakeLists.txt ]; then $(MAKE) -s build-emulator PATH="$(abspath $(BIN)):$(PATH)"; fi

build-emulator:
	cmake -S . -B build/emulator $(CMAKE_FLAGS) -DSPARSEGNN_CUDA=off -DSPARSEGNN_EMULATOR=ON
	cmake --build build/emulator -j $(or $(MAX_JOBS),2) --target sparsegnn_emulated sparsegnn_emulated_asan

wheel: $(STAMP)
	$(BIN)/pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps -w dist .

format:
	ruff check --fix -q . && ruff format -q .
	clang-format -i $$(git ls-files '*.h' '*.cpp' '*.cuh' '*.cu')

lint:
	ruff check . && ruff format --check .
	clang-format --dry-run -Werror $$(git ls-files '*.h' '*.cpp' '*.cuh' '*.cu')

clean:
	rm -rf build dist *.egg-info sparsegnn/*.so
