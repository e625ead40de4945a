// SPDX-License-Identifier: MIT
//
// As much of an 8250 serial port as Linux's console needs: what it sends comes out at once. There are no
// interrupts and there is no input, so a program in the guest that opened the tty would wait for ever; the
// kernel's own messages are sent by polling.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace linux_l1 {

/// Trivially copyable: it travels with the machine.
class Serial {
  public:
    static constexpr std::uint16_t base = 0x3f8, ports = 8;

    [[nodiscard]] constexpr std::uint8_t read(unsigned port) const {
        switch (port) {
        case interrupt_identification:
            return no_interrupt;
        case line_status:
            return transmitter_empty;
        case modem_status:
            return carrier_and_ready;
        default:
            return divisor_latch(port) ? divisor_[port] : registers_[port];
        }
    }

    constexpr void write(unsigned port, std::uint8_t value, std::string& output) {
        if (divisor_latch(port))
            divisor_[port] = value;
        else if (port == transmit)
            output += static_cast<char>(value);
        else
            registers_[port] = value;
    }

  private:
    // Registers, by port.
    static constexpr unsigned transmit = 0, interrupt_identification = 2, line_control = 3, line_status = 5,
                              modem_status = 6;
    static constexpr std::uint8_t no_interrupt = 0x01, transmitter_empty = 0x60, carrier_and_ready = 0xb0;
    static constexpr std::uint8_t line_control_divisor_latch = 0x80;

    /// Whether ports 0 and 1 are the divisor of the clock now.
    [[nodiscard]] constexpr bool divisor_latch(unsigned port) const {
        return port < 2 && (registers_[line_control] & line_control_divisor_latch) != 0;
    }

    std::array<std::uint8_t, ports> registers_ = {};
    std::array<std::uint8_t, 2> divisor_ = {};
};

} // namespace linux_l1
