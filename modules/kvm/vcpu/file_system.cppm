// SPDX-License-Identifier: MIT
//
// Saved vCPUs and other bytes on a disk: written whole or not at all, and read back.
module;
#include <cstddef>
#include <cstdint>
#include <expected>
#include <limits>
#include <memory>
#include <span>
#include <string>
export module kvm.vcpu:file_system;
import kvm.nested;
import :uapi;
import :error;
import :state;
import :vm_state;
import :file;

export namespace kvm::vcpu {

/// Writes a file whole or not at all: without a name in the same folder, synced, then put in the place of
/// `path`. The file is its owner's alone (mode 0600, whatever the umask): it holds what the guest holds. A
/// failure leaves what `path` was before and nothing else behind; but after Errc::file_not_synced the new
/// file is there.
///
/// A symbolic link is followed: what it leads to is replaced, or made. What exists and is no regular file (a
/// device, a FIFO, what /dev/stdout leads to) stays what it is, and the bytes are written into it as they
/// come.
/// @param path const char*, std::string or std::filesystem::path
/// @return Errc::file_system with its errno, Errc::file_not_synced, or what encode() says
[[nodiscard]] std::expected<void, Error> write_file(const std::string& path, const VcpuState& state,
                                                    std::span<const Section> callers = {});

/// The same for a whole VM.
[[nodiscard]] std::expected<void, Error> write_file(const std::string& path, const VmState& vm,
                                                    std::span<const VcpuState> vcpus,
                                                    std::span<const Section> callers = {});

/// The same for any bytes: a raw nested state, guest memory.
/// @return Errc::file_system with its errno, Errc::file_not_synced
[[nodiscard]] std::expected<void, Error> write_file(const std::string& path,
                                                    std::span<const std::byte> bytes);

/// What was in a file. Parsing does not copy a caller's sections, so this has to outlive what was parsed:
/// hence no bytes of a temporary.
class FileBytes {
  public:
    FileBytes() noexcept = default;
    FileBytes(std::unique_ptr<std::byte[]> bytes, std::size_t size) noexcept
        : bytes_{std::move(bytes)}, size_{size} {}

    std::span<const std::byte> bytes() const& noexcept { return {bytes_.get(), size_}; }
    std::span<const std::byte> bytes() const&& = delete;
    operator std::span<const std::byte>() const& noexcept { return bytes(); }
    operator std::span<const std::byte>() const&& = delete;
    std::size_t size() const noexcept { return size_; }
    bool empty() const noexcept { return size_ == 0; }

  private:
    std::unique_ptr<std::byte[]> bytes_;
    std::size_t size_ = 0;
};

/// The bytes of a regular file of at most `limit` bytes.
/// @return Errc::file_system with its errno; EFBIG where the file is larger, EINVAL where it is not regular,
///         ENOMEM where there is no memory for it
[[nodiscard]] std::expected<FileBytes, Error>
read_file(const std::string& path, std::size_t limit = std::numeric_limits<std::size_t>::max());

} // namespace kvm::vcpu
