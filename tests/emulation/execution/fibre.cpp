#include "emulation/execution/fibre.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef RINGATTN_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>
#endif

#ifdef __x86_64__
// void emulation_switch(void** from, void* to): keeps the registers that a function must preserve on the stack, and the stack in *from.
asm(R"(
.text
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch, . - emulation_switch
)");
extern "C" void emulation_switch(void** from, void* to);
#endif

namespace emulation {
namespace {

constexpr std::size_t page_bytes = 64 * 1024, stack_bytes = 256 * 1024;
// Stacks begin at different places of a page, and of a cache: all of them at the same would be in each other's way.
constexpr std::size_t stagger_bytes = 33 * 64, most_stagger_bytes = 64 * 1024;
thread_local Fibre *leaving, *arriving;

// Mappings, each a guard page and a stack, that no fibre uses at present: those of a host thread that has ended are the next one's, since
// every launch begins threads, and the system takes longer to map stacks than a block to run. They stay until the program ends.
struct Spare {
  std::mutex mutex;
  std::vector<std::byte*> mappings;
} constinit spare;
struct Mappings {
  std::vector<std::byte*> unused;
  ~Mappings() {
    const std::lock_guard lock(spare.mutex);
    spare.mappings.insert(spare.mappings.end(), unused.begin(), unused.end());
  }
} thread_local mappings;

std::byte* take_mapping() {
  if (mappings.unused.empty()) {
    // A few of them: another thread that begins now would have to map what this one has no use for.
    constexpr std::ptrdiff_t at_once = 64;
    const std::lock_guard lock(spare.mutex);
    const auto first = spare.mappings.end() - std::min(at_once, std::ssize(spare.mappings));
    mappings.unused.assign(first, spare.mappings.end());
    spare.mappings.erase(first, spare.mappings.end());
  }
  if (!mappings.unused.empty()) {
    std::byte* const mapping = mappings.unused.back();
    mappings.unused.pop_back();
    return mapping;
  }
  void* const mapping = mmap(nullptr, page_bytes + stack_bytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapping, page_bytes, PROT_NONE);
  return static_cast<std::byte*>(mapping);
}

}  // namespace

Fibre::Fibre() {
#ifdef RINGATTN_THREAD_SANITIZER
  tsan_ = __tsan_get_current_fiber();
#endif
}

Fibre::Fibre(Fibre* (*run)(void* argument), void* argument)
    : run_(run), argument_(argument), mapping_(take_mapping()), stack_bytes_(stack_bytes) {
  stack_ = mapping_ + page_bytes;
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack_, stack_bytes);  // of functions that were left for ever
#endif
#ifdef __x86_64__
  static thread_local std::size_t stagger = 0;
  stagger = (stagger + stagger_bytes) % most_stagger_bytes;
  // As emulation_switch leaves it, aligned as it is where a function begins.
  void** top = reinterpret_cast<void**>(mapping_ + page_bytes + stack_bytes - stagger);
  *--top = nullptr;  // where begin() would return to
  *--top = reinterpret_cast<void*>(&Fibre::begin);
  for (int registers = 0; registers < 6; ++registers) *--top = nullptr;
  stack_pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = mapping_ + page_bytes;
  context_.uc_stack.ss_size = stack_bytes;
  makecontext(&context_, &Fibre::begin, 0);
#endif
#ifdef RINGATTN_THREAD_SANITIZER
  tsan_ = __tsan_create_fiber(0);
#endif
}

Fibre::~Fibre() {
  if (mapping_ == nullptr) return;
#ifdef RINGATTN_THREAD_SANITIZER
  __tsan_destroy_fiber(tsan_);
#endif
  mappings.unused.push_back(mapping_);
}

void Fibre::leave_to(Fibre& next, [[maybe_unused]] bool for_ever) {
  leaving = this;
  arriving = &next;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &fake_stack_, next.stack_, next.stack_bytes_);
#endif
#ifdef RINGATTN_THREAD_SANITIZER
  __tsan_switch_to_fiber(next.tsan_, 0);
#endif
#ifdef __x86_64__
  emulation_switch(&stack_pointer_, next.stack_pointer_);
#else
  swapcontext(&context_, &next.context_);
#endif
  arrive();
}

// On this one's stack again, or for the first time.
void Fibre::arrive() {
#ifdef __SANITIZE_ADDRESS__
  const void* stack = nullptr;
  std::size_t bytes = 0;
  __sanitizer_finish_switch_fiber(fake_stack_, &stack, &bytes);
  leaving->stack_ = stack;
  leaving->stack_bytes_ = bytes;
#endif
}

void Fibre::begin() {
  Fibre& self = *arriving;
  self.arrive();
  self.leave_to(*self.run_(self.argument_), true);
}

}  // namespace emulation
