#!/usr/bin/env bash
# sanitize.sh TOOL BUILD: runs one tool of compute-sanitizer (memcheck, racecheck, initcheck, synccheck) over small problems of every kernel.
# Fails when the tool finds something, when a program fails, and when a filter matches no test.
set -euo pipefail
tool=$1 build=$2

sanitizer=$(command -v compute-sanitizer || true)
for candidate in /usr/local/cuda/bin/compute-sanitizer /usr/local/cuda/compute-sanitizer/compute-sanitizer /opt/nvidia/*/compute-sanitizer; do
  [ -n "$sanitizer" ] || [ ! -x "$candidate" ] || sanitizer=$candidate
done
[ -n "$sanitizer" ] || { echo "sanitize: compute-sanitizer is missing" >&2; exit 1; }
run=("$sanitizer" --tool "$tool" --error-exitcode 86 --print-limit 20)
failed=0

# cases PROGRAM FILTER: the test cases of a doctest program whose names match.
cases() {
  local output
  echo "== $tool: $1, $2"
  output=$("${run[@]}" "$build/tests/$1" "--test-case=$2" 2>&1) || failed=1
  printf '%s\n' "$output"
  grep -Eq 'test cases: +[1-9]' <<<"$output" || { echo "sanitize: no test case of $1 ran for $2"; failed=1; }
}

echo "== $tool: repeat --small"
"${run[@]}" "$build/bench/repeat" --small --repeats 1 || failed=1
cases cuda_graph_test_cuda 'contract 12*'
cases dispatch_graph_test_cuda 'contract 12*'
cases dispatch_test_cuda 'dispatch: many slots*'
cases dispatch_test_cuda 'dispatch: what experts return*'
cases noise_test_cuda 'add_noise: a part*'
cases kept_experts_test_cuda 'Threshold by hand*'
cases probability_losses_test_cuda 'losses of probabilities: masked*'
cases kept_experts_test_cuda 'what is kept is replayed*'
cases sinkhorn_test_cuda 'sinkhorn: padding*'
cases smooth_load_test_cuda 'smooth_load: padding*'
cases zero_computation_test_cuda 'WithZeroComputation of a plain*'
cases dispatch_test_cuda 'dispatch: more experts than*'
cases dispatch_routing_test_cuda 'forward_and_permute: no tokens*'
cases dispatch_routing_test_cuda 'forward_and_permute: sums*'
cases capacity_test_cuda 'capacity: a token with a chosen logit*'
cases capacity_test_cuda 'capacity: corners*'
cases contract_selection_test_cuda 'contract 5*'
cases contract_selection_test_cuda 'contract 6: T = 0*'
cases balancer_test_cuda 'SequenceLoss*'
cases balancer_test_cuda 'LossFreeBias: b += u*'
cases balancer_test_cuda 'GlobalBatchLoss: a backward*'
exit $failed
