// The threads of one context: a oneTBB arena and the flag that calls its work off.
//
// oneTBB comes without instrumentation, so ThreadSanitizer would see half of what orders its threads, which is worse than
// nothing. threads.cpp, the only code that runs anything on it, is compiled without instrumentation too, and Work tells of the order
// where our code is entered and left.
#pragma once

#include <oneapi/tbb/task_arena.h>

#include <atomic>
#include <cstdint>

#ifdef RINGATTN_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>
#endif

namespace ringattn {

// What precedes leave(place) happens before what follows a later come(place). A place is an address, whatever it holds.
#ifdef RINGATTN_THREAD_SANITIZER
inline void leave(const void* place) { __tsan_release(const_cast<void*>(place)); }
inline void come(const void* place) { __tsan_acquire(const_cast<void*>(place)); }
#else
inline void leave(const void*) {}
inline void come(const void*) {}
#endif

// From now until its end.
class Leaving {
 public:
  explicit Leaving(const void* place) : place_(place) {}
  Leaving(const Leaving&) = delete;
  Leaving& operator=(const Leaving&) = delete;
  ~Leaving() { leave(place_); }

 private:
  const void* place_;
};

// f(index, slot) for other threads to call while this exists: after what precedes it, and before what follows it.
class Work {
 public:
  template <class F>
  explicit Work(F& f)
      : function_(&f),
        call_([](void* function, std::int64_t index, int slot) { (*static_cast<F*>(function))(index, slot); }) {
    leave(begin());
  }
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;
  ~Work() { come(end()); }

  void operator()(std::int64_t index, int slot) const {
    come(begin());
    const Leaving at_return(end());
    call_(function_, index, slot);
  }

 private:
  const void* begin() const { return &function_; }
  const void* end() const { return &call_; }

  void* function_;
  void (*call_)(void* function, std::int64_t index, int slot);
};

// What becomes of work once it is called off: it ends early, left undone, or is done all the same.
enum class OnCancel { stop, go_on };

class Threads {
 public:
  explicit Threads(int count);
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;
  ~Threads();

  int count() const;

  // Calls f(index, slot) for every index < count, on any thread; they begin in ascending order, so that f may wait for what a
  // smaller index does. `slot` < count() is the thread's own while f runs: it names its scratch memory.
  template <class F>
  void for_each(std::int64_t count, F&& f, OnCancel on_cancel = OnCancel::stop) {
    auto part = [&](std::int64_t index, int slot) {
      if (on_cancel == OnCancel::stop && cancelled()) return;
      if (between_ != nullptr) (*between_)(index, slot);
      come(place_of(slot));  // another thread may have had it before
      const Leaving at_return(place_of(slot));
      f(index, slot);
    };
    run(count, Work(part));
  }

  // Runs f(). Every part of what it gives to for_each is preceded by between(), on the thread that the part runs on.
  template <class F, class G>
  void interleave(F&& f, G&& between) {
    auto call = [&](std::int64_t, int) { between(); };
    const Work work(call);
    between_ = &work;
    const struct Reset {
      const Work*& between;
      ~Reset() { between = nullptr; }
    } reset{between_};
    f();
  }

  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

 private:
  void run(std::int64_t count, const Work& work);
  const void* place_of(int slot) const {
    return reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(this) + static_cast<std::uintptr_t>(slot));
  }

  tbb::task_arena arena_;
  const Work* between_ = nullptr;
  std::atomic<bool> cancelled_{false};
};

}  // namespace ringattn
