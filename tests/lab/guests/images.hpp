// SPDX-License-Identifier: MIT
//
// The guests of this folder, by the name of their source: IMAGE(svm_inject) is what lies between the labels
// that image_begin and image_end of svm_inject.S make.
#pragma once

#include <guests/guests.hpp>

#define IMAGE(NAME)                                                                                          \
    ([]() -> guests::Image {                                                                                 \
        extern const std::byte NAME##_begin[] __asm__("guest_" #NAME "_begin");                              \
        extern const std::byte NAME##_end[] __asm__("guest_" #NAME "_end");                                  \
        return {NAME##_begin, NAME##_end};                                                                   \
    }())
