// EXPECT: parameters.hpp:3:.*host and device lay
struct Parameters {
  [[no_unique_address]] int empty;
};
