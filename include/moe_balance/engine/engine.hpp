// What an engine offers the router. `Engine<Place>` is specialised for each kind of place a call can run in: Host (engine/host.hpp) and
// cudaStream_t (engine/cuda.cuh).
#pragma once

#include <moe_balance/token/backward.hpp>
#include <moe_balance/token/forward.hpp>
#include <moe_balance/token/loss.hpp>
#include <moe_balance/token/margins.hpp>
#include <moe_balance/token/totals.hpp>
#include <moe_balance/token/update.hpp>

MOEB_NAMESPACE_BEGIN

template <class Place>
struct Engine;

/// A type that stands for a place's engine in the names of functions: Router's calls on a place are compiled into every file that makes them, and
/// must not be taken for one another where the engine differs from file to file.
template <class Place>
struct EngineTag {
  using type = Engine<Place>;
};
template <class Place>
using EngineTagOf = typename EngineTag<Place>::type;

/// A place that some included header has an engine for.
template <class Place>
concept EnginePlace = requires {
  Engine<Place>::serves_float64;
};

MOEB_NAMESPACE_END
