// Host and device must agree where every field of every kernel parameter lies: each struct is passed to a kernel, which echoes its
// fields back. ([[no_unique_address]], for one, is laid out differently by the two, and corrupts silently.)
#include "engine_cuda.cuh"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstring>
#include <vector>

namespace testing {

/// The named fields of a struct, as bytes: for each its offset, its size and its value.
template <auto... Members>
struct Fields {
  template <class Struct>
  __host__ __device__ static std::size_t echo(const Struct& parameters, unsigned char* out) {
    std::size_t used = 0;
    (copy(parameters, parameters.*Members, out, used), ...);
    return used;
  }

 private:
  template <class Struct, class Field>
  __host__ __device__ static void copy(const Struct& parameters, const Field& field, unsigned char* out, std::size_t& used) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(&field);
    const auto offset = bytes - reinterpret_cast<const unsigned char*>(&parameters);
    out[used++] = static_cast<unsigned char>(offset % 256);
    out[used++] = static_cast<unsigned char>(offset / 256);
    out[used++] = static_cast<unsigned char>(sizeof(Field));
    for (std::size_t i = 0; i < sizeof(Field); ++i) out[used++] = bytes[i];
  }
};

template <class FieldsT, class Struct>
__global__ void echo_kernel(const __grid_constant__ Struct parameters, unsigned char* out) {
  FieldsT::echo(parameters, out);
}

template <class Struct, auto... Members>
void check_echo() {
  Struct parameters{};
  unsigned char pattern[sizeof(Struct)];
  for (std::size_t i = 0; i < sizeof(Struct); ++i) pattern[i] = static_cast<unsigned char>(i + 1);
  std::memcpy(static_cast<void*>(&parameters), pattern, sizeof(Struct));

  std::vector<unsigned char> expected((sizeof(Struct) + 3) * sizeof...(Members));
  expected.resize(Fields<Members...>::echo(parameters, expected.data()));
  const CudaEngine engine;
  CudaEngine::Array<unsigned char> echoed(engine, std::vector<unsigned char>(expected.size()));
  echo_kernel<Fields<Members...>><<<1, 1, 0, engine.place()>>>(parameters, echoed.data());
  cuda_check(cudaGetLastError(), "launching the echo");
  CHECK(echoed.values() == expected);
}

using Balancer = mb::Combine<mb::LossFreeBias, mb::SequenceLoss, mb::ZLoss>;
using Forward = mb::ForwardProblem<mb::Sigmoid, mb::GroupLimitedTopK<8>, Balancer>;
using Backward = mb::BackwardProblem<mb::Softmax, mb::TopK<8>, Balancer>;
using Loss = mb::LossProblem<Balancer>;
using Update = mb::UpdateProblem<Balancer>;
using Margins = mb::MarginProblem<mb::Softmax, mb::TopK<8>, mb::Combine<mb::QuantileBias, mb::ZLoss>>;
using Thresholds = decltype(Margins::thresholds);

TEST_CASE("rule 8: the kernels' parameter structs reach the device as the host wrote them") {
  check_echo<Forward, &Forward::scoring, &Forward::top_k, &Forward::balancer, &Forward::logits, &Forward::experts, &Forward::weights,
             &Forward::bias, &Forward::active, &Forward::tokens_on_device, &Forward::replay, &Forward::segments,
             &Forward::rows_hold_quads, &Forward::first_token, &Forward::largest_token_loss, &Forward::balanced>();
  check_echo<Backward, &Backward::scoring, &Backward::top_k, &Backward::balancer, &Backward::logits, &Backward::experts,
             &Backward::grad_weights, &Backward::grad_logits, &Backward::saved, &Backward::active, &Backward::tokens_on_device,
             &Backward::grad_loss, &Backward::loss_scale, &Backward::ranks, &Backward::segments, &Backward::logits_hold_quads,
             &Backward::grad_holds_quads, &Backward::first_token, &Backward::balanced>();
  check_echo<Margins, &Margins::scoring, &Margins::top_k, &Margins::balancer, &Margins::logits, &Margins::experts, &Margins::bias,
             &Margins::histogram, &Margins::rows_hold_quads, &Margins::active, &Margins::tokens_on_device, &Margins::thresholds, &Margins::balanced>();
  check_echo<Loss, &Loss::balancer, &Loss::saved, &Loss::experts, &Loss::top_k, &Loss::ranks, &Loss::sums_counts, &Loss::sequences, &Loss::value,
             &Loss::part_values>();
  check_echo<Update, &Update::balancer, &Update::bias, &Update::load, &Update::top_k, &Update::ranks, &Update::failure_flag>();
  check_echo<mb::Totals, &mb::Totals::counts, &mb::Totals::load, &mb::Totals::saved, &mb::Totals::status,
             &mb::Totals::saved_words, &mb::Totals::words_to_clear, &mb::Totals::counts_to_clear,
             &mb::Totals::clearing_blocks, &mb::Totals::rows_of_sums>();
}

TEST_CASE("rule 8: and so do the structs inside them") {
  using Matrix = mb::MatrixView<std::int32_t>;
  check_echo<Matrix, &Matrix::data, &Matrix::rows, &Matrix::columns, &Matrix::stride>();
  using AnyMatrix = mb::AnyMatrix;
  check_echo<AnyMatrix, &AnyMatrix::data, &AnyMatrix::type, &AnyMatrix::rows, &AnyMatrix::columns, &AnyMatrix::stride>();
  using mb::BiasRef;
  check_echo<BiasRef, &BiasRef::data, &BiasRef::experts, &BiasRef::layers, &BiasRef::stride, &BiasRef::memory>();
  using mb::LoadRef;
  check_echo<LoadRef, &LoadRef::counts, &LoadRef::experts, &LoadRef::layers, &LoadRef::stride, &LoadRef::experts_of_layer>();
  using mb::SavedView;
  check_echo<SavedView, &SavedView::tokens, &SavedView::token_losses, &SavedView::counts, &SavedView::probabilities,
             &SavedView::global_counts, &SavedView::segment_tokens, &SavedView::segment_counts,
             &SavedView::segment_probabilities>();
  using mb::Sequences;
  check_echo<Sequences, &Sequences::count, &Sequences::layout, &Sequences::offsets>();
  using mb::Segments;
  check_echo<Segments, &Segments::sequences, &Segments::tokens, &Segments::length>();
  using mb::ReplayRef;
  check_echo<ReplayRef, &ReplayRef::experts, &ReplayRef::tokens>();
  check_echo<Thresholds, &Thresholds::values, &Thresholds::rows>();
  using Row = Thresholds::Row;  // which one kernel leaves in memory for the next
  check_echo<Row, &Row::maximum, &Row::sum, &Row::inverse_sum, &Row::regular, &Row::numbers>();
  using TopK = mb::GroupLimitedTopK<8>;
  check_echo<TopK, &TopK::groups, &TopK::groups_kept, &TopK::group_score_top, &TopK::renormalise, &TopK::scaling_factor>();
  using Share = mb::TopP<8>;
  check_echo<Share, &Share::p, &Share::renormalise, &Share::scaling_factor>();
  using Cut = mb::Threshold<8>;
  check_echo<Cut, &Cut::renormalise, &Cut::scaling_factor>();
  using mb::LossFreeBias;
  check_echo<LossFreeBias, &LossFreeBias::update_rate, &LossFreeBias::centring, &LossFreeBias::frozen>();
  using mb::SequenceLoss;
  check_echo<SequenceLoss, &SequenceLoss::coefficient, &SequenceLoss::scale>();
  check_echo<Balancer, &Balancer::first, &Balancer::rest>();
  using Budget = mb::WithZeroComputation<LossFreeBias>;  // its base's members first
  check_echo<Budget, &Budget::update_rate, &Budget::centring, &Budget::frozen, &Budget::zero_experts, &Budget::computed_per_token>();
}

TEST_CASE("rule 8: and the dispatch kernels' structs") {
  using mb::IdentityExperts;
  check_echo<IdentityExperts, &IdentityExperts::experts, &IdentityExperts::range, &IdentityExperts::tokens, &IdentityExperts::weights>();
  using mb::ExpertRange;
  check_echo<ExpertRange, &ExpertRange::first, &ExpertRange::count>();
  using mb::NoiseSource;
  check_echo<NoiseSource, &NoiseSource::kind, &NoiseSource::scale, &NoiseSource::seed, &NoiseSource::offset,
             &NoiseSource::offset_on_device, &NoiseSource::first_token>();
  using mb::NoiseProblem;
  check_echo<NoiseProblem, &NoiseProblem::terms, &NoiseProblem::factors, &NoiseProblem::sums, &NoiseProblem::noise>();
  using mb::SinkhornProblem;
  check_echo<SinkhornProblem, &SinkhornProblem::logits, &SinkhornProblem::active, &SinkhornProblem::tokens_on_device,
             &SinkhornProblem::tolerance, &SinkhornProblem::iteration, &SinkhornProblem::last_iteration, &SinkhornProblem::log_scale,
             &SinkhornProblem::iterations, &SinkhornProblem::sums, &SinkhornProblem::scales, &SinkhornProblem::done,
             &SinkhornProblem::tokens>();
  using mb::NoisyChoice;
  check_echo<NoisyChoice, &NoisyChoice::logits, &NoisyChoice::noisy, &NoisyChoice::top_k, &NoisyChoice::scale,
             &NoisyChoice::scales, &NoisyChoice::winning, &NoisyChoice::active, &NoisyChoice::tokens_on_device>();
  using mb::SmoothLoadProblem;
  check_echo<SmoothLoadProblem, &SmoothLoadProblem::choice, &SmoothLoadProblem::load>();
  using mb::LoadLossProblem;
  check_echo<LoadLossProblem, &LoadLossProblem::load, &LoadLossProblem::grad_load, &LoadLossProblem::coefficient,
             &LoadLossProblem::loss>();
  using Gradients = mb::SmoothLoadBackwardProblem;
  check_echo<Gradients, &Gradients::choice, &Gradients::grad_load, &Gradients::grad_logits, &Gradients::grad_noisy,
             &Gradients::grad_scales, &Gradients::grad_loss, &Gradients::loss_scale>();
  using mb::PermutationProblem;
  check_echo<PermutationProblem, &PermutationProblem::experts, &PermutationProblem::row_of_slot, &PermutationProblem::tokens,
             &PermutationProblem::k, &PermutationProblem::by_k, &PermutationProblem::expert_count,
             &PermutationProblem::zero_experts, &PermutationProblem::offsets,
             &PermutationProblem::slot_of_row,
             &PermutationProblem::rows, &PermutationProblem::align, &PermutationProblem::rows_per_expert, &PermutationProblem::counts,
             &PermutationProblem::expert_of_block, &PermutationProblem::row_blocks, &PermutationProblem::block_size,
             &PermutationProblem::histogram, &PermutationProblem::ranking_blocks, &PermutationProblem::rows_of_block,
             &PermutationProblem::invalid,
             &PermutationProblem::sums>();
  using mb::RowsOfSums;
  check_echo<RowsOfSums, &RowsOfSums::rows, &RowsOfSums::row_count, &RowsOfSums::sums, &RowsOfSums::words>();
  using mb::Histogram;
  check_echo<Histogram, &Histogram::counts, &Histogram::rows, &Histogram::columns, &Histogram::narrow, &Histogram::tokens_per_row,
             &Histogram::longer_rows>();
  using mb::GatherProblem;
  check_echo<GatherProblem, &GatherProblem::tokens, &GatherProblem::rows, &GatherProblem::slot_of_row, &GatherProblem::slots,
             &GatherProblem::k, &GatherProblem::factors, &GatherProblem::clears_padding, &GatherProblem::packs, &GatherProblem::invalid>();
  using mb::CombineProblem;
  check_echo<CombineProblem, &CombineProblem::rows, &CombineProblem::tokens, &CombineProblem::row_of_slot, &CombineProblem::weights,
             &CombineProblem::identity, &CombineProblem::packs, &CombineProblem::invalid>();
  using mb::DotProblem;
  check_echo<DotProblem, &DotProblem::tokens, &DotProblem::rows, &DotProblem::row_of_slot, &DotProblem::dots, &DotProblem::packs>();
  using mb::SpreadProblem;
  check_echo<SpreadProblem, &SpreadProblem::tokens, &SpreadProblem::rows, &SpreadProblem::row_of_slot, &SpreadProblem::slot_of_row,
             &SpreadProblem::factors, &SpreadProblem::others, &SpreadProblem::dots, &SpreadProblem::identity, &SpreadProblem::clears_padding, &SpreadProblem::packs,
             &SpreadProblem::packs_of_others, &SpreadProblem::packs_of_identity, &SpreadProblem::invalid>();
  using mb::RandomPriority;
  check_echo<RandomPriority, &RandomPriority::seed, &RandomPriority::offset, &RandomPriority::offset_on_device,
             &RandomPriority::first_token>();
  using mb::PriorityProblem;
  check_echo<PriorityProblem, &PriorityProblem::priority, &PriorityProblem::tokens, &PriorityProblem::k, &PriorityProblem::priorities>();
  using mb::CapacityProblem;
  check_echo<CapacityProblem, &CapacityProblem::chosen, &CapacityProblem::experts, &CapacityProblem::weights,
             &CapacityProblem::expert_count, &CapacityProblem::capacity, &CapacityProblem::by_rank, &CapacityProblem::priorities, &CapacityProblem::offsets,
             &CapacityProblem::slot_of_row, &CapacityProblem::kept_counts, &CapacityProblem::dropped_slots>();
  using BackwardIds = mb::BackwardIdsProblem<mb::Softmax>;
  check_echo<BackwardIds, &BackwardIds::scoring, &BackwardIds::weighting, &BackwardIds::logits, &BackwardIds::chosen,
             &BackwardIds::experts, &BackwardIds::ids>();
  using mb::OncePerRankProblem;
  check_echo<OncePerRankProblem, &OncePerRankProblem::experts, &OncePerRankProblem::ranks, &OncePerRankProblem::experts_per_rank,
             &OncePerRankProblem::rank_count, &OncePerRankProblem::invalid>();
  using Rows = mb::RoutingOfRowsProblem;
  check_echo<Rows, &Rows::experts, &Rows::weights, &Rows::slot_of_row, &Rows::row_experts, &Rows::row_weights, &Rows::experts_per_rank,
             &Rows::invalid>();
  using Slots = mb::RoutingOfRowsBackwardProblem;
  check_echo<Slots, &Slots::experts, &Slots::row_of_slot, &Slots::grad_row_weights, &Slots::grad_weights, &Slots::experts_per_rank,
             &Slots::invalid>();
  using mb::RenormaliseProblem;
  check_echo<RenormaliseProblem, &RenormaliseProblem::chosen, &RenormaliseProblem::experts, &RenormaliseProblem::weights,
             &RenormaliseProblem::expert_count, &RenormaliseProblem::scaling_factor>();
  using Capacity = mb::WithCapacity<mb::TopK<8>>;
  check_echo<Capacity, &Capacity::capacity_factor, &Capacity::drop, &Capacity::renormalise, &Capacity::pad, &Capacity::selection,
             &Capacity::priority>();
  using mb::SharedExpertsProblem;
  check_echo<SharedExpertsProblem, &SharedExpertsProblem::experts, &SharedExpertsProblem::weights, &SharedExpertsProblem::all_experts,
             &SharedExpertsProblem::all_weights, &SharedExpertsProblem::first_shared, &SharedExpertsProblem::weight,
             &SharedExpertsProblem::active, &SharedExpertsProblem::invalid>();
  using mb::SortProblem;
  check_echo<SortProblem, &SortProblem::permutation, &SortProblem::keys, &SortProblem::slots, &SortProblem::first_sorted,
             &SortProblem::slot_count>();
  using mb::ExpertOffsetsProblem;
  check_echo<ExpertOffsetsProblem, &ExpertOffsetsProblem::counts, &ExpertOffsetsProblem::experts, &ExpertOffsetsProblem::offsets,
             &ExpertOffsetsProblem::align, &ExpertOffsetsProblem::rows_per_expert, &ExpertOffsetsProblem::invalid>();
  using mb::RankSplitsProblem;
  check_echo<RankSplitsProblem, &RankSplitsProblem::offsets, &RankSplitsProblem::counts, &RankSplitsProblem::experts,
             &RankSplitsProblem::ranks, &RankSplitsProblem::send_counts, &RankSplitsProblem::send_offsets,
             &RankSplitsProblem::invalid>();
  using mb::ReceivedExpertsProblem;
  check_echo<ReceivedExpertsProblem, &ReceivedExpertsProblem::counts, &ReceivedExpertsProblem::ranks,
             &ReceivedExpertsProblem::local_experts, &ReceivedExpertsProblem::run_offsets, &ReceivedExpertsProblem::experts,
             &ReceivedExpertsProblem::receive_counts, &ReceivedExpertsProblem::receive_offsets, &ReceivedExpertsProblem::invalid>();
  using Map = mb::MapIdsProblem<mb::ToPhysical>;
  check_echo<Map, &Map::experts, &Map::mapped, &Map::mapping, &Map::invalid>();
  using mb::ToPhysical;
  check_echo<ToPhysical, &ToPhysical::logical_to_physical, &ToPhysical::replica_count, &ToPhysical::rank, &ToPhysical::first_token,
             &ToPhysical::rule>();
  using mb::RenormaliseProblem;
  check_echo<RenormaliseProblem, &RenormaliseProblem::chosen, &RenormaliseProblem::experts, &RenormaliseProblem::weights,
             &RenormaliseProblem::scaling_factor>();
  using mb::MaskProblem;
  check_echo<MaskProblem, &MaskProblem::experts, &MaskProblem::grad_weights, &MaskProblem::masked, &MaskProblem::expert_count>();
}

}  // namespace testing
