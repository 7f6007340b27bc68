#!/usr/bin/env bash
# Everything that needs a GPU, in stages of under eight minutes: build, tests, compute-sanitizer, microbenchmarks.
#
#   scripts/gpu_check.sh [--output FOLDER] [STAGE...]    on a machine with an NVIDIA GPU, PyTorch with CUDA, nvcc, cmake
#   scripts/gpu_check.sh --dry-run                       every stage on the CPU, on tiny sizes: does the script work?
#
# Results are one JSON file per stage in FOLDER (default benchmarks/results/<gpu>). A stage goes on where it was stopped;
# one that is complete is skipped. SPARSEGNN_LIBRARIES=FOLDER takes libraries that are built already.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
options=() stages=()
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) options+=("$1") ;;
    --output) options+=("$1" "$2"); shift ;;
    -*) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
    *) stages+=("$1") ;;
  esac
  shift
done
cd "$root" || exit 1
[ ${#stages[@]} -gt 0 ] || mapfile -t stages < <("$python" benchmarks/gpu_check.py --list)
case " ${options[*]-} " in *" --dry-run "*) exec "$python" benchmarks/gpu_check.py "${options[@]}" "${stages[@]}" ;; esac
failed=()
for stage in "${stages[@]}"; do
  # The stage stops by itself after seven minutes; the limit is for one that hangs.
  timeout -k 10 480 "$python" -u benchmarks/gpu_check.py "${options[@]}" "$stage" || failed+=("$stage")
done
[ ${#failed[@]} -eq 0 ] || { echo "not complete: ${failed[*]} (run again to go on)"; exit 1; }
