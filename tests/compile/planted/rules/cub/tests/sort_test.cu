// EXPECT: sort_test.cu:2:.*cub/cub.cuh costs 9 s
#include <cub/cub.cuh>
