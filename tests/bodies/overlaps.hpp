// Arguments of a call laid over each other, one pair at a time: each pair of which the call writes one has to be refused.
#pragma once

#include <doctest/doctest.h>
#include <moe_balance/moe_balance.hpp>

#include <functional>
#include <string>
#include <type_traits>
#include <vector>

namespace testing {

namespace mb = moe_balance;

/// A view or a pointer of a call's arguments.
template <class Args>
struct Argument {
  std::string name;
  bool written;
  std::function<void*(Args&)> data;
  std::function<void(Args&, void*)> move;
};

template <class Args, class Member>
Argument<Args> argument(const std::string& name, bool written, Member Args::*member) {
  if constexpr (std::is_pointer_v<Member>) {
    return {name, written, [=](Args& args) { return const_cast<void*>(static_cast<const void*>(args.*member)); },
            [=](Args& args, void* to) { args.*member = static_cast<Member>(to); }};
  } else {
    return {name, written, [=](Args& args) { return const_cast<void*>(static_cast<const void*>((args.*member).data)); },
            [=](Args& args, void* to) { (args.*member).data = static_cast<decltype((args.*member).data)>(to); }};
  }
}
template <class Args, class Member>
Argument<Args> reads(const std::string& name, Member Args::*member) {
  return argument(name, false, member);
}
template <class Args, class Member>
Argument<Args> writes(const std::string& name, Member Args::*member) {
  return argument(name, true, member);
}

/// Whether a message is of memory that argument `name` shares with another. Which: one that is longer than what it was laid over may reach a third.
inline bool names_overlap(const std::string& message, const std::string& call, const std::string& name) {
  const std::string start = "moe_balance: " + call + ": ";
  const std::string middle = " is memory that ";
  const std::string end = " shares; allowed: memory of its own";
  if (message.rfind(start, 0) != 0 || message.size() < end.size()) return false;
  if (message.compare(message.size() - end.size(), end.size(), end) != 0) return false;
  return message.rfind(start + name + middle, 0) == 0 || message.find(middle + name + end) != std::string::npos;
}

/// `make()` gives memory with args(), run(args) and contents(). Every pair must be refused by name, with nothing written.
template <class Args, class Make>
void refuses_overlaps(const std::string& call, const std::vector<Argument<Args>>& arguments, const Make& make) {
  for (const Argument<Args>& moved : arguments) {
    for (const Argument<Args>& other : arguments) {
      if (&moved == &other || (!moved.written && !other.written)) continue;
      CAPTURE(moved.name);
      CAPTURE(other.name);
      auto memory = make();
      Args args = memory.args();
      void* const to = other.data(args);
      REQUIRE(moved.data(args) != nullptr);
      REQUIRE(to != nullptr);
      moved.move(args, to);
      const auto before = memory.contents();
      std::string message;
      try {
        memory.run(args);
      } catch (const mb::InvalidArgument& error) {
        message = error.what();
      }
      CAPTURE(message);
      CHECK(names_overlap(message, call, moved.name));
      CHECK(memory.contents() == before);
    }
  }
}

}  // namespace testing
