// The threads of a GPU block as fibers on one CPU thread, stricter than hardware: lanes run in an order shuffled by a seed, all lanes of a
// collective must stand at the same call site, and a collective that not all lanes reach is an error: instead of a hang, and instead of
// whatever hardware would give in place of a lane that has left.
#pragma once

#include <boost/context/fiber.hpp>
#include <boost/context/fixedsize_stack.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <source_location>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define TESTING_FIBERS_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define TESTING_FIBERS_ASAN 1
#endif
#endif

namespace testing {

/// A kernel that breaks the rules of its block: lanes at different call sites, or a collective that some lane never reaches.
class FiberError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

/// Runs one function as `size` fibers and lets groups of neighbours meet. Even seeds let all fibers advance in shuffled rounds; odd ones
/// let one warp run as far ahead of the others as barriers allow, which shows a barrier that is missing.
class FiberGroup {
 public:
  FiberGroup(int size, std::uint64_t seed)
      : lanes_(static_cast<std::size_t>(size)), random_(seed), one_warp_ahead_(seed % 2 == 1) {
    const int warp_size = size > 32 ? 32 : 8;
    for (int first = 0; first < size; first += warp_size) warps_.push_back({first, std::min(first + warp_size, size)});
    std::shuffle(warps_.begin(), warps_.end(), random_);
  }

  /// Runs f(index) for every index to its end. Throws what a fiber threw, or FiberError.
  void run(const std::function<void(int)>& f) {
    for (int i = 0; i < size(); ++i) start(i, f);
    while (step()) {
    }
    if (!failure_) note_absent_lanes();
    end_all();
    if (failure_) std::rethrow_exception(failure_);
  }

  /// Called inside fiber `self`: meets the `width` fibers that start at `first`, having left `payload`; returns everyone's payloads.
  /// `level` tells tile collectives (0) from block ones (1); await_arrivals has its own (2).
  const std::uint64_t* meet(int self, int first, int width, int level, std::uint64_t payload,
                            const std::source_location& site) {
    Lane& lane = lanes_[static_cast<std::size_t>(self)];
    lane.waiting = true;
    lane.first = first;
    lane.width = width;
    lane.level = level;
    lane.payload = payload;
    lane.site = site;
    try_release(first, width, level);
    while (lane.waiting) {
      yield_from(self);
      if (ending_) throw Ended{};
    }
    return lane.seen.data();
  }

  /// The two halves of a barrier of all fibers, once: what comes between them is not waited for.
  void arrive() {
    if (++arrivals_ == size()) release_awaiting();
  }
  void await_arrivals(int self, const std::source_location& site) {
    Lane& lane = lanes_[static_cast<std::size_t>(self)];
    lane.first = 0;
    lane.width = size();
    lane.level = awaiting_level;
    lane.site = site;
    lane.waiting = arrivals_ < size();
    while (lane.waiting) {
      yield_from(self);
      if (ending_) throw Ended{};
    }
  }

 private:
  static constexpr int awaiting_level = 2;

  /// Thrown inside fibers that wait when the group has failed, to run their destructors.
  struct Ended {};

  struct Warp {
    int first;
    int last;
  };

  struct Lane {
    boost::context::fiber context;    // the fiber, while the scheduler runs
    boost::context::fiber scheduler;  // the scheduler, while the fiber runs
    bool done = false;
    bool waiting = false;
    int first = 0;
    int width = 0;
    int level = 0;
    std::uint64_t payload = 0;
    std::source_location site;
    std::vector<std::uint64_t> seen;
#if defined(TESTING_FIBERS_ASAN)
    const void* stack_bottom = nullptr;
    std::size_t stack_size = 0;
#endif
  };

  [[nodiscard]] int size() const {
    return static_cast<int>(lanes_.size());
  }

  /// Remembers each stack so that AddressSanitizer can be told of switches.
  struct Stack {
    Lane* lane;
    boost::context::stack_context allocate() {
      boost::context::stack_context context = boost::context::fixedsize_stack(256 * 1024).allocate();
#if defined(TESTING_FIBERS_ASAN)
      lane->stack_size = context.size;
      lane->stack_bottom = static_cast<char*>(context.sp) - context.size;
#endif
      return context;
    }
    void deallocate(boost::context::stack_context& context) {
#if defined(TESTING_FIBERS_ASAN)
      __asan_unpoison_memory_region(static_cast<char*>(context.sp) - context.size, context.size);
#endif
      boost::context::fixedsize_stack().deallocate(context);
    }
  };

  void start(int index, const std::function<void(int)>& f) {
    Lane& lane = lanes_[static_cast<std::size_t>(index)];
    lane.context =
        boost::context::fiber(std::allocator_arg, Stack{&lane}, [this, index, &f](boost::context::fiber&& scheduler) {
          Lane& self = lanes_[static_cast<std::size_t>(index)];
          arrived_in_fiber();
          self.scheduler = std::move(scheduler);
          try {
            if (!ending_) f(index);
          } catch (const Ended&) {
          } catch (const boost::context::detail::forced_unwind&) {
            throw;
          } catch (...) {
            if (!failure_) failure_ = std::current_exception();
          }
          self.done = true;
          leaving_fiber(true);
          return std::move(self.scheduler);
        });
  }

  [[nodiscard]] bool is_runnable(int index) const {
    const Lane& lane = lanes_[static_cast<std::size_t>(index)];
    return !lane.done && !lane.waiting;
  }

  /// Lets runnable fibers run, each once and in shuffled order; false when there is none or one has failed.
  bool step() {
    if (failure_) return false;
    std::vector<int> runnable;
    for (const Warp& warp : warps_) {
      for (int i = warp.first; i < warp.last; ++i) {
        if (is_runnable(i)) runnable.push_back(i);
      }
      if (one_warp_ahead_ && !runnable.empty()) break;
    }
    if (runnable.empty()) return false;
    std::shuffle(runnable.begin(), runnable.end(), random_);
    for (const int index : runnable) {
      if (!is_runnable(index)) continue;
      resume(lanes_[static_cast<std::size_t>(index)]);
      if (failure_) return false;
    }
    return true;
  }

  void resume(Lane& lane) {
#if defined(TESTING_FIBERS_ASAN)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, lane.stack_bottom, lane.stack_size);
    lane.context = std::move(lane.context).resume();
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    lane.context = std::move(lane.context).resume();
#endif
  }

  void yield_from(int index) {
    Lane& lane = lanes_[static_cast<std::size_t>(index)];
    leaving_fiber(false);
    lane.scheduler = std::move(lane.scheduler).resume();
    arrived_in_fiber();
  }

#if defined(TESTING_FIBERS_ASAN)
  void arrived_in_fiber() {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom_, &scheduler_size_);
  }
  void leaving_fiber(bool for_good) {
    // A null fake-stack slot tells AddressSanitizer that the fiber ends.
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake, scheduler_bottom_, scheduler_size_);
  }
  const void* scheduler_bottom_ = nullptr;
  std::size_t scheduler_size_ = 0;
#else
  void arrived_in_fiber() {}
  void leaving_fiber(bool /*for_good*/) {}
#endif

  /// Frees a group once all its members wait for it, at one call site.
  void try_release(int first, int width, int level) {
    for (int i = first; i < first + width; ++i) {
      const Lane& lane = lanes_[static_cast<std::size_t>(i)];
      if (!lane.waiting || lane.first != first || lane.width != width || lane.level != level) return;
    }
    const Lane& head = lanes_[static_cast<std::size_t>(first)];
    std::vector<std::uint64_t> payloads;
    for (int i = first; i < first + width; ++i) {
      const Lane& lane = lanes_[static_cast<std::size_t>(i)];
      if (lane.site.line() != head.site.line() || lane.site.column() != head.site.column() ||
          std::strcmp(lane.site.file_name(), head.site.file_name()) != 0) {
        throw FiberError("lanes of one collective stand at different call sites: " + where(head) + " and " + where(lane));
      }
      payloads.push_back(lane.payload);
    }
    for (int i = first; i < first + width; ++i) {
      Lane& lane = lanes_[static_cast<std::size_t>(i)];
      lane.seen = payloads;
      lane.waiting = false;
    }
  }

  void release_awaiting() {
    for (Lane& lane : lanes_) {
      if (lane.level == awaiting_level) lane.waiting = false;
    }
  }

  [[nodiscard]] static std::string where(const Lane& lane) {
    std::ostringstream text;
    text << lane.site.file_name() << ':' << lane.site.line() << ':' << lane.site.column();
    return text.str();
  }

  /// Fails when some fiber still waits: a lane that it waits for has left, or stands at another collective.
  void note_absent_lanes() {
    for (const Lane& lane : lanes_) {
      if (lane.done) continue;
      std::string absent;
      for (int i = lane.first; i < lane.first + lane.width; ++i) {
        const Lane& other = lanes_[static_cast<std::size_t>(i)];
        if (other.done)
          absent += " " + std::to_string(i) + " (has left)";
        else if (other.level != lane.level || other.width != lane.width)
          absent += " " + std::to_string(i) + " (" + where(other) + ")";
      }
      failure_ = std::make_exception_ptr(
          FiberError("a collective that not all lanes reach: " + where(lane) + "; absent threads:" + absent));
      return;
    }
  }

  /// Ends fibers that still wait, so that their stacks are left in the ordinary way.
  void end_all() {
    ending_ = true;
    for (Lane& lane : lanes_) {
      if (!lane.done) resume(lane);
    }
  }

  std::vector<Lane> lanes_;
  std::mt19937_64 random_;
  bool one_warp_ahead_;
  std::vector<Warp> warps_;
  int arrivals_ = 0;
  bool ending_ = false;
  std::exception_ptr failure_;
};

}  // namespace testing
