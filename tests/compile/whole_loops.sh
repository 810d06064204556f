#!/usr/bin/env bash
# whole_loops.sh OUTPUT.o COMPILER FLAGS... SOURCE: compiles SOURCE and fails when a loop for wider instructions than the program's own calls anything but
# the C library's memory functions, what is rare and kept out on purpose (insert_all, rows with +inf), how a selection marks
# and sorts, which is compiled for one instruction set after another and chosen at run time, and functions of their own for the same instructions, which are
# looked at, too: all else that it calls is compiled for the oldest processor. Numbers of float64 may call the C library's functions.
# Where there is a program for it (SOURCE_main.cpp), it then runs the loops with each instruction set.
set -euo pipefail
output=$1
shift
source=${*: -1}
compiler=("${@:1:$#-1}")
# g++ would make copies of functions under local names, which an object's relocations do not show.
[[ $("${compiler[@]}" --version) == *clang* ]] || compiler+=(-fno-ipa-sra -fno-ipa-cp)
"${compiler[@]}" -c "$source" -o "$output"
calls=$(objdump -r "$output" | awk '
  /^RELOCATION RECORDS/ { loop = /run_x86_64_v[34]/; loops += loop; name = $4 }
  loop && /R_X86_64_PLT32/ && !/ (mem(cpy|move|set)|exp|erfc)-0x/ && !/MemorySelection.*10insert_all|softmax_row_with_infinities_apart/ && !/mark_keys_(anywhere|v3|v4)|(sort_four_rows|select_in_lanes)_(anywhere|v3)/ && !/run_x86_64_v[34].*([a-z]Lanes|side_by_side|SideBySide|NumbersOfExperts|_elements_apart|softmax_row|(clear|flush|prepare_slopes)_apart)/ { print name, "calls", $3 }
  END { if (loops == 0) print "no loop was compiled" }' | c++filt)
[ -z "$calls" ] || { cut -c 1-400 <<<"$calls"; exit 1; }
if nm -C "$output" | grep 'SortingNetwork<.*>::SortingNetwork()'; then
  echo "a sorting network is put together at run time"
  exit 1
fi
objdump -d --no-show-raw-insn "$output" | grep prefetch >/dev/null || { echo "no loop asks for memory ahead: were the calls dropped?"; exit 1; }

# What was compiled for wider instructions gives the baseline's bits.
main=${source%.cpp}_main.cpp
[ -e "$main" ] || exit 0
if [[ " ${compiler[*]} " == *" -march=haswell "* ]] && ! grep -qw avx2 /proc/cpuinfo; then
  echo "not run: this processor has no AVX2"
  exit 0
fi
"${compiler[@]}" -O0 -c "$main" -o "$output.main.o"
"${compiler[@]}" "$output" "$output.main.o" -pthread -o "$output.run"
"$output.run"
