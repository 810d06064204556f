#!/usr/bin/env bash
# python_environment.sh VENV_DIR PACKAGE...: a virtual environment with these packages from the index that pip is set up for, as
# binary wheels. Arguments go to pip as they are (--no-deps, "name>=1,<2"). A finished environment of the same list is left alone.
# python_environment.sh VENV_DIR --run COMMAND ARGUMENT...: runs a command with the environment's python first in PATH.
# PYTHON names the interpreter (python3 by default).
# Exit code 77, with the reason as the last line: no Python with venv, no index within reach, no wheel for this Python. What runs in an
# environment that is not there gives the same code and reason, so that ctest reports it as skipped too.
set -euo pipefail
environment=$1
shift
finished=$environment/installed.txt reason=$environment.skipped.txt

if [ "$1" = --run ]; then
  shift
  if [ ! -e "$finished" ]; then
    if [ -e "$reason" ]; then cat "$reason"; else echo "Skipped: $environment was not set up"; fi
    exit 77
  fi
  environment=$(cd "$environment" && pwd)
  unset PYTHONDONTWRITEBYTECODE  # large packages take longer to compile than to run, so once is enough; nothing is left beside sources
  PATH=$environment/bin:$PATH PYTHONPYCACHEPREFIX=$environment/pycache exec "$@"
fi

skip() {
  rm -rf "$environment"
  mkdir -p "$(dirname "$reason")"
  echo "Skipped: $1" | tee "$reason"
  exit 77
}

python=${PYTHON:-python3}
command -v "$python" >/dev/null || skip "there is no $python"
wanted=$("$python" --version; printf '%s\n' "$@")
if [ -e "$finished" ] && [ "$(cat "$finished")" = "$wanted" ]; then
  echo "$environment has these packages already"
  exit 0
fi

rm -rf "$environment" "$reason"
log=$environment.log
mkdir -p "$(dirname "$log")"
"$python" -m venv "$environment" >"$log" 2>&1 || skip "$python cannot make a virtual environment (Debian's python3-venv): $(tail -n 1 "$log")"

# Nothing is built from source, and modules are compiled when they are imported: most never are.
if ! "$environment/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off --quiet --no-compile \
  --only-binary :all: --retries 1 --timeout 30 "$@" >"$log" 2>&1; then
  if grep -qE 'No matching distribution|Could not find a version|ConnectionError|NewConnectionError|ReadTimeout|Max retries' "$log"; then
    skip "pip reaches no index that has $* for $("$python" --version): $(grep -E '^(ERROR|WARNING)' "$log" | tail -n 1)"
  fi
  cat "$log"
  exit 1
fi
printf '%s\n' "$wanted" >"$finished"
echo "$environment has $*"
