// A language model over the bytes of a book, trained on ranks that each hold a part of every sequence.
//
//   model.hpp     the model, forwards and backwards, on one rank's tokens: the calls of multi-head attention
//   ranks.hpp     what ranks tell each other beside that
//   trainer.hpp   steps of training, what is measured, checkpoints
//   main.cpp      options, which ranks this process is, the table
//
// Ranks are threads of this process, in ../../01_long_context/c/group.hpp, or with --rank this process is one of them.

#include <omp.h>

#include <CLI/CLI.hpp>

#include "progress.hpp"
#include "trainer.hpp"

namespace {

struct Options {
  std::string text = "build/demo/bible.txt", output = "build/train";
  Settings settings;
  double minutes = 0;  // 0: until all steps are done
  bool resumes = false, checks = false;
  int32_t world_size = 2, threads = 0;
  int32_t rank = -1;  // -1: this process is all of them
  std::string id_file, bind;
  bool makes_id = false;

  std::filesystem::path file(const char* name) const { return std::filesystem::path(output) / name; }
};

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  require(file.good(), "cannot read {}", path);
  return {std::istreambuf_iterator<char>(file), {}};
}

void refuse_bad(const Settings& s, size_t text_size) {
  const int64_t at_least = s.held_out + s.shape.context + 2;
  require(s.held_out % s.shape.tokens() == 0, "--held-out is {}; must be a multiple of --batch times --context, {}",
          s.held_out, s.shape.tokens());
  require(s.shape.d_model % (2 * s.shape.heads) == 0, "--d-model is {}; must be a multiple of twice --heads, {}",
          s.shape.d_model, 2 * s.shape.heads);
  require(static_cast<int64_t>(text_size) >= at_least, "the text has {} bytes; --held-out and --context take {}",
          text_size, at_least);
}

/** On one rank. */
void train(const Options& o, Trainer& trainer, const Rank& rank) {
  const bool speaks = rank.rank == 0;
  if (o.resumes) trainer.load(o.file("checkpoint"));
  trainer.agree();
  if (speaks) {
    std::filesystem::create_directories(o.output);
    fmt::print("{} weights; a Markov chain of order 1 takes {:.3f} bits per byte\n\n",
               fmt::group_digits(trainer.num_weights()), trainer.record().baseline);
    fmt::print("{:>6}  {:>12}  {:>9}  {:>10}  {:>8}\n", "step", "bytes", "training", "validation", "bytes/s");
  }
  Progress progress(o.settings.steps, true);
  progress.end(trainer.step());
  const double end = o.minutes > 0 ? omp_get_wtime() + 60 * o.minutes : INFINITY;
  bool is_over = trainer.is_done();
  double bytes = 0, seconds = 0;  // since the last line
  while (!is_over) {
    if (speaks) progress.begin(fmt::format("step {}", trainer.step() + 1));
    const double begin = omp_get_wtime();
    trainer.train();
    seconds += omp_get_wtime() - begin, bytes += static_cast<double>(o.settings.shape.tokens());
    if (speaks) progress.end(1);
    // All ranks have to end after the same step, whatever their clocks say.
    is_over = trainer.is_done() || rank.sum(omp_get_wtime() > end ? 1 : 0) > 0;
    if (!is_over && trainer.step() % o.settings.measure_every != 0) continue;
    trainer.measure();
    if (!speaks) continue;
    std::ofstream(o.file("loss.json")) << nlohmann::json(trainer.record()).dump(1) << '\n';
    trainer.save(o.file("checkpoint"));
    fmt::print("{:>6}  {:>12}  {:>9.4f}  {:>10.4f}  {:>8.0f}\n", trainer.step(),
               fmt::group_digits(trainer.step() * o.settings.shape.tokens()), trainer.record().training.back(),
               trainer.record().validation.back().second, bytes / seconds);
    std::fflush(stdout);
    bytes = seconds = 0;
  }
}

Group make_group(const Options& o, int32_t threads) {
  if (o.rank < 0) return Group(o.world_size, threads);
  std::string id;
  require(!(std::ifstream(o.id_file) >> id).fail(), "cannot read {}", o.id_file);
  ra_context_config config;
  ra_init_context_config(&config, sizeof config);
  config.rank = o.rank, config.world_size = o.world_size, config.num_threads = threads;
  config.transport = RA_TRANSPORT_ZEROMQ;
  config.unique_id = id.c_str();
  config.bind_address = o.bind.empty() ? nullptr : o.bind.c_str();
  return Group(config);
}

void run(const Options& o) {
  if (o.makes_id)
    return fmt::print("{}\n", make_id(RA_TRANSPORT_ZEROMQ, o.bind.empty() ? nullptr : o.bind.c_str()).text);
  const std::string text = read_file(o.text);
  refuse_bad(o.settings, text.size());
  const int32_t share = std::max(static_cast<int32_t>(std::thread::hardware_concurrency()) / o.world_size, 1);
  const int32_t threads = o.threads > 0 ? o.threads : share;
  make_group(o, threads).on_every_rank([&](int32_t r, ra_context* context) {
    omp_set_num_threads(threads);  // of dnnl_sgemm on this thread
    const Rank rank{context, o.world_size, r};
    Trainer trainer(o.settings, text, rank);
    if (o.checks) return trainer.check_gradient();
    train(o, trainer, rank);
  });
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  Settings& s = o.settings;
  CLI::App app("Trains a language model over bytes, on several ranks.");
  app.option_defaults()->always_capture_default();
  const auto add = [&]<class T>(const char* name, T& value, std::type_identity_t<T> least, const char* what) {
    return app.add_option(name, value, what)->check(CLI::Range(least, T{1 << 30}));
  };
  app.add_option("text", o.text, "The book: a text file");
  app.add_option("--output", o.output, "Folder for loss.json and checkpoint");
  add("--context", s.shape.context, 1, "Bytes of a sequence");
  add("--batch", s.shape.batch, 1, "Sequences of a step");
  add("--layers", s.shape.layers, 1, "Of the model");
  add("--d-model", s.shape.d_model, 1, "Elements of a byte");
  add("--heads", s.shape.heads, 1, "That share them");
  add("--d-ff", s.shape.d_ff, 1, "Elements inside an MLP");
  add("--window", s.shape.window, 0, "Bytes that all layers but the last look back; 0: all");
  add("--steps", s.steps, 1, "Of the whole training");
  add("--minutes", o.minutes, 0.0, "To end after, with a checkpoint; 0: after all steps");
  add("--rate", s.rate, 0.0, "Of learning, after the warm-up");
  add("--warm-up", s.warm_up, 0, "Steps in which the rate grows");
  add("--held-out", s.held_out, 1, "Bytes at the end of the text that are measured, not trained on");
  add("--measure-every", s.measure_every, 1, "Steps from one checkpoint and line of the table to the next");
  app.add_option("--seed", s.seed, "Of the weights and of the order of sequences");
  app.add_flag("--resume", o.resumes, "Go on from the checkpoint");
  app.add_flag("--check", o.checks, "Only compare the gradient with differences of the loss");
  add("--ranks,--world-size", o.world_size, 1, "That share each sequence");
  add("--threads", o.threads, 0, "Of each rank; 0: its share of this machine");
  CLI::Option* const id_file = app.add_option("--id-file", o.id_file, "A file with what --make-id printed");
  add("--rank", o.rank, 0, "This process is that rank alone; without, it is all of them")->needs(id_file);
  app.add_option("--bind", o.bind, "An address, as in example 05");
  app.add_flag("--make-id", o.makes_id, "Print the id of a new group of processes and end");
  CLI11_PARSE(app, argc, argv);
  try {
    run(o);
  } catch (const std::exception& failure) {
    fmt::print(stderr, "{}\n", failure.what());
    return 1;
  }
  return 0;
}
