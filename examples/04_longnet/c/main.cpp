// A book at full length through LongNet's pattern, beside exact attention on a prefix and a window that costs as much.
//
//   pattern.hpp   what a byte may look back at; the result from the definition, in fp64
//   ranks.hpp     the same computed by libringattn
//   main.cpp      how well bytes are guessed; the table; the JSON file
//
// The head, the book and the group of ranks are those of example 01.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <span>

#include "book.hpp"
#include "progress.hpp"
#include "ranks.hpp"

/** One pass over the first `length` bytes. Memory and what is sent are in bytes, of all ranks together. */
struct Row {
  std::string pattern;
  int64_t length = 0;
  double seconds = 0;
  double pairs_per_byte = 0;
  double sent_bytes = 0;
  double memory = 0;
  double accuracy = 0;         // share of all bytes that were the first guess
  double bits_per_byte = 0;    // 7 for a uniform guess among 128
  double prefix_accuracy = 0;  // the same of the bytes that exact attention read
  double prefix_bits_per_byte = 0;
  double max_difference_fp64 = 0;           // of 64 of the guessed bytes
  std::vector<double> bits_along_the_book;  // of each 64th part of the whole text that was read
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Row, pattern, length, seconds, pairs_per_byte, sent_bytes, memory, accuracy,
                                   bits_per_byte, prefix_accuracy, prefix_bits_per_byte, max_difference_fp64,
                                   bits_along_the_book)

namespace {

constexpr int64_t kParts = 64;  // of the text, each with its own score

struct Options {
  std::string text = "build/demo/bible.txt";
  std::string output = "build/demo";
  int64_t length = 1 << 20;
  int64_t exact = 1 << 17;
  int32_t ranks = 4;
};

struct Score {
  double accuracy = 0, bits_per_byte = 0;
};

/** Of guesses begin .. end - 1; with 2 % of the uniform distribution mixed in, so that no byte is impossible. */
Score score(const std::string& text, const std::vector<Guess>& guesses, int64_t begin, int64_t end) {
  Score score;
  for (int64_t i = begin; i < end; ++i) {
    const Guess& guess = guesses[static_cast<size_t>(i)];
    score.accuracy += guess.byte == text[static_cast<size_t>(i + 1)] ? 1.0 : 0.0;
    score.bits_per_byte -= std::log2(0.98 * double{guess.probability} + 0.02 / kAlphabet);
  }
  score.accuracy /= static_cast<double>(end - begin);
  score.bits_per_byte /= static_cast<double>(end - begin);
  return score;
}

/** 64 bytes, half of them at places that every branch keeps, so that the farthest are looked at too; ascending. */
std::vector<int64_t> sample_rows(int64_t length) {
  std::mt19937_64 random(1);
  std::vector<int64_t> rows;
  for (int n = 0; n < 64; ++n) {
    const auto i = static_cast<int64_t>(random() % static_cast<uint64_t>(length));
    rows.push_back(n % 2 == 0 ? i : i / kShortestSegment * kShortestSegment);
  }
  std::ranges::sort(rows);
  rows.erase(std::ranges::unique(rows).begin(), rows.end());
  return rows;
}

Row measure(const Ranks& ranks, const std::string& text, const Options& options, PatternKind kind, int64_t length) {
  const Pattern pattern = make_pattern(kind, length);
  const Cost cost = ranks.get_cost(pattern, length);
  const std::vector<int64_t> sampled = sample_rows(length);
  Row row{.pattern = pattern.name(),
          .length = length,
          .pairs_per_byte = cost.pairs / static_cast<double>(length),
          .sent_bytes = cost.sent_bytes,
          .memory = cost.memory,
          .bits_along_the_book = {}};
  std::vector<Distribution> samples;
  const std::vector<Guess> guesses = ranks.guess(pattern, length, sampled, row.seconds, samples);
  for (size_t n = 0; n < sampled.size(); ++n) {
    const Distribution expected = attend_fp64(pattern, text, sampled[n]);
    for (size_t b = 0; b < expected.size(); ++b)
      row.max_difference_fp64 = std::max(row.max_difference_fp64, std::abs(expected[b] - samples[n][b]));
  }
  const auto of = [&](int64_t begin, int64_t end) { return score(text, guesses, begin, end); };
  const Score all = of(0, length), prefix = of(0, std::min(length, options.exact));
  row.accuracy = all.accuracy;
  row.bits_per_byte = all.bits_per_byte;
  row.prefix_accuracy = prefix.accuracy;
  row.prefix_bits_per_byte = prefix.bits_per_byte;
  for (int64_t part = 0; part < kParts; ++part) {
    const int64_t begin = options.length * part / kParts, end = options.length * (part + 1) / kParts;
    if (end <= length) row.bits_along_the_book.push_back(of(begin, end).bits_per_byte);
  }
  return row;
}

/** The passes, in the order of the table. Exact attention stops at the prefix; the others go on to the end. */
std::vector<std::pair<PatternKind, int64_t>> list_passes(const Options& options) {
  std::vector<std::pair<PatternKind, int64_t>> passes;
  for (const PatternKind kind : {PatternKind::exact, PatternKind::window, PatternKind::longnet}) {
    std::vector<int64_t> lengths;
    for (int64_t n = options.exact; n >= kShortestSegment && lengths.size() < 3; n /= 4)
      lengths.insert(lengths.begin(), n);
    if (kind != PatternKind::exact) {
      for (int64_t n = options.exact * 4; n <= options.length / 2; n *= 4) lengths.push_back(n);
      if (options.length > options.exact) lengths.push_back(options.length);
    }
    for (const int64_t length : lengths) passes.emplace_back(kind, length);
  }
  return passes;
}

void print_columns(const auto&... columns) {
  fmt::print("{:<8}  {:>9}  {:>8}  {:>11}  {:>10}  {:>9}  {:>8}  {:>8}  {:>10}\n", columns...);
  std::fflush(stdout);
}

void print_heading(const Options& options) {
  fmt::print("One untrained attention head reads {} bytes of {} and guesses each from those before it.\nranks: {}\n\n",
             fmt::group_digits(options.length), options.text, options.ranks);
  print_columns("", "", "", "pairs", "", "", "guessed", "bits per", "difference");
  print_columns("pattern", "bytes", "seconds", "per byte", "sent", "memory", "right", "byte", "to fp64");
}

void print_row(const Row& row) {
  print_columns(row.pattern, fmt::format("{}", fmt::group_digits(row.length)), fmt::format("{:.2f}", row.seconds),
                fmt::format("{}", fmt::group_digits(std::llround(row.pairs_per_byte))),
                fmt::format("{:.1f} MiB", row.sent_bytes / (1 << 20)),
                fmt::format("{:.2f} GiB", row.memory / (1 << 30)), fmt::format("{:.1f} %", 100 * row.accuracy),
                fmt::format("{:.2f}", row.bits_per_byte), fmt::format("{:.1e}", row.max_difference_fp64));
}

// ---------------------------------------------------------------- the demo

void run(Options options) {
  const std::string text = read_text(options.text);
  const auto text_length = static_cast<int64_t>(text.size());
  if (options.length == 0) options.length = text_length - 1;  // the last byte is guessed, not read
  if (options.length < kShortestSegment || options.length >= text_length)
    throw std::runtime_error(fmt::format("--length is {}; {} has {} bytes, which allows {} to {}", options.length,
                                         options.text, text_length, kShortestSegment, text_length - 1));
  if (options.exact < kShortestSegment || options.exact > options.length)
    throw std::runtime_error(fmt::format("--exact is {}; with --length {} it may be {} to {}", options.exact,
                                         options.length, kShortestSegment, options.length));
  std::filesystem::create_directories(options.output);
  const std::filesystem::path path = std::filesystem::path(options.output) / "longnet.json";
  std::ofstream file(path);
  if (!file) throw std::runtime_error("cannot write " + path.string());
  const auto passes = list_passes(options);
  const Ranks ranks(text, options.ranks);
  int64_t total = 0;
  const auto work = [&](const auto& pass) {  // in millions of pairs, for the bar
    return 1 + static_cast<int64_t>(ranks.get_cost(make_pattern(pass.first, pass.second), pass.second).pairs / 1e6);
  };
  for (const auto& pass : passes) total += work(pass);

  Progress progress(total);
  std::vector<Row> rows;
  print_heading(options);
  for (const auto& pass : passes) {
    const auto& [kind, length] = pass;
    progress.begin(fmt::format("{}, {} bytes", make_pattern(kind, length).name(), length));
    rows.push_back(measure(ranks, text, options, kind, length));
    progress.end(work(pass));
    print_row(rows.back());
  }
  fmt::print("\nof the first {} bytes\n", fmt::group_digits(options.exact));
  for (const Row& row : rows) {
    if (row.length < options.exact) continue;
    fmt::print("  {:<8} that reads {:>9}: {:.1f} % right, {:.2f} bits per byte\n", row.pattern,
               fmt::format("{}", fmt::group_digits(row.length)), 100 * row.prefix_accuracy, row.prefix_bits_per_byte);
  }

  file << nlohmann::json{{"text", options.text},   {"length", options.length}, {"exact", options.exact},
                         {"ranks", options.ranks}, {"parts", kParts},          {"rows", rows}}
              .dump(2)
       << '\n';
  if (!file.flush()) throw std::runtime_error("cannot write " + path.string());
  fmt::print("\nwrote {}\n", path.string());
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("A book at full length through LongNet's pattern of dilated attention.");
  app.option_defaults()->always_capture_default();
  app.add_option("text", options.text, "The book: a text file");
  app.add_option("--length", options.length, "Bytes of it to read; 0: all")->check(CLI::NonNegativeNumber);
  app.add_option("--exact", options.exact, "Bytes of it that exact attention reads")->check(CLI::PositiveNumber);
  app.add_option("--ranks", options.ranks, "Ranks that share them")->check(CLI::Range(1, 4096));
  app.add_option("--output", options.output, "Folder for longnet.json");
  CLI11_PARSE(app, argc, argv);
  try {
    run(options);
  } catch (const std::exception& failure) {
    fmt::print(stderr, "{}\n", failure.what());
    return 1;
  }
  return 0;
}
