#!/usr/bin/env bash
# Installs torch-scatter and torch-sparse, baselines and interop peers of the tests and benchmarks, into an environment:
# from prebuilt wheels beside the checkout if they fit it, else from source with SPARSEGNN_PEERS=build (14 minutes on
# two cores), else not at all: what needs them is then skipped.
set -eu
bin=$1
"$bin/python" -c "import torch_sparse, torch_scatter" 2>/dev/null && exit 0
if "$bin/pip" install -q --disable-pip-version-check --no-index --no-deps ../shared/wheels/torch_*.whl 2>/dev/null; then
  exit 0
fi
if [ "${SPARSEGNN_PEERS:-}" = build ]; then
  "$bin/pip" install -q --disable-pip-version-check --no-build-isolation torch-scatter torch-sparse
else
  echo "torch-scatter and torch-sparse are not installed (SPARSEGNN_PEERS=build builds them); their tests are skipped"
fi
