// SPDX-License-Identifier: MIT
//
// The main program of doctest, telling how long each test took.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

int main(int argc, char** argv) {
    doctest::Context context{argc, argv};
    context.setOption("duration", true);
    return context.run();
}
