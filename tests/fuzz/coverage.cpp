// Between GCC and libFuzzer, which comes with Clang and no longer takes the coverage that GCC reports: a call of
// __sanitizer_cov_trace_pc in each block of code. The linker leads these calls here (--wrap), and here they count in the section of
// counters that libFuzzer reads beside those of Clang ("ft" in what it prints). Two blocks may share a counter.
#include <cstdint>

namespace {
constexpr unsigned bits = 16;
[[gnu::section("__libfuzzer_extra_counters")]] std::uint8_t counters[1U << bits];
}  // namespace

extern "C" {

[[gnu::no_sanitize("address", "undefined"), gnu::no_sanitize_coverage]] void __wrap___sanitizer_cov_trace_pc() {
  constexpr std::uint32_t golden_ratio = 0x9E3779B1;  // spreads what differs in few bits
  const auto block = static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(__builtin_return_address(0)));
  ++counters[(block * golden_ratio) >> (32 - bits)];
}

// Of floating-point numbers libFuzzer wants to know nothing.
void __sanitizer_cov_trace_cmpf(float, float) {}
void __sanitizer_cov_trace_cmpd(double, double) {}

// Also where a target is started by hand. UndefinedBehaviorSanitizer has to abort, or libFuzzer would not keep the bytes.
const char* __asan_default_options() {
  return "allocator_may_return_null=1:strict_string_checks=1:quarantine_size_mb=16:malloc_context_size=8";
}
const char* __ubsan_default_options() { return "print_stacktrace=1:abort_on_error=1"; }

}  // extern "C"
