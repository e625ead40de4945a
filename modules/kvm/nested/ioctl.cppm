// SPDX-License-Identifier: MIT
//
// The seam: how the library reaches the kernel. A VMM with an ioctl layer of its own, a recorder or a test
// puts something else here.
module;
#include <cerrno>
#include <concepts>
#include <memory>
#include <sys/ioctl.h>
#include <type_traits>
export module kvm.nested:ioctl;

export namespace kvm::nested {

/// An open /dev/kvm.
struct SystemFd {
    int number = -1;
    explicit constexpr SystemFd(int fd) noexcept : number{fd} {}
};
/// What KVM_CREATE_VM answered.
struct VmFd {
    int number = -1;
    explicit constexpr VmFd(int fd) noexcept : number{fd} {}
};
/// What KVM_CREATE_VCPU answered.
struct VcpuFd {
    int number = -1;
    explicit constexpr VcpuFd(int fd) noexcept : number{fd} {}
};

/// What an ioctl came back with: the result as it is and, where it is negative, the errno. A seam need not
/// touch the thread's errno.
struct IoctlResult {
    int value;
    int error_number;
};

/// Callable as the ioctl is: descriptor, request, argument. An integer argument comes as a pointer of that
/// value. It must not throw. A seam is trusted like the kernel.
template <class F>
concept IoctlSeam = std::is_nothrow_invocable_r_v<IoctlResult, F&, int, unsigned long, void*>;

/// The seam that is used unless another one is given: the system call itself.
struct SystemCall {
    inline IoctlResult operator()(int fd, unsigned long request, void* argument) const noexcept {
        const int value = ::ioctl(fd, request, argument);
        if (value == 0) [[likely]] // the one test that the success of GET and SET costs
            return {0, 0};
        return {value, value < 0 ? errno : 0};
    }
};
static_assert(IoctlSeam<SystemCall>);

/// Any seam behind two words, for code that is compiled once. Refers to the seam, does not own it.
class IoctlRef {
  public:
    /// `seam` must outlive the reference.
    template <class F>
        requires(IoctlSeam<F> && !std::same_as<std::remove_cv_t<F>, IoctlRef>)
    constexpr IoctlRef(F& seam) noexcept
        : seam_{const_cast<void*>(static_cast<const void*>(std::addressof(seam)))},
          call_{[](void* object, int fd, unsigned long request, void* argument) noexcept -> IoctlResult {
              return (*static_cast<F*>(object))(fd, request, argument);
          }} {}

    inline IoctlResult operator()(int fd, unsigned long request, void* argument = nullptr) const noexcept {
        return call_(seam_, fd, request, argument);
    }

    /// The same for a request whose argument is a number.
    inline IoctlResult with_number(int fd, unsigned long request, unsigned long argument) const noexcept {
        return call_(seam_, fd, request, reinterpret_cast<void*>(argument));
    }

  private:
    void* seam_;
    IoctlResult (*call_)(void*, int, unsigned long, void*) noexcept;
};
static_assert(sizeof(IoctlRef) == 2 * sizeof(void*));

/// The system call, as an IoctlRef.
inline constexpr SystemCall system_call{};

} // namespace kvm::nested
