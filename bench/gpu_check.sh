#!/usr/bin/env bash
# gpu_check.sh [OPTIONS]: everything that only a GPU can show, in one command and under 8 minutes on 16 cores: builds for this machine's card,
# runs all tests on it, the four tools of compute-sanitizer on a reduced suite, 100 repeats bit for bit, CPU = GPU bit for bit, CUDA
# graphs, NCCL with one rank and its example where it is installed, the benchmarks, and the comparison with PyTorch where it is installed. Needs nvcc, cmake and python3.
#   --dependencies DIR   where doctest, Google Benchmark and nlohmann_json are, if not installed (gather_dependencies.sh makes such a folder;
#                        .gpu_deps is taken when it is there); the revision that it names is the report's, whatever git says here
#   --output DIR         where the report goes, as DATE-TIME-GPU.json and DATE-TIME-GPU.log (bench/results), in UTC
#   --build DIR          where to build (build/gpu_check)
#   --jobs N             compilers at a time (all cores)
#   --built [FILE]       take the folder of --build as it is: one that --rehearse left for a card of this compute capability, on a machine where the tree
#                        had the same path, as CMake's lists of tests ask; with FILE, that is first unpacked there
#   --deadline SECONDS   when to stop altogether (465); what is left by then is reported as out of time
#   --step-limit SECONDS no step may take longer, whatever its own limit
#   --rehearse [ARCH]    without a GPU and without a limit of time: only configure and build what the check would for a card of this compute
#                        capability (90), and load the library that PyTorch's comparison loads; errors that a compiler or linker finds come to light
#   --pack FILE          with --rehearse: what was built, without symbols, as a .tar.xz for --built
# Exit status: 0 all passed, 1 something did not, 2 it cannot be run as asked, 3 no GPU. A step that fails does not stop later ones.
set -euo pipefail
milliseconds() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }
started=$(milliseconds)
cd "$(dirname "$(readlink -f "$0")")/.."

command="bash bench/gpu_check.sh $*"
dependencies='' output=bench/results build=build/gpu_check jobs='' deadline=465 step_limit=100000 rehearse='' pack='' built=''
while [ $# -gt 0 ]; do
  case $1 in
    --dependencies | --output | --build | --jobs | --deadline | --step-limit | --pack)
      [ $# -ge 2 ] || { echo "gpu_check: $1 needs a value" >&2; exit 2; }
      declare "$(tr - _ <<<"${1#--}")=$2"
      shift 2
      ;;
    --built)
      built=yes
      if [[ ${2:-} =~ ^[^-] ]]; then
        built=$2
        shift
      fi
      shift
      ;;
    --rehearse)
      rehearse=90
      if [[ ${2:-} =~ ^[1-9][0-9]+[af]?$ ]]; then
        rehearse=$2
        shift
      fi
      shift
      ;;
    *)
      echo "gpu_check: unknown option $1; the first lines of $0 list them" >&2
      exit 2
      ;;
  esac
done
for number in "${jobs:-1}" "$deadline" "$step_limit"; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || { echo "gpu_check: $number is not a positive number" >&2; exit 2; }
done

# ---- the machine ---------------------------------------------------------------------------------------------------------------
if [ -n "$rehearse" ]; then
  capability=$rehearse
elif ! gpus=$(nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total --format=csv,noheader 2>/dev/null) || [ -z "$gpus" ]; then
  echo "gpu_check: no NVIDIA GPU on this machine (nvidia-smi finds none), so nothing was checked" >&2
  exit 3
else
  IFS=, read -r name driver capability memory <<<"${gpus%%$'\n'*}"
  capability=${capability//[ .]/}
fi
[ -x "$(command -v nvcc)" ] || PATH=$PATH:/usr/local/cuda/bin
python=${PYTHON:-python3}
for tool in nvcc cmake ctest "$python"; do
  command -v "$tool" >/dev/null || { echo "gpu_check: $tool is missing" >&2; exit 2; }
done
export CUDACXX=${CUDACXX:-$(command -v nvcc)}
[ -n "$dependencies" ] || { [ ! -d .gpu_deps ] || dependencies=.gpu_deps; }
if [ -n "$dependencies" ]; then
  [ -d "$dependencies" ] || { echo "gpu_check: $dependencies is not a folder" >&2; exit 2; }
  dependencies=$(readlink -f "$dependencies")
fi
jobs=${jobs:-$(nproc)}
[ -z "$pack" ] || [ -n "$rehearse" ] || { echo "gpu_check: --pack goes with --rehearse" >&2; exit 2; }
if [ -n "$built" ] && [ "$built" != yes ]; then
  [ -f "$built" ] || { echo "gpu_check: $built is not a file" >&2; exit 2; }
  mkdir -p "$build"
  tar -xJf "$built" -C "$build"
fi
[ -z "$built" ] || [ -f "$build/CTestTestfile.cmake" ] || { echo "gpu_check: $build holds nothing that was built" >&2; exit 2; }
mkdir -p "$build"
build=$(readlink -f "$build")

# ---- how to build --------------------------------------------------------------------------------------------------------------
generator=() keep_going=(-k)
if command -v ninja >/dev/null; then generator=(-G Ninja) keep_going=(-k 0); fi
# Several threads for a file, where nvcc knows how: the last files of a build have the machine to themselves.
cuda_flags="-O2 -Xcompiler=-O1"
[[ $("$CUDACXX" --help 2>/dev/null) != *'--split-compile '* ]] || cuda_flags+=" --split-compile=4"
to_configure=(cmake -S . -B "$build" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O2
  "-DCMAKE_CUDA_FLAGS_RELEASE=$cuda_flags" "-DCMAKE_CUDA_ARCHITECTURES=$capability-real" -DMOE_BALANCE_CUDA=ON -DMOE_BALANCE_GPU_CHECK=ON
  -DMOE_BALANCE_WARNINGS_AS_ERRORS=OFF -DMOE_BALANCE_EXAMPLES=ON "-DCMAKE_PREFIX_PATH=$dependencies")
to_build=(cmake --build "$build" --parallel "$jobs" --target all gpu_benchmarks -- "${keep_going[@]}")

if [ -n "$rehearse" ]; then
  fail() {
    echo "gpu_check: $1" >&2
    exit 1
  }
  "${to_configure[@]}" || fail "it does not configure"
  "${to_build[@]}" || fail "it does not build"
  for program in repeat dispatch_gpu router_gpu user_policy_gpu libcompare_cuda.so; do
    [ -f "$build/bench/$program" ] || fail "bench/$program was not built"
  done
  "$python" -c 'import ctypes, os, sys; ctypes.CDLL(sys.argv[1], os.RTLD_NOW)' "$build/bench/libcompare_cuda.so" || fail "libcompare_cuda.so does not load"
  [ -x "$build/tests/nccl/nccl_device_test" ] || echo "gpu_check: without NCCL 2.18, whose test and example were not built" >&2
  if [ -n "$pack" ]; then
    mkdir -p "$(dirname "$pack")"
    pack=$(readlink -f "$pack")
    packed=$(mktemp -d)
    trap 'rm -rf "$packed"' EXIT
    (cd "$build" && find . -name CMakeFiles -prune -o -type f \( -perm -u+x -o -name '*.so' -o -name CTestTestfile.cmake -o -name .ninja_log \) -print0 |
      xargs -0 cp --parents -t "$packed")
    find "$packed" -type f -exec strip {} + 2>/dev/null || true  # scripts have no symbols
    tar -cJf "$pack" -C "$packed" .
    echo "packed $(du -h "$pack" | cut -f 1) in $pack"
  fi
  echo "REHEARSED for $rehearse in $((($(milliseconds) - started) / 1000)) s: what the check builds compiles and links"
  exit 0
fi

mkdir -p "$output"
output=$(readlink -f "$output")
work=$build/gpu_check
rm -rf "$work"
mkdir -p "$work/steps" "$work/logs" "$work/junit" "$work/figures"
report=$output/$(date -u +%Y-%m-%d-%H%M)-$(tr 'A-Z ' 'a-z-' <<<"$name" | tr -cd 'a-z0-9-')

# A copy of a tree may have no .git, or one that knows nothing of what was copied over it, so what the dependencies say goes first.
revision=unknown
if [ -n "$dependencies" ] && [ -f "$dependencies/revision" ]; then
  revision="$(<"$dependencies/revision") when the dependencies were gathered"
elif git rev-parse HEAD >/dev/null 2>&1; then
  revision=$(git rev-parse HEAD)
  [ -z "$(git status --porcelain 2>/dev/null)" ] || revision="$revision with changes"
fi
{
  printf 'command\t%s\n' "$command"
  printf 'date\t%s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
  printf 'revision\t%s\n' "$revision"
  printf 'gpu\t%s\ndriver\t%s\ncompute_capability\t%s\ngpu_memory\t%s\n' "$name" "${driver# }" "$capability" "${memory# }"
  printf 'cuda\t%s\n' "$(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')"
  printf 'compiler\t%s\n' "$({ "${CXX:-c++}" --version 2>/dev/null || echo unknown; } | sed 1q)"
  printf 'cpu\t%s\n' "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | sed 1q)"
  printf 'cores\t%s\nkernel\t%s\n' "$(nproc)" "$(uname -r)"
} >"$work/machine.tsv"

# ---- steps ---------------------------------------------------------------------------------------------------------------------
step_order=100  # three digits, so that records sort

# Brings the report up to date, so that it is there whatever happens next.
collect() { "$python" bench/collect_results.py --work "$work" --report "$report" "$@"; }

seconds_left() { echo $((deadline - ($(milliseconds) - started) / 1000)); }

# run_step NAME LIMIT COMMAND...: runs the command with at most LIMIT seconds and not past the deadline; its output goes to a log, its fate to
# a record. Exit status 77 of the command means that it had to be skipped. Never fails.
run_step() {
  local name=$1 limit=$2 code=0 status begun ended left
  shift 2
  begun=$(milliseconds)
  left=$(seconds_left)
  limit=$((limit < step_limit ? limit : step_limit))
  limit=$((limit < left ? limit : left))
  if [ "$limit" -lt 2 ]; then
    status=out_of_time
  else
    echo "... $name (at most $limit s)"
    timeout --kill-after=5 "$limit" "$@" >"$work/logs/$name.log" 2>&1 </dev/null || code=$?
    case $code in
      0) status=passed ;;
      77) status=skipped ;;
      124) status=timed_out ;;
      *) status=failed ;;
    esac
  fi
  ended=$(milliseconds)
  [ "$code" -ne 137 ] || [ $((ended - begun)) -lt $((limit * 1000)) ] || status=timed_out
  printf '%s\t%s\t%s\t%s\t%s\n' "$name" "$status" $((ended - begun)) "$limit" "$code" >"$work/steps/$step_order.$name"
}

next_step() { step_order=$((step_order + 1)); }

# step NAME LIMIT COMMAND...: one after the other. begin_step: beside others, until finish_steps.
step() {
  next_step
  run_step "$@"
  collect >/dev/null || echo "gpu_check: no report after this step" >&2
}
begin_step() {
  next_step
  run_step "$@" &
}
finish_steps() {
  wait
  collect >/dev/null || echo "gpu_check: no report after these steps" >&2
}

# skip NAME REASON: a record of what cannot run here.
skip() {
  next_step
  echo "gpu_check: $2" | tee "$work/logs/$1.log" >&2
  printf '%s\tskipped\t0\t0\t77\n' "$1" >"$work/steps/$step_order.$1"
}

# tests NAME LIMIT CTEST-OPTIONS...: the tests chosen must exist, pass, and not be skipped: there is a GPU. A limit beyond
# MOE_BALANCE_GPU_CHECK_TIMEOUT, so that ctest outlives a test that hangs and writes what the others did.
tests() {
  local name=$1 limit=$2
  shift 2
  # shellcheck disable=SC2016  # the inner shell expands
  step "$name" "$limit" bash -c \
    'junit=$1 python=$2; shift 2; ctest --no-tests=error --output-on-failure --test-output-size-passed 1000000 --output-junit "$junit" "$@" && "$python" bench/collect_results.py --junit "$junit"' \
    tests "$work/junit/$name.xml" "$python" --test-dir "$build" --parallel 8 "$@"
}

stop() {
  trap - INT TERM
  collect || true
  echo "gpu_check: stopped" >&2
  exit 1
}
trap stop INT TERM

if [ -n "$built" ]; then
  skip configure "$build was built before, and is taken as it is"
  skip build "as above"
else
  step configure 60 "${to_configure[@]}"
  step build 320 "${to_build[@]}"
fi
[ ! -f "$build/.ninja_log" ] || cp "$build/.ninja_log" "$work/ninja_log"

tests kernel_parameters 60 -R kernel_parameters
tests cuda_graph 60 -R 'cuda_graph|dispatch_graph'
tests contract 90 -R 'cuda\.contract'
tests golden 60 -R golden
tests other_tests 120 -L cuda -E 'kernel_parameters|cuda_graph|dispatch_graph|cuda\.contract'
if [ -x "$build/tests/nccl/nccl_device_test" ]; then
  tests nccl 60 -R nccl_device
  tests nccl_example 60 -R nccl_global_batch
else
  skip nccl "no NCCL 2.18 with its header was found, or its test did not build, so NcclSync was not checked"
  skip nccl_example "without NCCL, as above"
fi
for tool in memcheck racecheck initcheck synccheck; do
  begin_step "sanitizer_$tool" 100 bash bench/sanitize.sh "$tool" "$build"
done
begin_step repeats 100 "$build/bench/repeat" --repeats 100  # compares bits and times nothing, so it may share the GPU
finish_steps
step dispatch 40 "$build/bench/dispatch_gpu" --benchmark_out_format=json "--benchmark_out=$work/figures/dispatch_gpu.json"
step benchmarks 90 "$build/bench/router_gpu" --benchmark_out_format=json "--benchmark_out=$work/figures/router_gpu.json"
step user_policy 20 "$build/bench/user_policy_gpu" '--benchmark_filter=forward/softplus_top4/float32/E256/T8192/' \
  --benchmark_out_format=json "--benchmark_out=$work/figures/user_policy_gpu.json"
seconds=$(($(seconds_left) - 15))  # for the case that is under way when they are over
seconds=$((seconds < 80 ? seconds : 80))
step compare_torch $((seconds < 1 ? 0 : 120)) "$python" bench/compare_torch.py "$build/bench/libcompare_cuda.so" --device cuda --compile --seconds "$seconds" \
  --json "$work/figures/compare_torch.json"

trap - INT TERM
collect --table
