#!/usr/bin/env bash
# Builds the training example and runs it, from a fresh clone on a bare Debian machine too:
#   bash examples/train_moe/run.sh [options]        (--help lists them)
# Packages that are missing are installed where that is allowed (root, or sudo without a password); elsewhere one line
# says what to install. The build goes to build/train_moe under the repository root, results to train_moe_results in the
# current folder (--output changes that).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
build=$root/build/train_moe

fail() {
  printf 'run.sh: %s\n' "$*" >&2
  exit 1
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# A folder that holds at least one file.
has_files() { [ -n "$(find "$1" -type f -print -quit 2>/dev/null)" ]; }

# Prints what the build and the default text need and this machine has not. Any C++20 compiler, cmake and gnuplot will
# do, from wherever they come. Manual pages count as missing where the package is installed but its files were left out,
# as container images do. Where there are no Debian packages at all, the build and the program say what they miss.
missing_packages() {
  local package
  command -v dpkg-query >/dev/null || return 0
  command -v cmake >/dev/null || echo cmake
  command -v make >/dev/null || echo make
  command -v "${CXX:-g++}" >/dev/null || echo g++
  command -v gnuplot >/dev/null || echo gnuplot-nox
  for package in libtorch-dev zlib1g-dev libopenblas0-pthread; do
    installed "$package" || echo "$package"
  done
  if uses_default_text "$@"; then
    installed manpages && has_files /usr/share/man/man7 || echo manpages
    installed manpages-dev && has_files /usr/share/man/man3 || echo manpages-dev
    installed manpages-de && has_files /usr/share/man/de/man7 || echo manpages-de
    installed manpages-fr && has_files /usr/share/man/fr/man7 || echo manpages-fr
  fi
}

uses_default_text() {
  local word
  for word in "$@"; do
    case $word in --domain | --domain=* | --help | -h) return 1 ;; esac
  done
}

# Prints the command that becomes root, or fails. Empty when root already.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then return 0; fi
  sudo -n true 2>/dev/null && echo "sudo -n"
}

# Gnuplot alone is no reason to stop: without it the program draws no pictures and says so.
install_packages() {
  local become log=$build/install.log
  command -v apt-get >/dev/null || fail "needs $*; install what your distribution calls these packages"
  if ! become=$(as_root); then
    [ "$*" = gnuplot-nox ] && return 0
    fail "packages are missing; install them with: sudo apt-get install $*"
  fi
  echo "run.sh: installing $*"
  # shellcheck disable=SC2086  # $become is a command and its option
  {
    $become env DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
      $become env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends --reinstall \
        -o Dpkg::Options::=--path-include='/usr/share/man/*' "$@"
  } >"$log" 2>&1 || fail "could not install the packages ($log says why); try: sudo apt-get install $*"
}

compile() {
  cmake -S "$here" -B "$build" -DCMAKE_BUILD_TYPE=Release && cmake --build "$build" --parallel "$(nproc)"
}

mkdir -p "$build" 2>/dev/null || fail "cannot write $build"
mapfile -t missing < <(missing_packages "$@")
if [ "${#missing[@]}" -gt 0 ]; then install_packages "${missing[@]}"; fi
[ -x "$build/train_moe" ] || echo "run.sh: building (a minute or two the first time)"
if ! compile >"$build/build.log" 2>&1; then
  tail -n 20 "$build/build.log" >&2
  fail "the build failed; all of its output is in $build/build.log"
fi
exec "$build/train_moe" "$@"
