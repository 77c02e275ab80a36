#!/usr/bin/env bash
# Everything that only an NVIDIA GPU can say: builds the extension in place for the card that is
# found, and runs the tests, compute-sanitizer and the benchmark on it.
#
#   tools/gpu_check.sh OUT [build|test|families|networks|sanitize|bench|models ...]
#
# By default all parts, in this order: `test` is the contract of every operator, `families` what
# belongs to each alone, `networks` the models, streams through CUDA graphs and training.
#
# OUT gets a log for each part, an .xml for those that are tests, bench/, summary.txt and
# summary.json. The exit status is 0 if no part failed; a part that cannot run here (no
# compute-sanitizer, say) is skipped and says so.
#
#   PYTHON             the interpreter, with torch and the package's test and bench extras: python3
#   GPU_CHECK_SECONDS  time for everything; what is not done by then fails: 570
set -u -o pipefail

if [ $# -lt 1 ]; then
  sed -n '2,16s/^# \{0,1\}//p' "$0"
  exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
shift
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(build test families networks sanitize bench models)
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
deadline=$((SECONDS + ${GPU_CHECK_SECONDS:-570}))
export PYTHONUNBUFFERED=1

skip() {  # a part's way to say why it cannot run
  echo "skipped: $*"
  return 77
}

# limit SECONDS COMMAND...: stopped after so long, or when the time for everything is over.
limit() {
  local left=$((deadline - SECONDS)) most=$1
  shift
  [ "$left" -lt "$most" ] && most=$left
  if [ "$most" -lt 1 ]; then
    echo "no time left for: $*"
    return 124
  fi
  timeout --kill-after=10 "$most" "$@"
  local status=$?
  [ $status -eq 124 ] && echo "stopped after $most s: $*"
  return $status
}

capability() {
  "$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())'
}

run_build() {
  local architecture
  architecture=$(capability) || return
  echo "building for compute capability $architecture"
  TORCH_CUDA_ARCH_LIST=$architecture limit 240 "$python" setup.py -q build_ext --inplace || return
  # A build without CUDA kernels succeeds too, and says why: here that is a failure.
  "$python" - << 'END'
import sys
import vsegops
print(*(f"{name}: {status.reason}" for name, status in vsegops.backends().items()), sep="\n")
sys.exit(not vsegops.backends()["cuda"])
END
}

tested() {  # NAME TEST...: in several processes where pytest-xdist is installed
  local name=$1 parallel=()
  shift
  "$python" -c 'import xdist' 2> /dev/null && parallel=(-n 6)
  # The package finds its models where an editable install would.
  [ -e vsegops/models ] || ln -s ../models vsegops/models
  limit 300 "$python" -m pytest -q -p no:cacheprovider --junitxml="$out/$name.xml" \
    "${parallel[@]}" --durations=10 --backend cuda --backend triton -m "not cuda_build" "$@"
}

run_test() {
  tested test tests/test_contract.py tests/test_torch.py tests/test_cuda_build.py
}

run_families() {
  tested families tests/test_warp.py tests/test_dual_warp.py tests/test_guided_filter.py \
    tests/test_attention.py tests/test_dense_head.py tests/test_fuzz.py
}

run_networks() {
  tested networks tests/test_gpu.py tests/test_fake_cuda.py
}

run_sanitize() {
  local tool status=0
  local filter=(--kernel-name kernel_substring=vsegops)
  local probe=("$python" -c 'import torch; torch.zeros(1, device="cuda").item()')
  command -v compute-sanitizer > /dev/null || { skip "compute-sanitizer was not found"; return; }
  if ! limit 60 compute-sanitizer "${filter[@]}" "${probe[@]}"; then
    filter=()
    limit 60 compute-sanitizer "${probe[@]}" \
      || { skip "compute-sanitizer cannot watch this device (see above)"; return; }
  fi
  # PyTorch's allocator would hand out parts of blocks: accesses beside a tensor would go unseen.
  for tool in memcheck racecheck synccheck; do
    echo "=== $tool"
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 limit 60 compute-sanitizer --tool "$tool" \
      --error-exitcode 9 "${filter[@]}" "$python" -m pytest -q -x -p no:cacheprovider \
      --backend cuda -k "test_agrees_with_the_truth and (float32 or float16) and not +" \
      tests/test_contract.py || status=1
  done
  return $status
}

run_bench() {
  local left=$((deadline - SECONDS)) # of which a minute is kept for what follows the measuring
  [ "$left" -gt 120 ] || { echo "no time left for the benchmark"; return 124; }
  limit "$left" "$python" -m bench run --device cuda --backend cuda triton \
    --dtype float32 float16 bfloat16 --compile-jobs "$(nproc)" --seconds $((left - 60)) \
    --output "$out/bench"
}

run_models() {
  [ -e vsegops/models ] || ln -s ../models vsegops/models
  limit 200 "$python" -m bench.models --device cuda --output "$out/bench"
}

failed=0
results=()
for part in "${parts[@]}"; do
  case $part in
    build | test | families | networks | sanitize | bench | models) ;;
    *)
      echo "no such part: $part" >&2
      exit 2
      ;;
  esac
done
for part in "${parts[@]}"; do
  began=$SECONDS
  echo "--- $part"
  "run_$part" 2>&1 | tee "$out/$part.log"
  status=${PIPESTATUS[0]}
  case $status in
    0) word=passed ;;
    77) word=skipped ;;
    *) word=failed failed=1 ;;
  esac
  results+=("$part $word $status $((SECONDS - began))")
done

"$python" - "$out" "${results[@]}" << 'END'
import json
import pathlib
import platform
import subprocess
import sys

out, *results = sys.argv[1:]


def first_line(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return (done.stdout or done.stderr).strip().splitlines()[-1:] or [""]


summary = {
    "python": platform.python_version(),
    "nvcc": first_line("nvcc", "--version"),
    "driver": first_line("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
    "parts": [],
}
try:
    import torch

    summary["torch"] = torch.__version__
    summary["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
except Exception as error:
    summary["torch"] = f"{type(error).__name__}: {error}"
for result in results:
    part, word, status, seconds = result.split()
    log = pathlib.Path(out, f"{part}.log").read_text(errors="replace").strip().splitlines()
    summary["parts"].append(
        {
            "part": part,
            "result": word,
            "status": int(status),
            "seconds": int(seconds),
            "last_line": log[-1] if log else "",
        }
    )
lines = [
    f"{p['part']:9} {p['result']:8} {p['seconds']:4} s   {p['last_line'][:120]}"
    for p in summary["parts"]
]
pathlib.Path(out, "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
pathlib.Path(out, "summary.txt").write_text("\n".join(lines) + "\n")
print("\n" + "\n".join(lines))
END
[ $? -eq 0 ] || failed=1
exit $failed
