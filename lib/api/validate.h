// From what a caller gave to what the library works with: the refusals that several functions share. What a struct says of its own
// size is checked in structs.h, the configuration of a context in context.cpp, group.cpp and the backends, and what one function
// alone takes where it is.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "core/error.h"
#include "engine/engine.h"
#include "plan/problem.h"

namespace ringattn::api {

// The context that a caller gave, const or not. Refuses that of another process.
template <class Context>
Context &checked(Context *context) {
  require(context != nullptr, "context is NULL; must come from ra_create_context");
  context->require_own_process();
  return *context;
}

// Requires low <= value <= high: "head_dim is 320; must be 1 .. 256".
void require_range(const char *field, std::int64_t value, std::int64_t low, std::int64_t high);

Problem to_problem(const ra_attention_desc &desc);
DType to_dtype(const char *field, std::int32_t dtype);              // RA_DTYPE_SAME is not legal
DType to_dtype(const char *field, std::int32_t dtype, DType same);  // RA_DTYPE_SAME means `same`
Side to_side(std::int32_t side);

// Refuse what this build cannot serve, with NOT_SUPPORTED and the reason.
void require_schedule(const ra_attention_desc &desc);
void require_supported(const ra_attention_desc &desc, const Problem &problem, const Engine &engine);

// Memory of a call: every range is named, so that overlaps are reported by name.
struct Shape {
  std::int64_t batch, rows, heads, dim;
  std::int64_t count() const { return batch * rows * heads * dim; }
};

// What a caller says of how many bytes it has, and in which field; 0: nothing.
struct Size {
  const char *field = "";
  std::size_t bytes = 0;
};

class Ranges {
 public:
  // Checks a tensor and returns it with packed strides made explicit. Outputs must not overlap themselves.
  Tensor input(const char *name, const ra_tensor &tensor, DType dtype, const Shape &shape);
  Tensor output(const char *name, const ra_tensor &tensor, DType dtype, const Shape &shape);
  // The same for a dense array that needs `bytes`; null only if `optional` or `bytes` is 0.
  void input(const char *name, const void *data, Size size, std::int64_t bytes, std::int64_t alignment, bool optional);
  void output(const char *name, const void *data, Size size, std::int64_t bytes, std::int64_t alignment, bool optional);
  // Requires that no output overlaps anything else, but for an output that is an input to the element, if `allow_in_place`.
  void require_disjoint(bool allow_in_place = false) const;
  // f(name, begin, bytes) for all that have bytes.
  template <class F>
  void for_each(F &&f) const {
    for (const Range &range : ranges_)
      f(range.name, reinterpret_cast<const void *>(range.begin), range.end - range.begin);
  }

 private:
  struct Axis {
    std::int64_t stride = -1;  // bytes, 0 along an axis of extent 1; -1 in a dense array, which has no axes
    std::int64_t extent = 1;
    friend bool operator==(const Axis &, const Axis &) = default;
  };
  struct Range {
    const char *name;
    std::uintptr_t begin, end;
    bool written;
    std::int64_t row_bytes;    // that lie side by side: `dim` elements, or the whole of a dense array
    std::array<Axis, 3> axes;  // batch, sequence, head

    std::int64_t arc(std::int64_t modulus) const;
  };
  static bool are_interleaved(const Range &a, const Range &b);
  Tensor add(const char *name, const ra_tensor &tensor, DType dtype, const Shape &shape, bool written);
  void add(const char *name, const void *data, Size size, std::int64_t bytes, std::int64_t alignment, bool optional,
           bool written);
  std::vector<Range> ranges_;
};

}  // namespace ringattn::api
