#!/usr/bin/env bash
# run.sh RANKS PROGRAM ARGS...: starts PROGRAM on RANKS processes of this machine, which may have fewer cores, as any user, without a network.
# A program meant to lose ranks sets MPI_KEEP_GOING=1: the others then outlive the first that ends.
set -euo pipefail
ranks=$1
shift
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_btl=self,vader OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_pml=ob1
export OMPI_MCA_oob_tcp_if_include=lo OMPI_MCA_plm_rsh_agent=false
if [ "${MPI_KEEP_GOING:-0}" = 1 ]; then
  export OMPI_MCA_orte_abort_on_non_zero_status=0 OMPI_MCA_orte_enable_recovery=1
fi
exec "${MPIRUN:-mpirun}" -n "$ranks" "$@"
