// EXPECT: route_test.cu:2:.*doctest's main belongs in a .cpp
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
