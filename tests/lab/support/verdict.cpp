// SPDX-License-Identifier: MIT
#include "verdict.hpp"

#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <print>
#include <string>
#include <string_view>

namespace {

/// What the test that runs has said of itself.
struct Said {
    const char* verdict = nullptr;
    std::string reason;
};
Said said;

bool has_failed = false; ///< any assertion of any test so far

class Matrix : public doctest::IReporter {
  public:
    explicit Matrix(const doctest::ContextOptions&) {}

    void test_case_start(const doctest::TestCaseData& test) override {
        test_ = &test;
        said = {};
    }
    void test_case_end(const doctest::CurrentTestCaseStats& stats) override {
        const bool failed = stats.failure_flags != 0;
        has_failed |= failed;
        const std::string_view suite = test_->m_test_suite;
        std::println("matrix: {} | {:.2f} | {} | {} | {}",
                     failed         ? "failed"
                     : said.verdict ? said.verdict
                                    : "passed",
                     stats.seconds, suite.empty() ? "both" : suite, test_->m_name, said.reason);
        std::fflush(stdout);
    }

    void report_query(const doctest::QueryData&) override {}
    void test_run_start() override {}
    void test_run_end(const doctest::TestRunStats&) override {}
    void test_case_reenter(const doctest::TestCaseData&) override {}
    void test_case_exception(const doctest::TestCaseException&) override {}
    void subcase_start(const doctest::SubcaseSignature&) override {}
    void subcase_end() override {}
    void log_assert(const doctest::AssertData& assertion) override { has_failed |= assertion.m_failed; }
    void log_message(const doctest::MessageData&) override {}
    void test_case_skipped(const doctest::TestCaseData&) override {}

  private:
    const doctest::TestCaseData* test_ = nullptr;
};
REGISTER_LISTENER("matrix", 1, Matrix);

void say(const char* verdict, const std::string& reason) {
    said = {verdict, reason};
}

} // namespace

void lab::give_up(const std::string& reason) {
    if (doctest::is_running_in_test)
        FAIL(reason);
    std::println(stderr, "{}", reason);
    std::exit(1);
}

void lab::lost_in_boot(const std::string& reason) {
    if (has_failed)
        give_up(reason);
    std::println("A stock Linux as L1 was lost in its boot, before any migration: {}", reason);
    std::fflush(stdout);
    std::exit(lost_in_boot_status);
}

void lab::not_offered(const std::string& reason) {
    say("not offered", reason);
}

void lab::refused_as_expected(const std::string& reason) {
    say("refused", reason);
}
