// SPDX-License-Identifier: MIT
//
// The main program of doctest: runs the tests for both vendors and those of the vendor whose module is
// loaded.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <unistd.h>

int main(int argc, char** argv) {
    doctest::Context context{argc, argv};
    const bool vmx = ::access("/sys/module/kvm_intel", F_OK) == 0;
    context.addFilter("test-suite-exclude", vmx ? "svm" : "vmx");
    return context.run();
}
