#!/usr/bin/env bash
# limited_experts.sh NM PROGRAM: of the tiers, the file of PROGRAM that is for 40 to 100 experts has the second and third only, and the other has all.
set -euo pipefail
# tiers_of RANGE KERNEL
tiers_of() {
  "$nm" -C "$program" | grep "_experts_$1::" | grep -o "moe_balance_$2<[0-9]*" | grep -o '[0-9]*$' | sort -un | tr '\n' ' '
}
nm=$1 program=$2
for kernel in forward backward; do
  limited=$(tiers_of 40_100 "$kernel" || true)
  all=$(tiers_of 1_2048 "$kernel" || true)
  [ "$limited" = '1 2 ' ] || { echo "$kernel for 40 to 100 experts has tiers $limited, not 1 2"; exit 1; }
  [ "$all" = '0 1 2 3 4 5 6 ' ] || { echo "$kernel for all experts has tiers $all, not 0 to 6"; exit 1; }
done
