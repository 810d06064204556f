// doctest's main, in a .cpp of its own so that no other file pays for compiling it.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
