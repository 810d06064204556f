#!/usr/bin/env bash
# launch.sh RANKS PROGRAM [options]: starts the example on RANKS processes of this machine, on text that lies on it: one domain for each rank.
# They may share cores, need no network, and run as any user. MPIRUN and MPIRUN_OPTIONS name another launcher.
set -euo pipefail
ranks=$1
shift
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# The first of the paths that is there.
first_of() {
  local path
  for path in "$@"; do
    if [ -e "$path" ]; then echo "$path"; return 0; fi
  done
  echo "launch.sh: none of $* is here; name text with --domain NAME=PATH" >&2
  return 1
}

domains=()
if [[ " $* " != *" --domain "* ]]; then
  cmake_root=$(dirname "$(readlink -f "$(command -v cmake || echo /usr/bin/cmake)")")/../share
  domains=(--domain "c++=$(first_of /usr/include/c++ /usr/include "$here/../../include")"
    --domain "english=$(first_of /usr/share/common-licenses /usr/share/licenses "$here/../../docs")"
    --domain "cmake=$(first_of "$cmake_root"/cmake-*/Modules "$cmake_root"/cmake/Modules /usr/share/cmake*/Modules "$here/../../tests")"
    --domain "script=$(first_of /usr/share/perl /usr/share/perl5 /usr/lib/python3* /etc)")
fi

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_btl=self,vader OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_pml=ob1
export OMPI_MCA_oob_tcp_if_include=lo OMPI_MCA_plm_rsh_agent=false
read -ra options <<<"${MPIRUN_OPTIONS:-}"
exec "${MPIRUN:-mpirun}" ${options[@]+"${options[@]}"} -n "$ranks" "$@" ${domains[@]+"${domains[@]}"}
