// SPDX-License-Identifier: MIT
//
// What a host looks like that has nesting switched off. To be run with --module-option nested=0.
#include "support/lab.hpp"
