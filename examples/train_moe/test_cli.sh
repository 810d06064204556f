#!/usr/bin/env bash
# Checks train_moe as a person meets it:  bash examples/train_moe/test_cli.sh path/to/train_moe
# Runs on small text made here, in a temporary folder. Says what failed; exits non-zero when anything did.
set -uo pipefail

binary=$(realpath "${1:?usage: test_cli.sh path/to/train_moe}")
folder=$(mktemp -d)
trap 'chmod -R u+rwx "$folder"; rm -rf "$folder"' EXIT
cd "$folder" || exit 1

passed=0
failed=0

# check DESCRIPTION COMMAND...: the command must succeed.
check() {
  local description=$1
  shift
  if "$@"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    printf 'FAILED: %s\n  checked: %s\n' "$description" "$*"
    for log in out err; do sed "s/^/  std$log: /" "$log" 2>/dev/null | tail -n 5; done
  fi
}

# run OPTIONS...: runs the program; leaves its output in the files out and err and its exit code in $code.
run() {
  "$binary" "$@" >out 2>err
  code=$?
}

one_line_on_stderr() { [ "$(wc -l <err)" -eq 1 ]; }
says() { grep -qF -- "$2" "$1"; }
has_lines() { [ -f "$2" ] && [ "$(wc -l <"$2")" -eq "$1" ]; }
has_at_least_lines() { [ -f "$2" ] && [ "$(wc -l <"$2")" -ge "$1" ]; }

# refused DESCRIPTION CODE TEXT OPTIONS...: the program must end with the code and one line on stderr that has the text.
refused() {
  local description=$1 expected=$2 text=$3
  shift 3
  run "$@"
  check "$description: exit code $expected, not $code" test "$code" -eq "$expected"
  check "$description: one line on stderr" one_line_on_stderr
  check "$description: stderr says '$text'" says err "$text"
}

make_text() {
  mkdir -p letters/deep digits empty
  local i
  for i in $(seq 600); do echo "the quick brown fox $i jumps over the lazy dog"; done >letters/deep/one.txt
  for i in $(seq 1500); do echo "$((i * i)) $((i * 7919 % 1000))"; done >digits/two.txt
  gzip -k digits/two.txt
}

small=(--domain letters=letters --domain digits=digits --sequences 2 --context 16 --threads 2)

test_short_run() {
  run "${small[@]}" --steps 3 --output result
  check "a short run: exit code 0, not $code" test "$code" -eq 0
  check "steps.csv has a header and a row for every step of four runs" has_lines 13 result/steps.csv
  check "steps.csv names its columns" says result/steps.csv "balancer,step,bits_per_byte,balancing_loss,max_vio"
  check "shares.csv has a row for every run, domain, layer and expert" has_lines 257 result/shares.csv
  check "output that is not a terminal has no control codes" test -z "$(tr -d '[:print:]\n' <out)"
  local balancer
  for balancer in none micro-batch global-batch loss-free; do
    check "the progress lines show $balancer" grep -q "^$balancer *step *3/3  loss .* MaxVio .* tokens/s .* left" out
    check "the table has a row for $balancer" grep -qE "^$balancer +[0-9.]+ +[0-9.]+" result/table.txt
  done
  check "all runs start from the same parameters" same_first_loss none micro-batch global-batch
  if command -v gnuplot >/dev/null; then
    check "max_vio.png is drawn" test -s result/max_vio.png
    check "experts.png is drawn" test -s result/experts.png
  fi
}

# The loss of the first step is that of the initial parameters.
same_first_loss() {
  local balancer losses=()
  for balancer in "$@"; do losses+=("$(grep "^$balancer,1," result/steps.csv | cut -d, -f3)"); done
  [ "$(printf '%s\n' "${losses[@]}" | sort -u | wc -l)" -eq 1 ]
}

test_same_seed_gives_same_numbers() {
  run "${small[@]}" --steps 3 --output again --balancer global-batch
  check "the same seed gives the same numbers" cmp -s <(numbers result) <(numbers again)
  run "${small[@]}" --steps 3 --output other --balancer global-batch --seed 2
  check "another seed gives others" differs <(numbers result) <(numbers other)
}

numbers() { grep '^global-batch,' "$1/steps.csv" | cut -d, -f1-8; }
differs() { ! cmp -s "$1" "$2"; }

test_without_gnuplot() {
  mkdir -p no_path
  PATH=$folder/no_path "$binary" "${small[@]}" --steps 1 --balancer none --output plain >out 2>err
  code=$?
  check "without gnuplot: exit code 0, not $code" test "$code" -eq 0
  check "without gnuplot it says what to install" says out "gnuplot-nox"
}

test_bad_options() {
  refused "an unknown option" 2 "--stepz" --stepz 3
  refused "a word for a number" 2 "--steps is 'many'; allowed: a whole number from 1" --steps many
  refused "a number out of range" 2 "--experts is '2'; allowed: " --experts=2
  refused "an option without its value" 2 "--seed needs a value" --seed
  refused "an unknown balancer" 2 "--balancer is 'magic'; allowed: none, micro-batch, global-batch, loss-free" \
    --balancer magic
  refused "a domain without a path" 2 "--domain is 'letters'; allowed: name=path" --domain letters
  refused "a domain given twice" 2 "each name once" --domain a=letters --domain a=digits
  run --help
  check "--help: exit code 0" test "$code" -eq 0
  check "--help lists --coefficient" says out "--coefficient"
}

test_bad_folders() {
  refused "a folder that is not there" 1 "domain 'x': cannot read missing" --domain x=missing --output none
  refused "an empty folder" 1 "domain 'x': no readable text in empty" --domain x=empty --output none
  echo short >empty/short.txt
  refused "too little text" 1 "domain 'x': only 6 bytes of text in empty" --domain x=empty --output none
  refused "an output folder that cannot be made" 1 "cannot make the output folder letters/deep/one.txt/result" \
    "${small[@]}" --output letters/deep/one.txt/result
  check "nothing is written when the text is refused" test ! -e none
}

# Root reads everything, so as root this becomes nobody, where that works.
test_unreadable_folder() {
  local become=()
  mkdir -p closed && echo text >closed/file.txt && chmod 000 closed
  if [ "$(id -u)" -eq 0 ]; then
    chmod 755 "$folder"
    become=(setpriv --reuid=65534 --regid=65534 --clear-groups)
    if ! "${become[@]}" "$binary" --help >/dev/null 2>&1; then
      echo "not checked: an unreadable folder (cannot run the program as another user)"
      return
    fi
  fi
  "${become[@]}" "$binary" --domain x=closed --output none >out 2>err
  code=$?
  check "an unreadable folder: exit code 1, not $code" test "$code" -eq 1
  check "an unreadable folder: one line on stderr" one_line_on_stderr
  check "an unreadable folder: stderr says why" says err "domain 'x': cannot read closed: Permission denied"
}

test_interrupt() {
  "$binary" "${small[@]}" --steps 100000 --output stopped >out 2>err &
  local process=$! waited=0
  until has_at_least_lines 4 stopped/steps.csv || [ $((waited += 1)) -gt 300 ]; do sleep 0.1; done
  kill -INT "$process"
  wait "$process"
  code=$?
  check "Ctrl-C: exit code 130, not $code" test "$code" -eq 130
  check "Ctrl-C: it says that it stopped early" says out "stopped early"
  check "Ctrl-C: steps.csv holds the steps done" has_at_least_lines 4 stopped/steps.csv
  check "Ctrl-C: table.txt is written" has_at_least_lines 3 stopped/table.txt
  check "Ctrl-C: shares.csv is written" has_at_least_lines 3 stopped/shares.csv
}

make_text
test_short_run
test_same_seed_gives_same_numbers
test_without_gnuplot
test_bad_options
test_bad_folders
test_unreadable_folder
test_interrupt
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
