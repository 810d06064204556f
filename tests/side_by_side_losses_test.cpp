// Losses that read more than what was chosen, of tokens side by side (side_by_side.hpp): entropies, arrivals at devices, a plain top-k.
#include "side_by_side.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

using namespace side_by_side;

namespace {

/// A loss of the entropy whose slope depends on it.
struct EntropyNear {
  float wanted = 0.5f;
  [[nodiscard]] MOEB_HOST_DEVICE float entropy_loss(float entropy) const { return (entropy - wanted) * (entropy - wanted); }
  [[nodiscard]] MOEB_HOST_DEVICE float entropy_slope(float entropy) const { return 2 * (entropy - wanted); }
};

}  // namespace

TEST_CASE("losses of a token's entropy") {
  check_all(mb::Router{mb::Softmax{}, mb::TopK<2>{}, mb::EntropyLoss{.coefficient = 0.5f}});
  check_all(mb::Router{mb::Softmax{}, mb::TopP<4>{.p = 0.6f},
                       mb::Combine{mb::AuxLoss{}, mb::ZLoss{.coefficient = 0.1f}, EntropyNear{}, mb::LossFreeBias{}}},
            true);
  check_all(mb::Router{mb::SoftmaxOverSelected{}, mb::TopK<3>{}, mb::MutualInformationLoss{.coefficient = 0.5f}});
}

TEST_CASE("losses of a token beside scores that are no softmax") {
  check_all(mb::Router{mb::Sigmoid{}, mb::TopK<2>{}, mb::Combine{mb::ZLoss{.coefficient = 0.3f}, mb::LossFreeBias{}}}, true);
  check_all(mb::Router{mb::Identity{}, mb::TopK<3>{}, mb::Combine{mb::AuxLoss{}, EntropyNear{}, mb::ZLoss{}}});
}

TEST_CASE("arrivals at devices: each number of them") {
  for (const int experts : {1, 2, 12, 33, 64, 65}) {
    for (int devices = 1; devices <= experts; ++devices) {
      if (experts % devices != 0) continue;
      CAPTURE(experts);
      CAPTURE(devices);
      const mb::CommunicationLoss loss{mb::AuxLoss{.coefficient = 0.3f}, devices, 1};
      const mb::CommunicationLoss of_sequence{mb::SequenceLoss{.coefficient = 0.3f}, devices, 1};
      if (experts >= 2) check(mb::Router{mb::Softmax{}, mb::TopK<2>{}, loss}, make_inputs(Kind::ties, experts, 2, 3));
      if (experts < 8) continue;
      testing::Inputs inputs = make_inputs(Kind::rare_faults, experts, 8, 4);
      check(mb::Router{mb::Sigmoid{}, mb::TopK<8>{}, loss}, inputs);
      inputs.sequences = 13;
      check(mb::Router{mb::Softmax{}, mb::TopP<8>{.p = 0.3f}, of_sequence}, inputs);
    }
  }
}

TEST_CASE("arrivals of a token whose row is in memory: every expert of every size of devices") {
  struct {
    std::vector<std::int32_t> arrived;
    void arrivals_of(std::int32_t expert, int number) {
      if (number == 1) arrived.push_back(expert);
    }
  } sink;
  for (int size = 1; size <= mb::max_experts; ++size) {
    for (int first = 0; first < mb::max_experts; first += size) {
      const std::int32_t last = std::min(first + size, mb::max_experts) - 1;
      mb::Chosen<float, mb::SerialTile, 6> chosen;
      const std::int32_t ids[] = {last, -1, first, first == 0 ? last : first - 1, last, 0};
      std::copy(std::begin(ids), std::end(ids), chosen.expert);
      std::vector<std::int32_t> expected;
      std::vector<int> devices;
      for (const std::int32_t id : ids) {
        if (id < 0 || std::count(devices.begin(), devices.end(), id / size) != 0) continue;
        devices.push_back(id / size);
        expected.push_back(id);
      }
      sink.arrived.clear();
      mb::count_arrivals_in_memory(size, chosen, sink);
      if (sink.arrived != expected) FAIL("devices of ", size, " experts, from expert ", first);
    }
  }
}

TEST_CASE("a plain top-k for losses: beside a bias, groups and fewer than K, and the routing's own") {
  check_all(mb::Router{mb::Softmax{}, mb::TopK<3>{}, mb::FromPlainTopK{mb::AuxLoss{.coefficient = 0.5f}}});
  check_all(mb::Router{mb::Sigmoid{}, mb::TopK<6>{}, mb::Combine{mb::LossFreeBias{}, mb::FromPlainTopK{mb::AuxLoss{}}}},
            true);
  check_all(mb::Router{mb::SoftmaxOverSelected{}, mb::TopK<2>{},
                       mb::Combine{mb::FromPlainTopK{mb::AuxLoss{}}, mb::LossFreeBias{}}},
            true);
  check_all(mb::Router{mb::Softmax{}, mb::TopP<8>{.p = 0.4f}, mb::FromPlainTopK{mb::AuxLoss{}}});
  check_all(mb::Router{mb::Softmax{}, mb::TopK<4>{}, mb::FromPlainTopK<mb::AuxLoss, 1>{}});
  check_all(mb::Router{mb::Sigmoid{}, mb::TopK<6>{}, mb::Combine{mb::LossFreeBias{}, mb::FromPlainTopK<mb::AuxLoss, 2>{}}},
            true);
  const mb::Router grouped{mb::Sigmoid{}, mb::GroupLimitedTopK<3>{.groups = 4, .groups_kept = 2},
                           mb::FromPlainTopK{mb::SequenceLoss{.coefficient = 0.5f}}};
  for (const int experts : {8, 32, 64, 128}) {
    testing::Inputs inputs = make_inputs(Kind::rare_faults, experts, 3, 5);
    inputs.sequences = 13;
    check(grouped, inputs);
  }
}
