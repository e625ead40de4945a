// SPDX-License-Identifier: MIT
//
// Memory with a fence behind it: one byte too far is EFAULT for the kernel and a signal for us.
#pragma once

#include "verdict.hpp"

#include <cstddef>
#include <new>
#include <span>
#include <utility>

#include <sys/mman.h>

namespace lab {

/// Memory of `size` bytes directly in front of a page that nobody can touch.
class Fenced {
  public:
    explicit Fenced(std::size_t size) : size_{size}, usable_{(size + page - 1) / page * page} {
        void* const address =
            ::mmap(nullptr, usable_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (address == MAP_FAILED)
            give_up("mmap");
        mapping_ = static_cast<std::byte*>(address);
        if (::mprotect(mapping_ + usable_, page, PROT_NONE) != 0)
            give_up("mprotect");
    }
    Fenced(const Fenced&) = delete;
    Fenced& operator=(const Fenced&) = delete;
    ~Fenced() { ::munmap(mapping_, usable_ + page); }

    [[nodiscard]] std::byte* data() const { return mapping_ + usable_ - size_; }
    [[nodiscard]] std::span<std::byte> bytes() const { return {data(), size_}; }
    void make_read_only() const {
        if (::mprotect(mapping_, usable_, PROT_READ) != 0)
            give_up("mprotect");
    }

  private:
    static constexpr std::size_t page = 4096;
    std::size_t size_;
    std::size_t usable_;
    std::byte* mapping_;
};

/// An object of type T whose last byte is the last one before the fence.
template <class T>
class EndingAtFence {
  public:
    /// `make` returns the T, which is constructed in place.
    template <class Make>
    explicit EndingAtFence(Make&& make) : memory_{sizeof(T)} {
        static_assert(sizeof(T) % alignof(T) == 0);
        object_ = new (static_cast<void*>(memory_.data())) T(std::forward<Make>(make)());
    }
    ~EndingAtFence() { object_->~T(); }

    T& operator*() const { return *object_; }
    T* operator->() const { return object_; }

  private:
    Fenced memory_;
    T* object_;
};

} // namespace lab
