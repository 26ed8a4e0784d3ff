// A language model over the bytes of a book, trained on ranks that each hold a part of every sequence.
//
//   model.hpp     the model, forwards and backwards, on one rank's tokens
//   trainer.hpp   a step of training, and checkpoints
//   group.hpp     ranks that are threads of this process, or one of them that is this process
//   main.cpp      options, what is printed, the JSON file

#include <fmt/format.h>
#include <omp.h>

#include <CLI/CLI.hpp>
#include <array>
#include <chrono>
#include <nlohmann/json.hpp>

#include "progress.hpp"
#include "trainer.hpp"

namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string text = "build/demo/bible.txt", output = "build/train";
  Shape shape;
  Schedule schedule;
  int64_t measured = 2;  // sequences of the held-out part
  int64_t measure_every = 10;
  double minutes = 0;  // 0: as long as it takes
  uint64_t seed = 1;
  bool resumes = false, checks = false;
  Place place;
};

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

/** What guessing each byte from the one before takes, in bits per byte: counts of pairs in one text, tried on another. */
double guess_from_one(std::string_view counted, std::string_view tried) {
  std::vector<std::array<double, kBytes>> pairs(kBytes);
  std::array<double, kBytes> sums{};
  for (auto& row : pairs) row.fill(0.01);
  const auto index = [](char c) { return static_cast<size_t>(static_cast<unsigned char>(c)); };
  for (size_t i = 1; i < counted.size(); ++i) pairs[index(counted[i - 1])][index(counted[i])] += 1;
  for (size_t row = 0; row < pairs.size(); ++row)
    for (const double count : pairs[row]) sums[row] += count;
  double bits = 0;
  for (size_t i = 1; i < tried.size(); ++i)
    bits -= std::log2(pairs[index(tried[i - 1])][index(tried[i])] / sums[index(tried[i - 1])]);
  return bits / static_cast<double>(tried.size() - 1);
}

/** What rank 0 says, and keeps for the JSON file. */
class Diary {
 public:
  Diary(const Options& o, double baseline, bool is_kept) : o_(o), is_kept_(is_kept) {
    if (!is_kept_) return;
    std::filesystem::create_directories(o.output);
    if (std::ifstream old(path()); o.resumes && old) rows_ = nlohmann::json::parse(old).at("rows");
    baseline_ = baseline;
    fmt::print("guessing each byte from the one before: {:.3f} bits per byte\n\n", baseline);
    fmt::print("{:>6}  {:>12}  {:>9}  {:>10}  {:>8}\n", "step", "tokens", "training", "validation", "tokens/s");
  }
  void add(int64_t step, double training, double validation, double seconds_of_step) {
    if (!is_kept_) return;
    const int64_t tokens = step * o_.shape.context;
    std::erase_if(*rows_.get_ptr<nlohmann::json::array_t*>(), [&](const auto& row) { return row.at("step") >= step; });
    rows_.push_back({{"step", step}, {"tokens", tokens}, {"training", training}, {"validation", validation}});
    fmt::print("{:>6}  {:>12}  {:>9.4f}  {:>10.4f}  {:>8.0f}\n", step, fmt::group_digits(tokens), training, validation,
               static_cast<double>(o_.shape.context) / seconds_of_step);
    std::fflush(stdout);
    std::ofstream(path()) << nlohmann::json{{"context", o_.shape.context},
                                            {"baseline", baseline_},
                                            {"ranks", o_.place.world_size},
                                            {"rows", rows_}}
                                 .dump(1)
                          << '\n';
  }
  std::filesystem::path path() const { return std::filesystem::path(o_.output) / "loss.json"; }

 private:
  const Options& o_;
  const bool is_kept_;
  double baseline_ = 0;
  nlohmann::json rows_ = nlohmann::json::array();
};

/** On one rank. */
void run(const Options& o, const std::string& text, int32_t rank, ra_context* context, int threads) {
  omp_set_num_threads(threads);  // of dnnl_sgemm, called from this thread
  const auto held_out = static_cast<size_t>(o.measured * o.shape.context + 1);
  const std::string_view training = std::string_view(text).substr(0, text.size() - held_out),
                         validation = std::string_view(text).substr(text.size() - held_out);
  Trainer trainer(o.shape, o.place.world_size, rank, context, o.seed);
  if (o.checks) {
    const double error = trainer.check_gradients(training, 5);
    if (rank == 0)
      fmt::print("gradients of {} weights differ from central differences by {:.1e}\n",
                 fmt::group_digits(trainer.values().size()), error);
    if (!(error <= 1e-2)) throw std::runtime_error("that is too much; at most 0.01");
    return;
  }
  const std::filesystem::path checkpoint = std::filesystem::path(o.output) / "checkpoint";
  if (o.resumes) trainer.load(checkpoint);
  Diary diary(o, rank == 0 ? guess_from_one(training, validation) : 0, rank == 0);
  Progress progress(o.schedule.steps);
  const Clock::time_point end =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(60 * o.minutes));
  double time = 0;
  while (trainer.step() < o.schedule.steps) {
    if (rank == 0) progress.draw(trainer.step(), fmt::format("step {}", trainer.step()));
    const Clock::time_point begin = Clock::now();
    const double loss = trainer.train(training, o.schedule);
    time = std::chrono::duration<double>(Clock::now() - begin).count();
    const bool is_over = trainer.is_time_over(o.minutes > 0 && Clock::now() > end);
    if (trainer.step() % o.measure_every != 0 && trainer.step() < o.schedule.steps && !is_over) continue;
    const double measured = trainer.measure(validation, o.measured);
    if (rank == 0) {
      progress.wipe();
      diary.add(trainer.step(), loss, measured, time);
      trainer.save(checkpoint);
    }
    if (is_over) break;
  }
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  std::string id_file;
  CLI::App app("Trains a language model over bytes, on several ranks.");
  app.option_defaults()->always_capture_default();
  app.add_option("text", o.text, "The book: a text file");
  app.add_option("--output", o.output, "Folder for loss.json and the checkpoint");
  app.add_option("--ranks", o.place.world_size, "Ranks that share each sequence")->check(CLI::Range(1, 4096));
  app.add_option("--threads", o.place.threads, "Of each rank; 0: its share of the machine")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--rank", o.place.rank, "That this process is one rank alone, which")->check(CLI::NonNegativeNumber);
  app.add_option("--id-file", id_file, "A file with the group's id, for --rank")->check(CLI::ExistingFile);
  app.add_option("--context", o.shape.context, "Bytes of a sequence")->check(CLI::Range(16, 1 << 24));
  app.add_option("--window", o.shape.window, "Bytes that all layers but the last look back; 0: all")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--layers", o.shape.layers, "Of the model")->check(CLI::Range(1, 100));
  app.add_option("--d-model", o.shape.d_model, "Elements of a token")->check(CLI::PositiveNumber);
  app.add_option("--heads", o.shape.heads, "Which share them")->check(CLI::PositiveNumber);
  app.add_option("--d-ff", o.shape.d_ff, "Elements inside the MLP")->check(CLI::PositiveNumber);
  app.add_option("--steps", o.schedule.steps, "Sequences to train on")->check(CLI::PositiveNumber);
  app.add_option("--minutes", o.minutes, "To end after, with a checkpoint; 0: when all steps are done")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--rate", o.schedule.rate, "Of learning, after the warm-up")->check(CLI::PositiveNumber);
  app.add_option("--measure-every", o.measure_every, "Steps from one line of the table to the next")
      ->check(CLI::PositiveNumber);
  app.add_option("--seed", o.seed, "Of the weights and of the order of sequences");
  app.add_flag("--resume", o.resumes, "Go on from the checkpoint");
  app.add_flag("--check", o.checks, "Only check the gradients, against differences");
  CLI11_PARSE(app, argc, argv);
  try {
    if (!id_file.empty() && !(std::ifstream(id_file) >> o.place.id)) throw std::runtime_error("cannot read " + id_file);
    const std::string text = read_text(o.text);
    if (static_cast<int64_t>(text.size()) < (o.measured + 2) * (o.shape.context + 1))
      throw std::runtime_error(
          fmt::format("{} has {} bytes; a context of {} needs more", o.text, text.size(), o.shape.context));
    run_ranks(o.place,
              [&](int32_t rank, ra_context* context) { run(o, text, rank, context, o.place.threads_of_rank()); });
  } catch (const std::exception& failure) {
    fmt::print(stderr, "{}\n", failure.what());
    return 1;
  }
  return 0;
}
