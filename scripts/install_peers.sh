#!/usr/bin/env bash
# Installs the peers of the tests and benchmarks into an environment: torch-scatter and torch-sparse (baselines and
# interop) from prebuilt wheels beside the checkout if they fit it, else from source with SPARSEGNN_PEERS=build
# (14 minutes on two cores), else not at all; and baselines of the benchmarks: sparselab where it has a wheel, SparseProp
# with SPARSEGNN_PEERS=build (its code with C++17 in place of C++11, which the headers of pybind11 need). Where nvcc is,
# what reads its machine code. What needs a missing one is skipped.
set -eu
bin=$1
if ! "$bin/python" -c "import torch_sparse, torch_scatter" 2>/dev/null; then
  if "$bin/pip" install -q --disable-pip-version-check --no-index --no-deps ../shared/wheels/torch_*.whl 2>/dev/null; then
    :
  elif [ "${SPARSEGNN_PEERS:-}" = build ]; then
    "$bin/pip" install -q --disable-pip-version-check --no-build-isolation torch-scatter torch-sparse
  else
    echo "torch-scatter and torch-sparse are not installed (SPARSEGNN_PEERS=build builds them); their tests are skipped"
  fi
fi
if ! "$bin/python" -c "import sparselab" 2>/dev/null; then
  "$bin/pip" install -q --disable-pip-version-check --only-binary :all: --no-deps sparselab==0.2.2 2>/dev/null ||
    echo "sparselab is not installed (no wheel for this Python and machine); benchmarks leave it out"
fi
if command -v nvcc > /dev/null && ! command -v cuobjdump > /dev/null; then
  "$bin/pip" install -q --disable-pip-version-check --only-binary :all: --no-deps \
    nvidia-cuda-cuobjdump==13.5.37 nvidia-cuda-nvdisasm==13.5.37 2>/dev/null ||
    echo "cuobjdump is not installed: the instructions of CUDA kernels are not counted"
fi
if [ "${SPARSEGNN_PEERS:-}" = build ] && ! "$bin/python" -c "import sparseprop" 2>/dev/null; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  "$bin/pip" install -q --disable-pip-version-check pybind11
  PATH="$bin:$PATH" "$bin/pip" download -q --disable-pip-version-check --no-deps --no-build-isolation --no-binary :all: \
    -d "$folder" sparseprop==0.1.14
  tar -xzf "$folder"/sparseprop-*.tar.gz -C "$folder"
  sed -i 's/-std=c++11/-std=c++17/' "$folder"/sparseprop-*/setup.py
  PATH="$bin:$PATH" "$bin/pip" install -q --disable-pip-version-check --no-build-isolation --no-deps \
    "$folder"/sparseprop-*/
fi
