// save_state and load_state: the layout byte for byte, what is refused, and training that resumes bit for bit.
#include "many_ranks.hpp"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

namespace testing {

namespace {

/// The message of the StateError that load_state raises; empty where it raises none.
std::string refusal_of(const std::string& text, const mb::BiasRef& bias, const mb::LoadRef& load) {
  std::istringstream in(text);
  try {
    (void)mb::load_state(in, bias, load);
  } catch (const mb::StateError& error) {
    return error.what();
  }
  return {};
}

struct State {
  std::vector<float> bias;
  Counts load;
  int experts = 0;
  std::int64_t layers = 0;
  std::int64_t stride = 0;

  State(int expert_count, std::int64_t layer_count, std::int64_t row)
      : bias(static_cast<std::size_t>(layer_count * row)),
        load(static_cast<std::size_t>(layer_count * row)),
        experts(expert_count),
        layers(layer_count),
        stride(row) {
    for (std::size_t i = 0; i < bias.size(); ++i) {
      bias[i] = 0.37f * static_cast<float>(i) - 1.0f;
      load[i] = static_cast<std::int64_t>(i) * 0x123456789 + 7;
    }
  }
  [[nodiscard]] mb::BiasRef bias_ref() { return {bias.data(), experts, layers, stride}; }
  [[nodiscard]] mb::LoadRef load_ref() { return {load.data(), experts, layers, stride}; }
  [[nodiscard]] std::string saved(std::int64_t step) {
    std::ostringstream out;
    mb::save_state(out, bias_ref(), load_ref(), step);
    return out.str();
  }
  /// The step; or the message of the StateError, with nothing changed.
  std::int64_t read(const std::string& text) {
    std::istringstream in(text);
    return mb::load_state(in, bias_ref(), load_ref());
  }
  [[nodiscard]] std::string refusal(const std::string& text) {
    const std::vector<float> bias_before = bias;
    const Counts load_before = load;
    const std::string message = refusal_of(text, bias_ref(), load_ref());
    CHECK(std::memcmp(bias.data(), bias_before.data(), bias.size() * sizeof(float)) == 0);
    CHECK(load == load_before);
    return message;
  }
};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

void append(std::string& text, std::uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) {
    text += static_cast<char>(value % 256);
    value /= 256;
  }
}

/// The 32 bytes that every version begins with.
std::string header_of(std::uint64_t version, std::uint64_t experts, std::uint64_t layers, std::uint64_t step) {
  std::string text = "MOEBSTAT";
  append(text, version, 4);
  append(text, experts, 4);
  append(text, layers, 8);
  append(text, step, 8);
  return text;
}

std::string with_checksum(std::string text) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const char byte : text) {
    hash ^= static_cast<unsigned char>(byte);
    hash *= 0x100000001b3u;
  }
  append(text, hash, 8);
  return text;
}

}  // namespace

TEST_CASE("a state has the documented layout") {
  State state(2, 1, 2);
  state.bias = {1.0f, -2.5f};
  state.load = {3, 0x7ffefdfcfbfaf9f8};
  std::string want = header_of(1, 2, 1, 0x0102030405);
  append(want, 0x3f800000, 4);
  append(want, 0xc0200000, 4);
  append(want, 3, 8);
  append(want, 0x7ffefdfcfbfaf9f8, 8);
  CHECK(state.saved(0x0102030405) == with_checksum(want));
}

TEST_CASE("a state comes back as it was, and what lies between rows stays as it is") {
  State state(3, 4, 5);
  state.bias[0] = -0.0f;
  state.bias[1] = -std::numeric_limits<float>::infinity();
  State other(3, 4, 8);
  for (float& value : other.bias) value = 99.0f;
  for (std::int64_t& value : other.load) value = 99;
  CHECK(other.read(state.saved(-5)) == -5);
  for (std::size_t l = 0; l < 4; ++l) {
    for (std::size_t e = 0; e < 8; ++e) {
      const float bias = e < 3 ? state.bias[l * 5 + e] : 99.0f;
      CHECK(std::bit_cast<std::uint32_t>(other.bias[l * 8 + e]) == std::bit_cast<std::uint32_t>(bias));
      CHECK(other.load[l * 8 + e] == (e < 3 ? state.load[l * 5 + e] : 99));
    }
  }
}

TEST_CASE("states may lie one after another in a stream, among other things") {
  State first(2, 3, 2), second(4, 1, 4), a(2, 3, 2), b(4, 1, 4);
  a.load.assign(6, 0);
  b.load.assign(4, 0);
  std::istringstream in("before" + first.saved(1) + second.saved(2) + "after");
  in.ignore(6);
  CHECK(mb::load_state(in, a.bias_ref(), a.load_ref()) == 1);
  CHECK(mb::load_state(in, b.bias_ref(), b.load_ref()) == 2);
  CHECK(a.load == first.load);
  CHECK(b.load == second.load);
  std::string rest;
  in >> rest;
  CHECK(rest == "after");
}

TEST_CASE("a truncated state is refused at every length and changes nothing") {
  State state(3, 2, 3);
  const std::string whole = state.saved(7);
  State target(3, 2, 4);
  for (std::size_t length = 0; length < whole.size(); ++length) {
    CAPTURE(length);
    const std::string ends = "the state ends after " + std::to_string(length) + " bytes";
    CHECK(contains(target.refusal(whole.substr(0, length)), length == 0 ? "nothing could be read" : ends));
  }
}

TEST_CASE("a state with any bit or byte changed is refused and changes nothing") {
  State state(3, 2, 3);
  const std::string whole = state.saved(7);
  State target(3, 2, 3);
  for (std::size_t i = 0; i < whole.size(); ++i) {
    for (const int flip : {1, 2, 4, 8, 16, 32, 64, 128, 255}) {
      CAPTURE(i);
      std::string changed = whole;
      changed[i] = static_cast<char>(changed[i] ^ flip);
      const std::string message = target.refusal(changed);
      const char* want = i < 8 ? "is no state" : i < 12 ? "has version" : i < 24 ? "allowed: 2 layers of 3" : "is corrupted";
      CHECK(contains(message, want));
    }
  }
}

TEST_CASE("what is no state, of another version or another shape is refused") {
  State state(3, 2, 3), target(2, 3, 2);
  CHECK(contains(target.refusal(state.saved(1)), "the state has 2 layers of 3 experts; allowed: 3 layers of 2"));
  CHECK(contains(target.refusal(std::string(1000, 'x')), "this is no state of moe_balance"));
  std::string newer = state.saved(1);
  newer.resize(newer.size() - 8);
  newer[8] = 3;
  State same(3, 2, 3);
  CHECK(contains(same.refusal(with_checksum(newer)), "the state has version 3; allowed: 1, 2"));
}

TEST_CASE("a bias that is NaN and a count below 0 are neither saved nor loaded; an infinity is both") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  State state(3, 2, 4);
  state.bias[1] = -infinity;
  state.bias[2] = infinity;
  State target(3, 2, 3);
  CHECK(target.read(state.saved(5)) == 5);
  CHECK(target.bias[1] == -infinity);
  CHECK(target.bias[2] == infinity);
  const std::string good = state.saved(5);
  const auto changed = [&](std::size_t offset, std::uint64_t value, int bytes) {
    std::string text = good.substr(0, offset);
    append(text, value, bytes);
    return with_checksum(text + good.substr(text.size(), good.size() - 8 - text.size()));
  };
  for (const std::uint32_t nan : {0x7fc00000u, 0xff800001u}) {
    CHECK(contains(target.refusal(changed(32 + 4 * 4, nan, 4)),
                   "load_state: bias[4] of the state is nan; allowed: numbers and infinities"));
  }
  CHECK(contains(target.refusal(changed(32 + 4 * 6 + 8 * 5, ~std::uint64_t{0}, 8)),
                 "load_state: load.counts[5] of the state is -1; allowed: 0 and more"));
  CHECK(target.read(changed(32 + 4 * 4, 0, 4)) == 5);  // what was changed is what was said
  CHECK(target.bias[4] == 0);

  std::ostringstream out;
  state.bias[5] = std::numeric_limits<float>::quiet_NaN();  // layer 1, expert 1
  CHECK_THROWS_WITH_AS(mb::save_state(out, state.bias_ref(), state.load_ref(), 1),
                       "moe_balance: save_state: bias[4] is nan; allowed: numbers and infinities", mb::InvalidArgument);
  state.bias[5] = 0;
  state.load[4] = -3;
  CHECK_THROWS_WITH_AS(mb::save_state(out, state.bias_ref(), state.load_ref(), 1),
                       "moe_balance: save_state: load.counts[3] is -3; allowed: 0 and more", mb::InvalidArgument);
  CHECK(out.str().empty());
  std::vector<float> kept(4, 0.0f);  // what the rule keeps: the last of two biases and of their memory
  kept[3] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH_AS(mb::save_state(out, mb::BiasRef(kept.data(), 2).with_memory(1), {state.load.data(), 2}, 1),
                       "moe_balance: save_state: bias[3] is nan; allowed: numbers and infinities", mb::InvalidArgument);
}

TEST_CASE("what lies behind a shorter layer is saved and loaded as it is") {
  State state(3, 2, 3);
  const std::vector<std::int32_t> own{3, 2};
  mb::LoadRef load = state.load_ref();
  load.experts_of_layer = own.data();
  state.bias[5] = std::numeric_limits<float>::quiet_NaN();
  state.load[5] = -7;
  std::ostringstream out;
  mb::save_state(out, state.bias_ref(), load, 1);
  CHECK(contains(refusal_of(out.str(), state.bias_ref(), state.load_ref()),
                 "bias[5] of the state is nan"));  // of three experts
  std::istringstream in(out.str());
  CHECK(mb::load_state(in, state.bias_ref(), load) == 1);
  CHECK(state.load[5] == -7);
  state.bias[4] = state.bias[5];
  CHECK_THROWS_WITH_AS(mb::save_state(out, state.bias_ref(), load, 1), doctest::Contains("save_state: bias[4] is nan"),
                       mb::InvalidArgument);
}

TEST_CASE("what a rule keeps lies behind the bias, in a layout of version 2") {
  const float tables[] = {1.0f, -2.5f, 0.5f, 4.0f};
  std::vector<float> bias(std::begin(tables), std::end(tables));
  Counts load{3, 0x7ffefdfcfbfaf9f8};
  const mb::BiasRef bias_ref = mb::BiasRef(bias.data(), 2).with_memory(1);
  std::string want = header_of(2, 2, 1, 7);
  append(want, 1, 4);
  for (const std::uint64_t bits : {0x3f800000u, 0xc0200000u, 0x3f000000u, 0x40800000u}) append(want, bits, 4);
  append(want, 3, 8);
  append(want, 0x7ffefdfcfbfaf9f8, 8);
  std::ostringstream out;
  mb::save_state(out, bias_ref, {load.data(), 2}, 7);
  CHECK(out.str() == with_checksum(want));

  bias.assign(4, 9.0f);
  std::istringstream in(out.str());
  CHECK(mb::load_state(in, bias_ref, {load.data(), 2}) == 7);
  CHECK(bias == std::vector<float>(std::begin(tables), std::end(tables)));

  const auto refusal = [&](const std::string& text, int memory) {
    const std::vector<float> before = bias;
    const std::string message = refusal_of(text, mb::BiasRef(bias.data(), 2).with_memory(memory), {load.data(), 2});
    CHECK(bias == before);
    return message;
  };
  CHECK(contains(refusal(out.str(), 0), "the state keeps 1 values for each bias; allowed: 0"));
  CHECK(contains(refusal(out.str(), 2), "the state keeps 1 values for each bias; allowed: 2"));
  CHECK(contains(refusal(State(2, 1, 2).saved(1), 1), "the state keeps 0 values for each bias; allowed: 1"));
  for (std::size_t length = 32; length < out.str().size(); ++length) {
    CHECK(contains(refusal(out.str().substr(0, length), 1), "the state ends after " + std::to_string(length) + " bytes"));
  }
  for (std::size_t i = 32; i < out.str().size(); ++i) {
    std::string changed = out.str();
    changed[i] = static_cast<char>(changed[i] ^ 4);
    CHECK(contains(refusal(changed, 1), i < 36 ? "values for each bias; allowed: 1" : "is corrupted"));
  }
  std::string of_no_values = out.str().substr(0, out.str().size() - 8);
  of_no_values[32] = 0;
  for (const int memory : {0, 1}) {
    CHECK(
        contains(refusal(with_checksum(of_no_values), memory), "the state has version 2 and keeps no values for each bias"));
  }
  // On with another rule: what an older one saved, and nothing behind it.
  State plain(2, 1, 2);
  std::istringstream older(plain.saved(3));
  bias = {9, 9, 0, 0};
  CHECK(mb::load_state(older, bias_ref.with_memory(0), {load.data(), 2}) == 3);
  CHECK(bias == std::vector<float>{plain.bias[0], plain.bias[1], 0, 0});
  // A layer alone, of two.
  std::vector<float> layers{1, 2, 3, 4, 5, 6, 7, 8};
  std::ostringstream one;
  mb::save_state(one, mb::BiasRef(layers.data(), 2, 2).with_memory(1).layer(1), {load.data(), 2}, 1);
  std::istringstream of_one(one.str());
  CHECK(mb::load_state(of_one, bias_ref, {load.data(), 2}) == 1);
  CHECK(bias == std::vector<float>{3, 4, 7, 8});
  for (const int memory : {-1, 9}) {
    std::istringstream same(out.str());
    CHECK_THROWS_AS((void)mb::load_state(same, mb::BiasRef(bias.data(), 2).with_memory(memory), {load.data(), 2}),
                    mb::InvalidArgument);
    CHECK_THROWS_AS(mb::save_state(out, mb::BiasRef(bias.data(), 2).with_memory(memory), {load.data(), 2}, 7),
                    mb::InvalidArgument);
  }
}

TEST_CASE("histograms of margins are not saved: they have to be 0, and are so in what is loaded into") {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<1>{}, mb::QuantileBias{.bins = 4}};
  const mb::Bias bias(router, 3, 2), resumed(router, 3, 2);
  const mb::Load load(router, 3, 2), resumed_load(router, 3, 2);
  const std::int32_t experts[] = {3, 2};
  mb::LoadRef load_ref = load.ref(), resumed_ref = resumed_load.ref();
  load_ref.experts_of_layer = resumed_ref.experts_of_layer = experts;
  bias.data()[4] = 0.5f;
  load.data()[1] = 6;  // expert 1 of layer 0, and of layer 1, whose histograms begin behind its second expert
  load.data()[16] = 7;
  for (const std::size_t cell : {3, 14, 17, 18, 24, 29}) {
    load.data()[cell] = 1;
    std::stringstream none;
    CHECK_THROWS_WITH_AS(
        mb::save_state(none, bias.ref(), load_ref, 9),
        "moe_balance: save_state: load.counts is margins of a step that is not done; allowed: histograms of 0, "
        "as after update: they are not saved",
        mb::InvalidArgument);
    CHECK(none.str().empty());
    load.data()[cell] = 0;
  }
  std::stringstream stream;
  mb::save_state(stream, bias.ref(), load_ref, 9);
  std::fill(resumed_load.data(), resumed_load.data() + 30, 5);
  CHECK(mb::load_state(stream, resumed.ref(), resumed_ref) == 9);
  CHECK(resumed.data()[4] == 0.5f);
  CHECK(std::equal(load.data(), load.data() + 30, resumed_load.data()));
  // A state of a load without histograms may have anything behind a short layer's counts.
  const mb::Load counts(3, 2);
  std::fill(counts.data(), counts.data() + 6, 77);
  std::stringstream of_counts;
  mb::save_state(of_counts, bias.ref(), counts.ref(), 10);
  CHECK(mb::load_state(of_counts, resumed.ref(), resumed_ref) == 10);
  CHECK(std::count(resumed_load.data(), resumed_load.data() + 30, 77) == 5);
  CHECK(std::count(resumed_load.data(), resumed_load.data() + 30, 0) == 25);
  std::stringstream again;
  load_ref.stride = 14;
  CHECK_THROWS_WITH_AS(
      mb::save_state(again, bias.ref(), load_ref, 9),
      "moe_balance: save_state: load.stride is 14; allowed: 15 or more, what a layer has with its histograms",
      mb::InvalidArgument);
  const std::int32_t wrong[] = {3, 4};
  load_ref = load.ref();
  load_ref.experts_of_layer = wrong;
  CHECK_THROWS_WITH_AS(mb::save_state(again, bias.ref(), load_ref, 9),
                       "moe_balance: save_state: load.experts_of_layer[1] is 4; allowed: 1 to 3", mb::InvalidArgument);
  load_ref.bins = 65537;
  CHECK_THROWS_WITH_AS(mb::save_state(again, bias.ref(), load_ref, 9),
                       "moe_balance: save_state: load.bins is 65537; allowed: 0 to 65536", mb::InvalidArgument);
}

TEST_CASE("a header with huge numbers, or one of the other byte order, is refused before memory is taken for it") {
  State target(3, 2, 3);
  for (const std::uint64_t huge : {~std::uint64_t{0}, std::uint64_t{1} << 62, std::uint64_t{1} << 32 | 2}) {
    const std::string text = header_of(1, huge % (std::uint64_t{1} << 32), huge, 7);
    CHECK(contains(target.refusal(with_checksum(text)), "allowed: 2 layers of 3"));
  }
  State state(3, 2, 3);
  std::string turned = state.saved(7);
  std::reverse(turned.begin() + 8, turned.begin() + 12);
  CHECK(contains(target.refusal(turned), "the state has version 16777216; allowed: 1"));
}

TEST_CASE("a stream that takes nothing, and references that do not fit each other, are errors") {
  State state(3, 2, 3);
  std::ostringstream full;
  full.setstate(std::ios::badbit);
  CHECK_THROWS_AS(mb::save_state(full, state.bias_ref(), state.load_ref(), 1), mb::StateError);
  if (std::ofstream full_disk("/dev/full", std::ios::binary); full_disk.is_open()) {  // takes bytes into its buffer first
    CHECK_THROWS_AS(mb::save_state(full_disk, state.bias_ref(), state.load_ref(), 1), mb::StateError);
  }
  std::ostringstream out;
  const mb::BiasRef bias = state.bias_ref();
  const mb::LoadRef load = state.load_ref();
  CHECK_THROWS_AS(mb::save_state(out, {}, load, 1), mb::InvalidArgument);
  CHECK_THROWS_AS(mb::save_state(out, bias, {}, 1), mb::InvalidArgument);
  constexpr std::int64_t huge = (std::int64_t{1} << 60) + 1;  // 12 bytes of each cell would wrap around
  CHECK_THROWS_AS(mb::save_state(out, {state.bias.data(), 3, huge}, {state.load.data(), 3, huge}, 1), mb::InvalidArgument);
  CHECK_THROWS_AS(mb::save_state(out, bias, load.layer(0), 1), mb::InvalidArgument);
  CHECK_THROWS_AS(mb::save_state(out, bias, load.layer(0, 2), 1), mb::InvalidArgument);
  CHECK_THROWS_AS(mb::save_state(out, {state.bias.data(), 3, 2, 2}, load, 1), mb::InvalidArgument);  // rows would overlap
  CHECK_THROWS_AS(mb::save_state(out, bias, {state.load.data(), 3, 2, -3}, 1), mb::InvalidArgument);
  CHECK(out.str().empty());
  std::istringstream in(state.saved(1));
  CHECK_THROWS_AS((void)mb::load_state(in, bias, load.layer(0)), mb::InvalidArgument);
}

TEST_CASE("memory of a size that no place has is not there") {
  CHECK_THROWS_AS(mb::Buffer<std::int64_t>((std::size_t{1} << 61) + 1), std::bad_alloc);
  CHECK_THROWS_AS(mb::Buffer<char>(~std::size_t{0}), std::bad_alloc);
  CHECK_THROWS_AS(mb::Bias{-1}, std::bad_alloc);
  CHECK_THROWS_AS(mb::Bias(4, -1), std::bad_alloc);
  CHECK_THROWS_AS(mb::Load(2, (std::int64_t{1} << 60) + 1), std::bad_alloc);
  CHECK_THROWS_AS(mb::Load(2000000000, std::int64_t{1} << 62), std::bad_alloc);
  CHECK(mb::Bias(0).ref().experts == 0);
  const mb::Router pid{mb::Sigmoid{}, mb::TopK<1>{}, mb::PidBias{}};
  constexpr std::int64_t layers =
      3074457345618258603;  // of 2 experts fit, and three tables of these wrap around to a few bytes
  CHECK_THROWS_AS(mb::Bias(pid, 2, layers), std::bad_alloc);
}

template <class Balancer>
void check_resumes(const Balancer& balancer) {
  constexpr int steps = 12;
  const mb::Router router{mb::Sigmoid{}, mb::TopK<rank_k>{}, balancer};
  const auto micro_batch = [&](std::int64_t index, mb::BiasRef bias, mb::LoadRef load) {
    const std::vector<float> logits = Random(static_cast<std::uint64_t>(index)).normals(30 * rank_experts);
    RankCall(router, logits, 0, 30).forward(bias, load);
    if (index % 2 == 1) router.update(bias, load, {}, mb::Host{});
  };
  const mb::Bias straight(router, rank_experts);
  const mb::Load straight_load(rank_experts);
  for (std::int64_t i = 0; i < 2 * steps; ++i) micro_batch(i, straight.ref(), straight_load.ref());

  std::string file;
  for (std::int64_t i = 0; i < 2 * steps; ++i) {  // a new process for every micro-batch
    const mb::Bias bias(router, rank_experts);
    const mb::Load load(rank_experts);
    std::int64_t next = 0;
    if (!file.empty()) {
      std::istringstream in(file);
      next = mb::load_state(in, bias.ref(), load.ref());
    }
    CHECK(next == i);
    micro_batch(next, bias.ref(), load.ref());
    std::ostringstream out;
    mb::save_state(out, bias.ref(), load.ref(), next + 1);
    file = out.str();
  }
  const mb::Bias resumed(router, rank_experts);
  const mb::Load resumed_load(rank_experts);
  std::istringstream in(file);
  CHECK(mb::load_state(in, resumed.ref(), resumed_load.ref()) == 2 * steps);
  CHECK(std::memcmp(resumed.data(), straight.data(), (1 + mb::bias_memory<Balancer>)*rank_experts * sizeof(float)) == 0);
  CHECK(*std::max_element(straight.data(), straight.data() + rank_experts) > 0.0f);
}

TEST_CASE("training resumes bit for bit, also from the middle of a step") {
  check_resumes(mb::LossFreeBias{.update_rate = 1e-3f, .centring = mb::Centring::bias});
  check_resumes(mb::SmebuBias{.update_rate = 1e-3f});
}

}  // namespace testing
