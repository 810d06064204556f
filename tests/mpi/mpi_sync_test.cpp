// MpiSync: the identities between many ranks. Every rank runs this program (mpirun -n N).
#define DOCTEST_CONFIG_IMPLEMENT
#include "many_ranks.hpp"

#include <moe_balance/sync/mpi.hpp>

#include <cstdio>
#include <limits>
#include <thread>

namespace testing {

TEST_CASE("MpiSync: many ranks compute what one rank with the whole batch computes, bit for bit") {
  check_all_identities(mb::MpiSync(MPI_COMM_WORLD), mb::MpiSync(MPI_COMM_SELF));
}

TEST_CASE("MpiSync: the communicator that the user passes is the group") {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm pairs = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, rank / 2, rank, &pairs);
  {
    const mb::MpiSync sync(pairs);
    const Counts sum = sum_of(sync, Counts{rank / 2, 1});
    CHECK(sum == Counts{rank / 2 * sync.ranks(), sync.ranks()});
    check_bias_beside_loss(sync);  // each pair is a batch of its own
    check_window(sync);
  }
  MPI_Comm_free(&pairs);
}

TEST_CASE("MpiSync: copies are handles of one state") {
  const mb::MpiSync sync(MPI_COMM_WORLD);
  const mb::MpiSync copy = sync;
  Counts counts{1};
  sync.start(counts.data(), 1, mb::Host{});
  CHECK(copy.is_started(counts.data()));
  copy.finish(counts.data(), mb::Host{});
  CHECK(counts == Counts{sync.ranks()});
  CHECK(!sync.is_started(counts.data()));
}

TEST_CASE("MpiSync: a sum that nobody reads does not hold up the end") {
  Counts counts{1};
  const mb::MpiSync sync(MPI_COMM_WORLD);
  sync.start(counts.data(), 1, mb::Host{});
}

TEST_CASE("MpiSync: it outlives the communicator that it was given, and two of them mix as they like") {
  MPI_Comm given = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_WORLD, &given);
  const mb::MpiSync first(given);
  const mb::MpiSync second(given);
  MPI_Comm_free(&given);
  std::vector<Counts> counts{{1, 2, 3}, {4}, {5, 6}, {7}};
  for (std::size_t i = 0; i < 4; ++i) {
    const bool mine = (i + static_cast<std::size_t>(first.rank())) % 2 == 0;  // each rank in an order of its own
    const std::size_t of_first = i / 2 * 2;
    const mb::MpiSync& sync = mine ? first : second;
    Counts& sum = counts[mine ? of_first : of_first + 1];
    sync.start(sum.data(), static_cast<std::int64_t>(sum.size()), mb::Host{});
  }
  for (std::size_t i = 4; i-- > 0;) (i % 2 == 0 ? first : second).finish(counts[i].data(), mb::Host{});
  const std::int64_t ranks = first.ranks();
  CHECK(counts == std::vector<Counts>{{ranks, 2 * ranks, 3 * ranks}, {4 * ranks}, {5 * ranks, 6 * ranks}, {7 * ranks}});
}

TEST_CASE("MpiSync: threads may each have their own, and errors of MPI_COMM_WORLD are handled as before") {
  int level = MPI_THREAD_SINGLE;
  MPI_Query_thread(&level);
  const mb::MpiSync syncs[] = {mb::MpiSync(MPI_COMM_WORLD), mb::MpiSync(MPI_COMM_WORLD)};
  bool are_right[] = {true, true};
  const auto sum_often = [&](int thread) {
    for (int i = 0; i < 200; ++i) {
      const mb::MpiSync& sync = syncs[thread];
      if (sum_of(sync, Counts{i + thread}) != Counts{sync.ranks() * (i + thread)}) are_right[thread] = false;
    }
  };
  if (level == MPI_THREAD_MULTIPLE) {
    std::thread other(sum_often, 1);
    sum_often(0);
    other.join();
  } else {
    sum_often(0);
    sum_often(1);
  }
  CHECK(are_right[0]);
  CHECK(are_right[1]);
  MPI_Errhandler handler = MPI_ERRHANDLER_NULL;
  MPI_Comm_get_errhandler(MPI_COMM_WORLD, &handler);
  CHECK(handler == MPI_ERRORS_ARE_FATAL);  // MPI's default
  MPI_Errhandler_free(&handler);
}

TEST_CASE("MpiSync: what is no communicator is refused, and so is a timeout that is none") {
  CHECK_THROWS_AS(mb::MpiSync(MPI_Comm(MPI_COMM_NULL)), mb::InvalidArgument);
  for (const double seconds : {0.0, -1.0, 2e9, std::numeric_limits<double>::quiet_NaN()}) {
    CHECK_THROWS_AS(mb::MpiSync(MPI_COMM_WORLD, mb::MpiSync::Seconds(seconds)), mb::InvalidArgument);
  }
  Counts counts{1};
  const mb::MpiSync sync(MPI_COMM_SELF);
  CHECK_THROWS_AS(sync.start(counts.data(), -1, mb::Host{}), mb::InvalidArgument);
  CHECK_THROWS_AS(sync.start(counts.data(), (std::int64_t{1} << 31) - 4, mb::Host{}), mb::InvalidArgument);
  static_assert(!std::is_constructible_v<mb::MpiSync, std::nullptr_t>);
}

}  // namespace testing

int main(int argc, char** argv) {
  int level = MPI_THREAD_SINGLE;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
  const moe_balance::MpiSync outlives_mpi(MPI_COMM_WORLD);
  doctest::Context context(argc, argv);
  const int result = context.run();
  MPI_Finalize();
  return result;
}
