// SPDX-License-Identifier: MIT
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <span>
module kvm.nested;

namespace kvm::nested {
namespace {

template <Vendor V, class... Page>
std::expected<NestedState<V>, Error> put_together(uapi::StateHeader header, const Page&... pages) noexcept {
    if (header.format != V::format)
        return std::unexpected{Error{.code = Errc::wrong_vendor,
                                     .operation = Operation::parse,
                                     .detail_kind = offset_in(V::id),
                                     .detail = header_offset("format")}};
    static_assert(((sizeof pages == uapi::page_size) && ...));
    std::array<std::byte, uapi::header_size + sizeof...(pages) * uapi::page_size> bytes;
    header.size = static_cast<std::uint32_t>(bytes.size());
    auto* at = bytes.data();
    const auto put = [&at](const auto& part) {
        std::memcpy(at, &part, sizeof part);
        at += sizeof part;
    };
    put(header);
    (put(pages), ...);
    return NestedState<V>::parse(bytes);
}

} // namespace

std::expected<NestedState<Vmx>, Error> compose(const uapi::StateHeader& header,
                                               const Vmcs12& vmcs12) noexcept {
    return put_together<Vmx>(header, vmcs12);
}

std::expected<NestedState<Vmx>, Error> compose(const uapi::StateHeader& header, const Vmcs12& vmcs12,
                                               const Vmcs12& shadow_vmcs12) noexcept {
    return put_together<Vmx>(header, vmcs12, shadow_vmcs12);
}

std::expected<NestedState<Svm>, Error> compose(const uapi::StateHeader& header,
                                               const Vmcb12& vmcb12) noexcept {
    return put_together<Svm>(header, vmcb12);
}

} // namespace kvm::nested
