#!/usr/bin/env bash
# gpu_check_test.sh DIR [CMAKE-OPTIONS]: runs gpu_check.sh in DIR with programs that stand in for the driver, the compilers, ctest, compute-sanitizer and
# what is built, and checks its exit status and its report: without a GPU, when rehearsed, when all goes well, when steps fail or hang, and past the deadline.
# Then configures the check's tests for the CPU with the real CMake and these options, and compares their time limits with the steps'.
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "$0")")/../.." && pwd)
rm -rf "$1"
mkdir -p "$1/bin"
folder=$(cd "$1" && pwd)
shift
cmake_options=("$@")

# stand_in NAME: a program NAME, its text on stdin; WRONG lists what should go wrong.
stand_in() {
  { echo '#!/usr/bin/env bash'; cat; } >"$folder/bin/$1"
  chmod +x "$folder/bin/$1"
}
stand_in nvidia-smi <<'PROGRAM'
[[ $WRONG != *no_gpu* ]] || { echo "NVIDIA-SMI has failed"; exit 9; }
[[ $WRONG != *slow_start* ]] || sleep 2
echo "NVIDIA Test 100, 999.1, 9.0, 1000 MiB"
echo "NVIDIA Test 100, 999.1, 9.0, 1000 MiB"
PROGRAM
stand_in nvcc <<'PROGRAM'
[ "$1" != --help ] || { echo "--split-compile <number>  (-split-compile)"; exit 0; }
echo "Cuda compilation tools, release 13.0, V13.0.1"
PROGRAM
stand_in git <<'PROGRAM'
[[ $WRONG != *no_git* ]] || exit 128
case $1 in
  rev-parse) echo 0123abcd ;;
  status) [[ $WRONG != *dirty* ]] || echo ' M a_file' ;;
esac
PROGRAM
"${CXX:-c++}" -shared -fPIC -x c++ - -o "$folder/loads.so" <<<'int defined() { return 0; }'
"${CXX:-c++}" -shared -fPIC -x c++ - -o "$folder/lacks_a_symbol.so" <<<'int undefined(); int defined() { return undefined(); }'
stand_in cmake <<'PROGRAM'
if [ "$1" = -S ]; then
  printf '%s\n' "$@" >"$4/options"
  : >"$4/CTestTestfile.cmake"
  [[ $WRONG != *configure* ]] || exit 1
  exit 0
fi
printf '%s\n' "$@" >"$2/build_options"
mkdir -p "$2/bench" "$2/tests"
printf '# ninja log v5\n0\t90000\t1\ta/slow.cu.o\tf\n' >"$2/.ninja_log"
cat >"$2/bench/repeat" <<'REPEAT'
#!/usr/bin/env bash
: >"$0.began"
echo "softmax: 3 problems: 0 differ"
REPEAT
cat >"$2/bench/router_gpu" <<'BENCHMARK'
#!/usr/bin/env bash
error=false
[[ $WRONG != *benchmark* ]] || error=true
end=']}'
[[ $WRONG != *cut* || $0 != */user_policy_gpu ]] || end=', {"name": "forward/softplus/float32'
for argument in "$@"; do
  [[ $argument != --benchmark_out=* ]] || cat >"${argument#*=}" <<JSON
{"context": {"host_name": "secret", "executable": "/secret/router_gpu", "command": "router_gpu"},
 "benchmarks": [{"name": "forward/softmax_top8/float32/E256/T8192/warm/iterations:40/manual_time", "error_occurred": $error, "error_message": "broken",
   "median_us": 4.5, "p10_us": 4.4, "p90_us": 4.7, "copy_percent": 60.0, "bytes_per_second": 1e12}$end
JSON
done
[ "$end" = ']}' ] || exec sleep 60
BENCHMARK
cp "$2/bench/router_gpu" "$2/bench/user_policy_gpu"
cp "$2/bench/router_gpu" "$2/bench/dispatch_gpu"
[[ $WRONG != *no_dispatch* ]] || rm "$2/bench/dispatch_gpu"
library=loads
[[ $WRONG != *lacks_a_symbol* ]] || library=lacks_a_symbol
cp "$(dirname "$0")/../$library.so" "$2/bench/libcompare_cuda.so"
chmod +x "$2"/bench/*
mkdir -p "$2/tests/nccl"
cp "$2/bench/repeat" "$2/tests/nccl/nccl_device_test"
[[ $WRONG != *no_nccl* ]] || rm "$2/tests/nccl/nccl_device_test"
[[ $WRONG != *build* ]] || { echo "error: it does not compile"; exit 1; }
PROGRAM
stand_in ctest <<'PROGRAM'
while [ $# -gt 0 ]; do
  [ "$1" != --output-junit ] || junit=$2
  [ "$1" != -R ] || chosen=$2
  shift
done
status=run
[[ $WRONG != *skip* || ${chosen:-} != golden ]] || status=notrun
[[ $WRONG != *example* || ${chosen:-} != nccl_global_batch ]] || status=fail
echo "<testsuite><testcase name=\"${chosen:-others}\" time=\"0.5\" status=\"$status\"><system-out>fine</system-out></testcase></testsuite>" >"$junit"
PROGRAM
stand_in compute-sanitizer <<'PROGRAM'
[[ $WRONG != *race* || $2 != racecheck ]] || { echo "RACECHECK SUMMARY: 1 hazard"; exit 86; }
if [[ $WRONG == *together* && $2 == racecheck ]]; then
  for ((waits = 0; waits < 80; ++waits)); do
    [ ! -e "$(dirname "$0")/../build/bench/repeat.began" ] || break
    sleep 0.1
  done
  [ "$waits" -lt 80 ] || { echo "the repeats did not begin meanwhile"; exit 86; }
fi
[[ $WRONG != *hang* || $2 != synccheck ]] || exec sleep 60
echo "[doctest] test cases:  3 |  3 passed"
PROGRAM
stand_in python-with-torch <<'PROGRAM'
if [[ $1 == */compare_torch.py ]]; then
  [[ $WRONG != *torch* ]] || { echo "no torch"; exit 77; }
  echo '{"command": "'"${*:2}"'", "results": [{"case": "forward", "line": "forward, PyTorch 46 us, moe_balance 4.6 us, 10.0x"},
    {"case": "permute", "line": "permute, PyTorch 400 us, moe_balance 200 us, 2.0x"}]}' >"${!#}"
else
  exec python3 "$@"
fi
PROGRAM

# check NAME WRONG EXIT-STATUS OPTIONS...: runs the check; its output is kept in NAME.log, its report in NAME/.
check() {
  local name=$1 wrong=$2 want=$3 got=0
  shift 3
  WRONG=$wrong PYTHON=$folder/bin/python-with-torch PATH=$folder/bin:$PATH \
    bash "$root/bench/gpu_check.sh" --build "$folder/build" --output "$folder/$name" "$@" >"$folder/$name.log" 2>&1 || got=$?
  [ "$got" -eq "$want" ] || { echo "$name: exit status $got, expected $want"; cat "$folder/$name.log"; exit 1; }
}
# expect NAME TEXT: the output of NAME holds TEXT.
expect() { grep -qF -- "$2" "$folder/$1.log" || { echo "$1: no '$2' in its output"; cat "$folder/$1.log"; exit 1; }; }
# holds NAME EXPRESSION: true of the report of NAME, where `status` maps steps to their fates.
holds() {
  python3 - "$folder/$1"/*-nvidia-test-100.json "$2" <<'PROGRAM' || { echo "$1: not so: $2"; cat "$folder/$1.log"; exit 1; }
import json, sys
report = json.load(open(sys.argv[1]))
status = {step["name"]: step["status"] for step in report["steps"]}
seconds = {step["name"]: step["seconds"] for step in report["steps"]}
sys.exit(0 if eval(sys.argv[2]) else 1)
PROGRAM
}

check without_gpu no_gpu 3
expect without_gpu 'no NVIDIA GPU on this machine'
[ ! -e "$folder/without_gpu" ] || { echo "a report was begun without a GPU"; exit 1; }
check unknown_option '' 2 --unknown
expect unknown_option 'unknown option --unknown'
check no_number '' 2 --deadline soon
expect no_number 'soon is not a positive number'
check no_folder '' 2 --dependencies "$folder/nowhere"
expect no_folder 'nowhere is not a folder'

# gather NAME WRONG: gathers dependencies into NAME.
gather() { WRONG=$2 PATH=$folder/bin:$PATH bash "$root/bench/gather_dependencies.sh" "$folder/$1" >"$folder/$1.log"; }
# A rehearsal needs no GPU, writes no report, and configures and builds as the check does after it.
check rehearsed no_gpu 0 --rehearse --jobs 3 --dependencies "$folder"
expect rehearsed 'REHEARSED for 90'
[ ! -e "$folder/rehearsed" ] || { echo "a rehearsal began a report"; exit 1; }
mv "$folder/build/options" "$folder/rehearsed.options"
mv "$folder/build/build_options" "$folder/rehearsed.build_options"
check rehearsed_for_another no_gpu 0 --rehearse 100 --dependencies "$folder"
grep -qx -- '-DCMAKE_CUDA_ARCHITECTURES=100-real' "$folder/build/options" || { echo "the architecture given is not asked for"; exit 1; }
check rehearsed_without_configuration 'no_gpu configure' 1 --rehearse
expect rehearsed_without_configuration 'it does not configure'
check rehearsed_with_an_error 'no_gpu build' 1 --rehearse
expect rehearsed_with_an_error 'it does not build'
check rehearsed_without_dispatch 'no_gpu no_dispatch' 1 --rehearse
expect rehearsed_without_dispatch 'bench/dispatch_gpu was not built'
check rehearsed_without_a_symbol 'no_gpu lacks_a_symbol' 1 --rehearse
expect rehearsed_without_a_symbol 'undefined symbol'
expect rehearsed_without_a_symbol 'libcompare_cuda.so does not load'

gather gathered ''
gather gathered_with_changes dirty
gather gathered_without_git no_git
[ ! -e "$folder/gathered_without_git/revision" ] || { echo "a revision was written without git"; exit 1; }

check well 'dirty together' 0 --jobs 3 --dependencies "$folder/gathered"
report=$(basename "$folder"/well/*.json)
[[ $report =~ ^20[0-9]{2}-[0-9]{2}-[0-9]{2}-[0-2][0-9][0-5][0-9]-nvidia-test-100\.json$ ]] || { echo "$report does not say when it was written"; exit 1; }
holds well 'report["machine"]["revision"] == "0123abcd when the dependencies were gathered"'
holds well 'report["passed"] and set(status.values()) == {"passed"} and len(status) == 18'
holds well 'report["machine"]["gpu"] == "NVIDIA Test 100" and report["machine"]["driver"] == "999.1" and report["machine"]["cuda"] == "13.0"'
holds well '"--jobs 3" in report["machine"]["command"] and len(report["machine"]["date"]) == 20'
holds well 'len(report["tests"]) == 7 and report["figures"]["router_gpu"]["benchmarks"][0]["median_us"] == 4.5'
holds well 'report["slowest_build_steps"] == [{"output": "slow.cu.o", "seconds": 90.0}]'
holds well '"secret" not in json.dumps(report)'
expect well '4.50 us (4.40 to 4.70)'
expect well 'moe_balance 4.6 us, 10.0x'
expect well 'moe_balance 200 us, 2.0x'
expect well 'ALL PASSED'
holds well 'list(status).index("dispatch") < list(status).index("benchmarks")'
holds well '"--seconds 80 " in report["figures"]["compare_torch"]["command"]'
for options in options build_options; do
  diff <(sed "s|PREFIX_PATH=.*||" "$folder/rehearsed.$options") <(sed "s|PREFIX_PATH=.*||" "$folder/build/$options") ||
    { echo "the check's build is not what was rehearsed"; exit 1; }
done
grep -qx -- '-DCMAKE_CUDA_ARCHITECTURES=90-real' "$folder/build/options" || { echo "the card's architecture is not asked for"; exit 1; }
grep -qx -- '-DCMAKE_CUDA_FLAGS_RELEASE=.* --split-compile=4' "$folder/build/options" || { echo "nvcc is not asked for threads"; exit 1; }
grep -qx -- '-DMOE_BALANCE_EXAMPLES=ON' "$folder/build/options" || { echo "the example of NCCL is not asked for"; exit 1; }

check built '' 0 --built --dependencies "$folder/gathered"
holds built 'status["configure"] == status["build"] == "skipped" and report["passed"] and len(status) == 18'
holds built 'sum(fate == "passed" for fate in status.values()) == 16 and report["figures"]["router_gpu"]["benchmarks"][0]["median_us"] == 4.5'
expect built 'ALL PASSED, but for what was skipped: configure, build'
check built_nowhere '' 2 --built --build "$folder/nowhere"
expect built_nowhere 'holds nothing that was built'

# What a rehearsal packs is what the check needs, and its programs.
check packed no_gpu 0 --rehearse --pack "$folder/carried/packed.tar.xz" --dependencies "$folder/gathered"
expect packed 'packed '
mv "$folder/build" "$folder/rehearsed_build"
check unpacked '' 0 --built "$folder/carried/packed.tar.xz" --dependencies "$folder/gathered"
holds unpacked 'status["build"] == "skipped" and report["passed"] and status["nccl"] == "passed" and len(status) == 18'
holds unpacked 'report["slowest_build_steps"] == [{"output": "slow.cu.o", "seconds": 90.0}]'
[ ! -e "$folder/build/options" ] || { echo "more was packed than the check needs"; exit 1; }
check unpacked_nothing '' 2 --built "$folder/nowhere.tar.xz"
expect unpacked_nothing 'nowhere.tar.xz is not a file'
check packed_without_rehearsal '' 2 --pack "$folder/packed.tar.xz"
expect packed_without_rehearsal '--pack goes with --rehearse'

check without_torch 'torch no_nccl no_git' 0 --dependencies "$folder/gathered_with_changes"
holds without_torch 'report["machine"]["revision"] == "0123abcd with changes when the dependencies were gathered"'
holds without_torch 'status["compare_torch"] == "skipped" and report["passed"] and len(status) == 18'
holds without_torch 'status["nccl"] == status["nccl_example"] == "skipped" and sum(fate == "skipped" for fate in status.values()) == 3'
expect without_torch 'so NcclSync was not checked'
expect without_torch 'ALL PASSED, but for what was skipped: nccl, nccl_example, compare_torch'

check wrong 'build skip example race hang benchmark cut dirty' 1 --step-limit 3 --dependencies "$folder/gathered_without_git"
holds wrong 'report["machine"]["revision"] == "0123abcd with changes"'
holds wrong 'not report["passed"] and len(status) == 18'
holds wrong 'status["nccl"] == "passed" and status["nccl_example"] == "failed"'
holds wrong 'status["build"] == "failed" and status["golden"] == "failed" and status["sanitizer_racecheck"] == "failed"'
holds wrong 'status["sanitizer_synccheck"] == "timed_out" and 2.5 < seconds["sanitizer_synccheck"] < 10'
holds wrong 'status["benchmarks"] == status["dispatch"] == "failed"'
holds wrong 'status["user_policy"] == "timed_out" and len(report["figures"]["user_policy_gpu"]["benchmarks"]) == 1'
expect wrong 'cut off'
holds wrong 'status["sanitizer_memcheck"] == "passed" and status["repeats"] == "passed" and status["compare_torch"] == "passed"'
holds wrong '"error: it does not compile" in next(s for s in report["steps"] if s["name"] == "build")["log_tail"]'
expect wrong 'SOMETHING DID NOT PASS'
expect wrong 'FAILED: broken'

# Of 60 s PyTorch gets no more than leaves 15; of 14, none. What comes before the first step counts, too.
check tight '' 0 --deadline 60
holds tight '0 < int(report["figures"]["compare_torch"]["command"].split("--seconds ")[1].split()[0]) <= 45'
check too_tight '' 1 --deadline 14
holds too_tight 'status["compare_torch"] == "out_of_time"'
check late 'no_git slow_start' 1 --deadline 3 --dependencies "$folder/gathered_without_git"
holds late 'report["machine"]["revision"] == "unknown"'
holds late 'not report["passed"] and len(status) == 18 and set(status.values()) == {"out_of_time"}'

# ctest has to end a test that hangs before its step ends ctest: only then are the others' results written.
cmake -S "$root" -B "$folder/configured" "${cmake_options[@]}" -DMOE_BALANCE_CUDA=OFF -DMOE_BALANCE_GPU_CHECK=ON -DMOE_BALANCE_BENCH=OFF \
  -DMOE_BALANCE_EXAMPLES=OFF >"$folder/configured.log" 2>&1 || { cat "$folder/configured.log"; exit 1; }
ctest --test-dir "$folder/configured" --show-only=json-v1 >"$folder/configured.json"
python3 - "$folder/configured.json" "$folder"/well/*.json <<'PROGRAM'
import json, sys
configured, report = (json.load(open(path)) for path in sys.argv[1:])
tests = {test["name"]: {one["name"]: one["value"] for one in test["properties"]} for test in configured["tests"]}
steps = {step["name"]: step["limit_seconds"] for step in report["steps"]}
limits = [steps[name] for name in ("kernel_parameters", "cuda_graph", "contract", "golden", "other_tests", "nccl", "nccl_example")]
for name, properties in tests.items():
    if properties.get("TIMEOUT", 1e9) + 10 > min(limits):
        sys.exit(f"{name} may take {properties.get('TIMEOUT')} s, and a step of tests {min(limits)} s")
sys.exit(0 if tests else "no tests")
PROGRAM
echo "gpu_check.sh does what it says: 22 runs"
