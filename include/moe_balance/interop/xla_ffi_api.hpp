// XLA's foreign-function interface as a system header, because g++ rejects its C part otherwise ("changes meaning", an error that -fpermissive
// makes a warning). Under -Wpedantic g++ 12 rejects it even so: compile the file with the handlers without that option.
#pragma once
#pragma GCC system_header

#include <xla/ffi/api/ffi.h>
