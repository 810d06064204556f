// What an operator of torch_router_ops.hpp does with the load: which parts of the caller's it reads, and what it gives to be added to it.
#pragma once

#include <moe_balance/engine/engine.hpp>
#include <moe_balance/engine/validate.hpp>
#include <moe_balance/interop/torch_tensors.hpp>
#include <moe_balance/router.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

namespace torch_ops MOEB_HIDDEN {

/// The load of `router`, an object of static storage duration.
template <TensorApi Api, const auto& router>
struct RouterLoad {
  using Tensor = typename Api::Tensor;
  using Optional = typename Api::Optional;
  using ScalarType = typename Api::ScalarType;
  using RouterT = std::remove_cvref_t<decltype(router)>;
  using Traits = typename RouterT::Traits;
  static constexpr bool reads_load = Traits::reads_global_batch;
  /// Whether what a call adds to the load are not the counts that it returns.
  static constexpr bool counts_apart = Traits::marks_tokens || (reads_load && Traits::plain_losses > 0);

  /// Writes the counts that a call has added to its load to `row`, of a router whose loss reads that.
  template <class Place>
  static void copy_counts_of_loss(const ForwardArgs& args, std::int64_t* row, const Place& place) {
    using Balancer = std::remove_cvref_t<decltype(RouterT::balancer)>;
    const SavedView saved =
        SavedLayout<Balancer>{args.logits.columns, sequences_of<Balancer>(args).count}.view(args.saved.data);
    Engine<Place>::copy(row, saved.counts, bytes_of(args.logits.columns), place);
  }
  [[nodiscard]] static std::size_t bytes_of(std::int64_t counts) {
    return static_cast<std::size_t>(counts) * sizeof(std::int64_t);
  }

  /// The load of a forward call whose rule reads counts: a copy of the caller's, where a loss reads it, to which the call adds; or one of its own, where
  /// that alone says what the call adds.
  struct LoadOfCounts {
    Optional own;   ///< what the call adds, where that is not its counts
    Optional copy;  ///< of the caller's load
    std::int64_t* own_row = nullptr;
    LoadRef load_of_call;

    LoadOfCounts(const Views<Api>& views, const Tensor& logits, const Optional& load, int experts) {
      if (counts_apart) own = Api::empty(logits, {experts}, ScalarType::Long);
      own_row = views.template elements<std::int64_t>("counts", own, experts);
      if (reads_load && load.has_value()) copy = Api::clone(*load);
      std::int64_t* const of_copy = views.template elements<std::int64_t>("load", copy, experts);
      load_of_call = {reads_load ? of_copy : own_row, experts};
    }
    [[nodiscard]] const LoadRef& ref() const { return load_of_call; }
    /// A load of its own says what the call would add, too.
    [[nodiscard]] bool accumulates(bool asked) const { return load_of_call.counts != nullptr && (asked || !reads_load); }
    [[nodiscard]] const Tensor& added(const Tensor& counts) const { return own.has_value() ? *own : counts; }
    template <class Place>
    void begin(const Place& place) const {
      if (!reads_load && own_row != nullptr) Engine<Place>::clear(own_row, bytes_of(load_of_call.experts), place);
    }
    template <class Place>
    void end(const ForwardArgs& args, const Place& place) const {
      if constexpr (reads_load && counts_apart) copy_counts_of_loss(args, own_row, place);
    }
  };

  /// The same of a rule that reads margins: what the call gives to be added to the caller's load. Meanwhile its counts are the step's, for a loss.
  struct LoadOfMargins {
    Tensor row;
    LoadRef of_row;
    const std::int64_t* so_far = nullptr;  ///< the caller's

    LoadOfMargins(const Views<Api>& views, const Tensor& logits, const Optional& load, int experts) {
      of_row = LoadRef::with_bins(nullptr, load_bins("forward"), experts);
      row = Api::empty(logits, {of_row.row_size()}, ScalarType::Long);
      of_row.counts = views.template vector<std::int64_t>("counts", row).data;
      if (reads_load) {
        so_far = views.template elements<const std::int64_t>("load", load, of_row.row_size());
      }
    }
    [[nodiscard]] const LoadRef& ref() const { return of_row; }
    [[nodiscard]] bool accumulates(bool asked) const { return asked && of_row.counts != nullptr; }
    [[nodiscard]] const Tensor& added(const Tensor& /*counts*/) const { return row; }
    template <class Place>
    void begin(const Place& place) const {
      if (count_windows(router.balancer).step > 0) {
        Validator{"forward"}.pointer("load.counts", so_far, alignof(std::int64_t));
      }
      Engine<Place>::clear(of_row.counts, bytes_of(of_row.row_size()), place);
      if (so_far != nullptr) Engine<Place>::copy(of_row.counts, so_far, bytes_of(of_row.experts), place);
    }
    /// Of a marking router without such a loss the row has had its counts added, if any were to be.
    template <class Place>
    void end(const ForwardArgs& args, const Place& place) const {
      if constexpr (reads_load && counts_apart)
        copy_counts_of_loss(args, of_row.counts, place);
      else if constexpr (!counts_apart)
        Engine<Place>::copy(of_row.counts, args.counts, bytes_of(of_row.experts), place);
    }
  };
  /// What a call of forward has.
  using OfCall = std::conditional_t<Traits::reads_margins, LoadOfMargins, LoadOfCounts>;

  /// Bins of margins; 0 where the rule reads none. An option out of range is refused before memory is allocated by it.
  [[nodiscard]] static int load_bins(const char* call) {
    if constexpr (Traits::reads_margins) check_options(call, router.balancer);
    return router.load_bins();
  }
  /// [L, E] or [E], each row with the histograms of its experts behind it.
  [[nodiscard]] static LoadRef of_layers(const char* call, const Views<Api>& views, const Tensor& load) {
    const int bins = load_bins(call);
    const MatrixView<std::int64_t> rows = views.template layers<std::int64_t>("load", load);
    MOEB_EXPECTS(rows.columns % (1 + bins) == 0, call, "load.columns", rows.columns, "a multiple of ", 1 + bins,
                 ": for each expert a count and the bins that the balancer's rule reads");
    const std::int64_t experts = rows.columns / (1 + bins);
    LoadRef result(rows.data, static_cast<int>(experts), rows.rows, rows.stride);
    result.bins = bins;
    return result;
  }
};

}  // namespace MOEB_HIDDEN

MOEB_NAMESPACE_END
