// user_policy.cpp on a GPU: the same line, compiled by nvcc.
#include "user_policy.cpp"
