// compare_dispatch.hpp on the CPU. Built with plain -O2, as users would.
#include "compare_place.hpp"

#include "compare_dispatch.hpp"
