// EXPECT: concepts.hpp:4: a lambda inside a requires expression
template <class T>
concept Visits = requires(T t, int* a) {
  t.visit(a[0], [](int) { return 1; });
};
template <class T>
  requires(sizeof(T) > 2)
struct Fine {
  int value = [] { return 1; }();
};
