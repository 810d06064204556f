// Every per-token algorithm on tiles of 1, 2, 4, 8, 16 and 32 lanes gives the bits of the one-lane tile: forward, loss, backward and update, for
// every scoring, selection and balancer.
// A router costs g++ seconds for each width. Where policies differ in values only, one type therefore stands for several: an elementwise scoring
// chosen at run time, and Replay<GroupLimitedTopK>, which is a plain top-k with one group and nothing to replay.
#include "tile/tile_step.hpp"

namespace testing {

namespace {

/// A scoring of a user's own.
struct Bell {
  MOEB_HOST_DEVICE float operator()(float logit) const { return 1.0f / (1.0f + logit * logit); }
  MOEB_HOST_DEVICE float derivative(float logit, float score) const { return -2.0f * logit * score * score; }
};

/// Any of the elementwise scorings.
struct Elementwise {
  enum class Kind { sigmoid, sqrt_softplus, identity, users };
  Kind kind;

  template <class Function>
  float with_scoring(const Function& f) const {
    switch (kind) {
      case Kind::sigmoid:
        return f(mb::Sigmoid{});
      case Kind::sqrt_softplus:
        return f(mb::SqrtSoftplus{});
      case Kind::identity:
        return f(mb::Identity{});
      default:
        return f(Bell{});
    }
  }
  float operator()(float logit) const {
    return with_scoring([&](const auto& scoring) { return scoring(logit); });
  }
  float derivative(float logit, float score) const {
    return with_scoring([&](const auto& scoring) { return scoring.derivative(logit, score); });
  }
};
static_assert(mb::ElementwiseScoring<Elementwise>);
constexpr Elementwise elementwise[] = {{Elementwise::Kind::sigmoid},
                                       {Elementwise::Kind::sqrt_softplus},
                                       {Elementwise::Kind::identity},
                                       {Elementwise::Kind::users}};

using AnySelection = mb::Replay<mb::GroupLimitedTopK<4>>;
const AnySelection plain{{.groups = 1, .groups_kept = 1, .scaling_factor = 2.0f}};
const AnySelection in_groups{{.groups = 4, .groups_kept = 2, .group_score_top = 2}};
const AnySelection not_renormalised{{.groups = 4, .groups_kept = 3, .group_score_top = 1, .renormalise = false}};

/// Every selection, with and without replayed tokens.
template <class Scoring, class Balancer>
void check_selections(const Scoring& scoring, const Balancer& balancer) {
  for (const AnySelection& selection : {plain, in_groups, not_renormalised}) {
    for (const bool replays : {false, true}) check_all_widths(scoring, selection, balancer, replays);
  }
}

template <class Balancer>
void check_elementwise(const Balancer& balancer) {
  for (const Elementwise& scoring : elementwise) {
    CAPTURE(static_cast<int>(scoring.kind));
    check_selections(scoring, balancer);
  }
}

const mb::Combine every_part{mb::AuxLoss{.coefficient = 0.3f}, mb::SequenceLoss{.coefficient = 0.2f},
                             mb::GlobalBatchLoss{.coefficient = 0.5f}, mb::ZLoss{.coefficient = 0.1f},
                             mb::LossFreeBias{.centring = mb::Centring::bias}};

/// Balancers of a user's own.
struct SquaredShare {
  MOEB_HOST_DEVICE float slope(int expert, const mb::LoadView& load) const {
    return load.share(expert) * load.share(expert);
  }
};
struct LinearZLoss {
  MOEB_HOST_DEVICE float token_loss(float logsumexp) const { return 0.25f * logsumexp; }
  MOEB_HOST_DEVICE float token_slope(float /*logsumexp*/) const { return 0.25f; }
};
struct NeighbourBias {
  MOEB_HOST_DEVICE float next_bias(float bias, int expert, const mb::LoadView& load) const {
    return bias + static_cast<float>(load.count((expert + 1) % load.experts()));
  }
};

}  // namespace

TEST_CASE("tile widths agree: Softmax, every selection, all balancers at once") {
  check_selections(mb::Softmax{}, every_part);
}
TEST_CASE("tile widths agree: SoftmaxOverSelected, every selection, all balancers at once") {
  check_selections(mb::SoftmaxOverSelected{}, every_part);
}
TEST_CASE("tile widths agree: elementwise scorings, every selection, all balancers at once") {
  check_elementwise(every_part);
}

TEST_CASE("tile widths agree: NoBalancer") {
  check_elementwise(mb::NoBalancer{});
}
TEST_CASE("tile widths agree: LossFreeBias") {
  check_elementwise(mb::LossFreeBias{.centring = mb::Centring::step});
}
TEST_CASE("tile widths agree: AuxLoss") {
  check_elementwise(mb::AuxLoss{.scale = mb::LossScale::per_token});
}
TEST_CASE("tile widths agree: SequenceLoss") {
  check_elementwise(mb::SequenceLoss{.coefficient = 0.5f});
}
TEST_CASE("tile widths agree: GlobalBatchLoss") {
  check_elementwise(mb::GlobalBatchLoss{});
}
TEST_CASE("tile widths agree: ZLoss") {
  check_elementwise(mb::ZLoss{});
}
TEST_CASE("tile widths agree: FromPlainTopK") {
  check_elementwise(
      mb::Combine{mb::FromPlainTopK{mb::AuxLoss{}}, mb::FromPlainTopK{mb::SequenceLoss{}}, mb::LossFreeBias{}});
}
TEST_CASE("tile widths agree: CommunicationLoss") {
  check_elementwise(mb::Combine{mb::CommunicationLoss{mb::SequenceLoss{.coefficient = 0.5f}, 4, 3}, mb::AuxLoss{}});
}
TEST_CASE("tile widths agree: a user's own balancers") {
  check_elementwise(mb::Combine{SquaredShare{}, LinearZLoss{}, NeighbourBias{}});
}

TEST_CASE("tile widths agree: TopK") {
  check_all_widths(mb::Softmax{}, mb::TopK<3>{.renormalise = false}, mb::AuxLoss{});
  check_all_widths(mb::SoftmaxOverSelected{}, mb::TopK<8>{}, mb::NoBalancer{});
  check_all_widths(mb::Identity{}, mb::TopK<1>{}, mb::ZLoss{});
}

}  // namespace testing
