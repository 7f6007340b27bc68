#!/usr/bin/env bash
# Everything that needs a GPU, most telling first: every op right, the cost model's predictions beside measurements,
# tests, README's rows; then compute-sanitizer and the rest of the suite h200. About 14 minutes with libraries at hand.
#
#   scripts/gpu_check.sh [--output FOLDER] [--seconds N] [STAGE...]   with an NVIDIA GPU, PyTorch with CUDA, nvcc, cmake
#   scripts/gpu_check.sh --dry-run                       every stage on the CPU, on tiny sizes: does the script work?
#   scripts/gpu_check.sh --list                          the stages
#   scripts/gpu_check.sh --carry                         builds the libraries without a GPU, for build/gpu/lib to be
#                                                        carried to one that is lent; do they and the checkout fit?
#
# Results are JSON files in FOLDER (default benchmarks/results/<gpu>; another FOLDER begins with what is there). A run
# goes on where the last one was stopped, after N seconds say; a stage that is complete is skipped. The table comes last.
# Of a lease whose commands end after ten minutes: --seconds 560, twice, with the results of the first brought along.
# SPARSEGNN_LIBRARIES=FOLDER takes libraries that are built already.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
options=() stages=() seconds=100000
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) options+=("$1") ;;
    --output) options+=("$1" "$(realpath -m "$2")"); shift ;;
    --seconds) seconds=$2; shift ;;
    --list) exec "$python" "$root/benchmarks/gpu/stages.py" --list ;;
    --carry) exec "$python" "$root/benchmarks/gpu/carry.py" --build ;;
    -*) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 2 ;;
    *) stages+=("$1") ;;
  esac
  shift
done
cd "$root" || exit 1
case " ${options[*]-} " in
  *" --dry-run "*) exec "$python" benchmarks/gpu/stages.py --table "${options[@]}" ${stages[@]+"${stages[@]}"} ;;
esac
[ ${#stages[@]} -gt 0 ] || mapfile -t stages < <("$python" benchmarks/gpu/stages.py --list)
failed=()
for stage in "${stages[@]}"; do
  left=$((seconds - SECONDS))
  if [ $left -lt 20 ]; then
    failed+=("$stage")
    continue
  fi
  # The stage stops by itself after seven minutes or in time; the limit is for one that hangs.
  limit=$((left < 480 ? left : 480))
  timeout -k 10 $limit "$python" -u benchmarks/gpu/stages.py --seconds $((limit > 60 ? limit - 15 : limit)) \
    ${options[@]+"${options[@]}"} "$stage" || failed+=("$stage")
done
"$python" benchmarks/gpu/stages.py --table ${options[@]+"${options[@]}"}
[ ${#failed[@]} -eq 0 ] || { echo "not complete: ${failed[*]} (run again to go on)"; exit 1; }
