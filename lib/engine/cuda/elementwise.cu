// A buffer is lines: the elements of one row of one head, which are dense. Neighbouring threads of a block take neighbouring vectors of
// a line, and as many lines at once as there are threads for; then each goes on to the line that is as far ahead as the grid takes at
// once:
//
//   for each line of this thread:       counted along three dimensions, in digits, so that none of them is found by division
//     for each vector of this thread:   16 bytes, or one element; mostly there is but one
//       load, compute in registers, store
//
// Nobody touches what another thread does, so results do not depend on the grid.
#include <algorithm>
#include <initializer_list>
#include <span>
#include <type_traits>
#include <vector>

#include "engine/cuda/device/convert.h"
#include "engine/cuda/device/copy.h"
#include "engine/cuda/device/launch.h"
#include "engine/cuda/device/threads.h"
#include "engine/cuda/elementwise.h"

namespace ringattn::cuda {
namespace {

constexpr int threads = 256;
constexpr std::int64_t lines_of_thread = 4;  // more only where the grid would be too large
constexpr std::int64_t most_blocks = (1LL << 31) - 1;

// Three dimensions that number lines, the first of them running fastest.
struct Digits {
  std::int64_t digit[3];
};

struct Lines {
  Digits count;
  Digits step;  // from one line of a thread to its next
  int vectors;  // of a line
};

// Where lines are: bytes from one to the next, by the digits of Lines.
struct Operand {
  std::byte* data;
  Digits stride;

  __device__ __forceinline__ std::byte* at(const Digits& line) const {
    return data + line.digit[0] * stride.digit[0] + line.digit[1] * stride.digit[1] + line.digit[2] * stride.digit[2];
  }
};

__host__ __device__ __forceinline__ Digits digits_of(std::int64_t number, const Digits& count) {
  const std::int64_t higher = number / count.digit[0];
  return {number % count.digit[0], higher % count.digit[1], higher / count.digit[1]};
}
__device__ __forceinline__ void advance(Digits& line, const Lines& lines) {
  for (int d = 0; d < 3; ++d) line.digit[d] += lines.step.digit[d];
  for (int d = 0; d < 2; ++d)
    if (line.digit[d] >= lines.count.digit[d]) {
      line.digit[d] -= lines.count.digit[d];
      ++line.digit[d + 1];
    }
}

// Calls f(line, vector) for all vectors of this thread.
template <class F>
__device__ __forceinline__ void for_each_vector(const Lines& lines, F&& f) {
  const int width = lines.vectors < threads ? lines.vectors : threads, together = threads / width;
  const int column = thread_index() % width, ahead = thread_index() / width;
  if (ahead >= together) return;
  Digits line = digits_of(static_cast<std::int64_t>(block_index().x) * together + ahead, lines.count);
  for (; line.digit[2] < lines.count.digit[2]; advance(line, lines))
    for (int vector = column; vector < lines.vectors; vector += width) f(line, vector);
}

// ---------------------------------------------------------------- vectors

// As many bytes as are copied at once.
template <int bytes>
struct Unit;
template <>
struct Unit<16> {
  using type = Words<4>;
};
template <>
struct Unit<4> {
  using type = std::uint32_t;
};
template <>
struct Unit<2> {
  using type = std::uint16_t;
};

template <class V>
__device__ __forceinline__ V load(const std::byte* from) {
  if constexpr (sizeof(V) == 16)
    return load_global16(from);
  else
    return *reinterpret_cast<const V*>(from);
}
template <class V>
__device__ __forceinline__ void store(std::byte* to, const V& value) {
  if constexpr (sizeof(V) == 16)
    store_global16(to, value);
  else
    *reinterpret_cast<V*>(to) = value;
}

// `count` numbers of a line: one, or a multiple of what 16 bytes have room for.
template <class T, int count>
struct Numbers {
  static constexpr int size = static_cast<int>(sizeof(T));
  float x[count];

  __device__ __forceinline__ static Numbers from(const std::byte* p) {
    Numbers n;
    if constexpr (count == 1) {
      n.x[0] = number_of(*reinterpret_cast<const T*>(p));
    } else {
      for (int first = 0; first < count; first += 16 / size) {
        const Words<4> words = load_global16(p + first * size);
        for (int i = 0; i < 4; ++i)
          if constexpr (size == 4) {
            n.x[first + i] = float_of(words[i]);
          } else {
            n.x[first + 2 * i] = unpack_low<T>(words[i]);
            n.x[first + 2 * i + 1] = unpack_high<T>(words[i]);
          }
      }
    }
    return n;
  }
  __device__ __forceinline__ void to(std::byte* p) const {
    if constexpr (count == 1) {
      if constexpr (size == 4)
        *reinterpret_cast<float*>(p) = x[0];
      else
        reinterpret_cast<T*>(p)->bits = static_cast<std::uint16_t>(pack<T>(x[0], 0.0F) & 0xffffU);
    } else {
      for (int first = 0; first < count; first += 16 / size) {
        Words<4> words;
        for (int i = 0; i < 4; ++i)
          if constexpr (size == 4)
            words[i] = bits_of(x[first + i]);
          else
            words[i] = pack<T>(x[first + 2 * i], x[first + 2 * i + 1]);
        store_global16(p + first * size, words);
      }
    }
  }
};

// ---------------------------------------------------------------- kernels

struct Copy {
  Lines lines;
  Operand from, to;
};
template <int bytes>
__global__ void __launch_bounds__(threads) copy_kernel(const __grid_constant__ Copy p) {
  using V = typename Unit<bytes>::type;
  for_each_vector(p.lines, [&](const Digits& line, int vector) {
    store(p.to.at(line) + vector * bytes, load<V>(p.from.at(line) + vector * bytes));
  });
}

struct Clear {
  Lines lines;
  Operand to;
};
template <int bytes>
__global__ void __launch_bounds__(threads) clear_kernel(const __grid_constant__ Clear p) {
  using V = typename Unit<bytes>::type;
  for_each_vector(p.lines, [&](const Digits& line, int vector) { store(p.to.at(line) + vector * bytes, V{}); });
}

struct Round {
  Lines lines;
  Operand from, to;
  bool accumulate;
};
template <class T, int count>
__global__ void __launch_bounds__(threads) round_kernel(const __grid_constant__ Round p) {
  for_each_vector(p.lines, [&](const Digits& line, int vector) {
    const auto from = Numbers<float, count>::from(p.from.at(line) + vector * count * 4);
    std::byte* const to = p.to.at(line) + vector * count * static_cast<int>(sizeof(T));
    Numbers<T, count> sum{};
    if (p.accumulate) sum = Numbers<T, count>::from(to);
    for (int i = 0; i < count; ++i) sum.x[i] = p.accumulate ? sum.x[i] + from.x[i] : from.x[i];
    sum.to(to);
  });
}

struct Sum {
  static constexpr int most_terms = 2;
  Lines lines;
  Operand term[most_terms];
  DType dtype[most_terms];  // of the terms
  std::int32_t num_terms;
  Operand to;
  bool accumulate;
};
template <class T, int count>
__device__ __forceinline__ void add_numbers(float (&sum)[count], const std::byte* line, int vector) {
  const auto term = Numbers<T, count>::from(line + vector * count * static_cast<int>(sizeof(T)));
  for (int i = 0; i < count; ++i) sum[i] += term.x[i];
}
template <class T, int count>
__global__ void __launch_bounds__(threads) sum_kernel(const __grid_constant__ Sum p) {
  for_each_vector(p.lines, [&](const Digits& line, int vector) {
    std::byte* const to = p.to.at(line) + vector * count * static_cast<int>(sizeof(T));
    Numbers<T, count> sum{};
    if (p.accumulate) sum = Numbers<T, count>::from(to);
    for (int n = 0; n < p.num_terms; ++n) {
      const std::byte* const term = p.term[n].at(line);
      switch (p.dtype[n]) {
        case DType::bfloat16:
          add_numbers<BFloat16>(sum.x, term, vector);
          break;
        case DType::float16:
          add_numbers<Float16>(sum.x, term, vector);
          break;
        default:
          add_numbers<float>(sum.x, term, vector);
      }
    }
    sum.to(to);
  });
}

struct Add {
  const float* from;
  float* to;
  std::int64_t count;
  bool aligned;
};
__global__ void __launch_bounds__(threads) add_kernel(const __grid_constant__ Add p) {
  const std::int64_t step = static_cast<std::int64_t>(grid_size().x) * threads;
  const std::int64_t vectors = p.aligned ? p.count / 4 : 0;
  const std::int64_t own = static_cast<std::int64_t>(block_index().x) * threads + thread_index();
  for (std::int64_t vector = own; vector < vectors; vector += step) {
    std::byte* const to = reinterpret_cast<std::byte*>(p.to + vector * 4);
    const auto from = Numbers<float, 4>::from(reinterpret_cast<const std::byte*>(p.from + vector * 4));
    auto sum = Numbers<float, 4>::from(to);
    for (int i = 0; i < 4; ++i) sum.x[i] += from.x[i];
    sum.to(to);
  }
  for (std::int64_t i = vectors * 4 + own; i < p.count; i += step) p.to[i] += p.from[i];
}

// ---------------------------------------------------------------- on the host

bool aligned(const Tensor& t, std::int64_t bytes) {
  const std::int64_t size = size_of(t.dtype);
  return reinterpret_cast<std::uintptr_t>(t.data) % static_cast<std::uintptr_t>(bytes) == 0 &&
         t.batch_stride * size % bytes == 0 && t.seq_stride * size % bytes == 0 && t.head_stride * size % bytes == 0;
}

Operand operand(const Tensor& t) {
  const std::int64_t size = size_of(t.dtype);
  return {static_cast<std::byte*>(t.data), {t.head_stride * size, t.seq_stride * size, t.batch_stride * size}};
}

struct Grid {
  Lines lines;
  int blocks;
};
template <class... Parameters>
Grid divide(std::int64_t batch, Extent extent, std::int64_t vectors, void (*kernel)(Parameters...), int num_sms) {
  const Digits count{extent.heads, extent.rows, batch};
  const std::int64_t lines = batch * extent.rows * extent.heads;
  const std::int64_t together = threads / std::min<std::int64_t>(vectors, threads),
                     of_block = together * lines_of_thread;
  const int blocks =
      limit_blocks(std::min((lines + of_block - 1) / of_block, most_blocks), num_sms, kernel, threads, 0);
  return {{count, digits_of(blocks * together, count), static_cast<int>(vectors)}, blocks};
}

LaunchConfig config(const char* name, int blocks, CUstream_st* stream) {
  return {.name = name, .grid = {blocks, 1, 1}, .threads = threads, .shared_bytes = 0, .stream = stream};
}

bool empty(std::int64_t batch, Extent extent) {
  return batch == 0 || extent.rows == 0 || extent.heads == 0 || extent.dim == 0;
}

// The largest that all lines are whole units of.
int unit_bytes(std::int64_t line_bytes, std::initializer_list<Tensor> tensors) {
  for (const int bytes : {16, 4})
    if (line_bytes % bytes == 0 && std::ranges::all_of(tensors, [&](const Tensor& t) { return aligned(t, bytes); }))
      return bytes;
  return 2;
}

// Of each entry by itself, if they are few: what lies between the rows that are taken of them need not be there yet.
std::vector<Access> accesses_of(const Tensor& t, std::int64_t batch, Extent extent, bool writes) {
  constexpr std::int64_t few = 64;
  std::vector<Access> accesses;
  if (batch > few) return {access_of(t, batch, extent, writes)};
  for (std::int64_t b = 0; b < batch; ++b) accesses.push_back(access_of(t.from(b, 0, 0), 1, extent, writes));
  return accesses;
}

template <class F>
int with_unit(int bytes, F&& f) {
  switch (bytes) {
    case 16:
      return f.template operator()<16>();
    case 4:
      return f.template operator()<4>();
    default:
      return f.template operator()<2>();
  }
}
template <class F>
int with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::bfloat16:
      return f.template operator()<BFloat16>();
    case DType::float16:
      return f.template operator()<Float16>();
    default:
      return f.template operator()<float>();
  }
}

}  // namespace

int copy(std::int64_t batch, const Tensor& from, const Tensor& to, Extent extent, CUstream_st* stream, int num_sms) {
  if (empty(batch, extent)) return 0;
  std::vector<Access> accesses = accesses_of(from, batch, extent, false);
  accesses.push_back(access_of(to, batch, extent, true));
  const std::int64_t line_bytes = extent.dim * size_of(to.dtype);
  return with_unit(unit_bytes(line_bytes, {from, to}), [&]<int bytes>() {
    const Grid grid = divide(batch, extent, line_bytes / bytes, copy_kernel<bytes>, num_sms);
    return launch(config("copy", grid.blocks, stream), accesses, copy_kernel<bytes>,
                  Copy{grid.lines, operand(from), operand(to)});
  });
}

int round(std::int64_t batch, const Tensor& from, const Tensor& to, Extent extent, bool accumulate, CUstream_st* stream,
          int num_sms) {
  if (empty(batch, extent)) return 0;
  const Access accesses[] = {access_of(from, batch, extent, false), access_of(to, batch, extent, true),
                             access_of(to, batch, extent, false)};
  return with_dtype(to.dtype, [&]<class T>() {
    const auto run = [&]<int numbers>() {
      const Grid grid = divide(batch, extent, extent.dim / numbers, round_kernel<T, numbers>, num_sms);
      return launch(config("round", grid.blocks, stream), std::span(accesses).first(accumulate ? 3 : 2),
                    round_kernel<T, numbers>, Round{grid.lines, operand(from), operand(to), accumulate});
    };
    constexpr int at_once = 16 / static_cast<int>(sizeof(T));
    return extent.dim % at_once == 0 && aligned(from, 16) && aligned(to, 16) ? run.template operator()<at_once>()
                                                                             : run.template operator()<1>();
  });
}

int sum(std::int64_t batch, std::span<const Tensor> terms, const Tensor& to, Extent extent, bool accumulate,
        CUstream_st* stream, int num_sms) {
  if (empty(batch, extent)) return 0;
  constexpr int at_once = 8;  // 16 bytes of the smaller types, and two times 16 of fp32
  std::vector<Access> accesses{access_of(to, batch, extent, true)};
  if (accumulate) accesses.push_back(access_of(to, batch, extent, false));
  Sum p{{}, {}, {}, static_cast<std::int32_t>(terms.size()), operand(to), accumulate};
  bool is_aligned = extent.dim % at_once == 0 && aligned(to, 16);
  for (std::size_t n = 0; n < terms.size(); ++n) {
    accesses.push_back(access_of(terms[n], batch, extent, false));
    p.term[n] = operand(terms[n]);
    p.dtype[n] = terms[n].dtype;
    is_aligned = is_aligned && aligned(terms[n], 16);
  }
  return with_dtype(to.dtype, [&]<class T>() {
    const auto run = [&]<int numbers>() {
      const Grid grid = divide(batch, extent, extent.dim / numbers, sum_kernel<T, numbers>, num_sms);
      p.lines = grid.lines;
      return launch(config("sum", grid.blocks, stream), accesses, sum_kernel<T, numbers>, p);
    };
    return is_aligned ? run.template operator()<at_once>() : run.template operator()<1>();
  });
}

int clear(std::int64_t batch, const Tensor& to, Extent extent, CUstream_st* stream, int num_sms) {
  if (empty(batch, extent)) return 0;
  const Access accesses[] = {access_of(to, batch, extent, true)};
  const std::int64_t line_bytes = extent.dim * size_of(to.dtype);
  return with_unit(unit_bytes(line_bytes, {to}), [&]<int bytes>() {
    const Grid grid = divide(batch, extent, line_bytes / bytes, clear_kernel<bytes>, num_sms);
    return launch(config("clear", grid.blocks, stream), accesses, clear_kernel<bytes>, Clear{grid.lines, operand(to)});
  });
}

int add(const float* from, float* to, std::int64_t count, CUstream_st* stream, int num_sms) {
  if (count == 0) return 0;
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
  const Access accesses[] = {{from, bytes, false}, {to, bytes, true}, {to, bytes, false}};
  constexpr std::int64_t of_block = threads * 4 * lines_of_thread;
  const int blocks =
      limit_blocks(std::min((count + of_block - 1) / of_block, most_blocks), num_sms, add_kernel, threads, 0);
  const bool aligned = (reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to)) % 16 == 0;
  return launch(config("add", blocks, stream), accesses, add_kernel, Add{from, to, count, aligned});
}

}  // namespace ringattn::cuda
