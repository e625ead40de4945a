// SPDX-License-Identifier: MIT
//
// Where results go that have no fixed size: to the caller, piece by piece, so that nothing here needs a heap.
module;
#include <concepts>
#include <memory>
#include <string_view>
#include <type_traits>
export module kvm.nested:sink;

export namespace kvm::nested {

/// Any callable that takes a `T` and does not throw, behind two words. Refers to the callable, does not own
/// it: a lambda written as the argument of a call lives as long as that call.
template <class T>
class Receiver {
  public:
    template <class F>
        requires(std::is_nothrow_invocable_v<F&, T> && !std::same_as<std::remove_cvref_t<F>, Receiver>
                 && !std::is_function_v<std::remove_reference_t<F>>)
    constexpr Receiver(F&& callable [[clang::lifetimebound]]) noexcept
        : object_{const_cast<void*>(static_cast<const void*>(std::addressof(callable)))},
          call_{[](void* object, T value) noexcept {
              static_cast<void>((*static_cast<std::remove_reference_t<F>*>(object))(value));
          }} {}

    /// What may throw is none: nothing here could let an exception pass.
    template <class F>
        requires(std::is_invocable_v<F&, T> && !std::is_nothrow_invocable_v<F&, T>
                 && !std::same_as<std::remove_cvref_t<F>, Receiver>)
    constexpr Receiver(F&&) noexcept : object_{nullptr}, call_{nullptr} {
        static_assert(std::is_nothrow_invocable_v<F&, T>,
                      "a sink or receiver must be noexcept: [&](std::string_view piece) noexcept { ... }");
    }

    /// A function, which needs no object.
    inline Receiver(void (*function)(T) noexcept) noexcept
        : object_{reinterpret_cast<void*>(function)}, call_{[](void* object, T value) noexcept {
              reinterpret_cast<void (*)(T) noexcept>(object)(value);
          }} {}

    inline void operator()(T value) const noexcept { call_(object_, value); }

  private:
    void* object_;
    void (*call_)(void*, T) noexcept;
};

/// Takes text in pieces. A piece is part of a line, a line, or a few of them; lines end in '\n'.
using TextSink = Receiver<std::string_view>;
static_assert(sizeof(TextSink) == 2 * sizeof(void*));

} // namespace kvm::nested
