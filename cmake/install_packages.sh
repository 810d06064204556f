#!/usr/bin/env bash
# install_packages.sh PACKAGE[=PROBE]... [-- PACKAGE[=PROBE]...]: makes the distribution's packages available, those after -- if
# it can be done. PROBE is a file or command that shows the package's content to be there already, however it was installed.
# As root, or with sudo that asks no password, missing packages are installed (Debian, Ubuntu); otherwise one line says what to install.
# Fails when a package before -- is still missing.
set -euo pipefail

present() {
  local package=${1%%=*} probe=
  [ "$1" = "$package" ] || probe=${1#*=}
  if [ -n "$probe" ]; then
    if [ "${probe#/}" != "$probe" ]; then [ -e "$probe" ]; else command -v "$probe" >/dev/null; fi && return 0
  fi
  command -v dpkg-query >/dev/null &&
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ]
}

required=() optional=() list=required
for argument in "$@"; do
  if [ "$argument" = -- ]; then list=optional; continue; fi
  present "$argument" && continue
  if [ $list = required ]; then required+=("${argument%%=*}"); else optional+=("${argument%%=*}"); fi
done
[ $((${#required[@]} + ${#optional[@]})) -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo -n); fi
if ! command -v apt-get >/dev/null || ! "${as_root[@]}" true 2>/dev/null; then
  [ ${#required[@]} -gt 0 ] && { echo "Missing, please install: ${required[*]} (Debian's names)" >&2; exit 1; }
  echo "Not installed, so some parts are left out: ${optional[*]} (Debian's names)" >&2
  exit 0
fi

missing=(${required[@]+"${required[@]}"} ${optional[@]+"${optional[@]}"})
echo "Installing: ${missing[*]}"
install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends)
"${as_root[@]}" apt-get update -qq
if [ ${#required[@]} -gt 0 ] && ! "${install[@]}" "${required[@]}" >/dev/null; then
  echo "Missing, please install: ${required[*]} (Debian's names)" >&2
  exit 1
fi
for package in ${optional[@]+"${optional[@]}"}; do
  "${install[@]}" "$package" >/dev/null || echo "Not installed, so some parts are left out: $package (Debian's name)" >&2
done
