// SPDX-License-Identifier: MIT
//
// What the program says: results on standard output, everything about the program itself on standard error.
#pragma once
#include "reader.hpp"

#include <string>
#include <string_view>

namespace kvm::tool {

/// Exit statuses, as diff(1) has them. For the others `differs` means "no".
inline constexpr int fine = 0, differs = 1, in_trouble = 2;

/// Collects text and writes it in one piece.
class Output {
  public:
    Output() = default;
    Output(const Output&) = delete;
    Output& operator=(const Output&) = delete;

    Output& operator<<(std::string_view text) {
        text_ += text;
        return *this;
    }
    /// A line that begins something.
    void heading(std::string_view text);
    /// For describe() and its like. Lines that begin at the margin become headings.
    auto sink() {
        return [this](std::string_view piece) noexcept { add_piece(piece); };
    }
    const std::string& text() const { return text_; }
    /// Writes what there is. in_trouble if that fails: nobody may take half an answer for a whole one. A
    /// reader that has seen enough (head) is no trouble. More may follow.
    int flush(int status);

  private:
    void add_piece(std::string_view piece);

    std::string text_;
    std::string line_; ///< what describe() has said of the current one
};

/// On standard error, as far as that takes it: a program that nobody listens to still ends with its status.
void tell(std::string_view text);

/// "kvm-nested: NAME: offset 4: REASON" and the next step, on standard error.
/// @return in_trouble
int complain(std::string_view about, const Trouble& trouble);

} // namespace kvm::tool
