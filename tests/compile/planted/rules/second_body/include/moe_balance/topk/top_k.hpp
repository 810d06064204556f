// EXPECT: top_k.hpp:4:.*exists once
template <int width>
int f() {
  if constexpr (width == 1) return 1;
  return 2;
}
