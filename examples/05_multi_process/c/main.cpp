// One rank, which is this process: forward and backward of a causal sequence that many processes share, on one machine or several.
//
//   rank.hpp   what a rank does: every call of the library
//   main.cpp   which rank this is, and what it prints
//
// All that processes need of each other is the text that --make-id prints. ../run.sh starts some, and hands it on in a file.

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <fstream>

#include "rank.hpp"

namespace {

struct Options {
  Place place;
  std::string id_file;
  bool makes_id = false;
  int64_t tokens = 1024;
  int64_t repeats = 1;
};

Options parse(int argc, char** argv, CLI::App& app) {
  Options o;
  app.add_flag("--make-id", o.makes_id, "Print the id of a new group and end");
  app.add_option("--rank", o.place.rank, "Which one this process is")->capture_default_str();
  app.add_option("--world-size", o.place.world_size, "Ranks of the group")->capture_default_str();
  CLI::Option* const id =
      app.add_option("--id", o.place.id, "Of the group; others on this machine can see it, so rather");
  app.add_option("--id-file", o.id_file, "A file that has it")->excludes(id)->check(CLI::ExistingFile);
  app.add_option(
      "--bind", o.place.bind,
      "With --make-id, the address of rank 0, perhaps with a port; else one of this machine, for all that others send");
  app.add_option("--timeout", o.place.timeout_ms, "Longest wait for another rank, in milliseconds")
      ->capture_default_str();
  app.add_option("--tokens", o.tokens, "Of the whole sequence")->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--repeats", o.repeats, "Forward and backward calls")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.parse(argc, argv);
  if (!o.id_file.empty() && !(std::ifstream(o.id_file) >> o.place.id))
    throw std::runtime_error(fmt::format("cannot read {}", o.id_file));
  return o;
}

void run(const Options& o) {
  const ra_attention_desc desc = describe(o.tokens);
  const Results expected = Rank(Place{}, desc).compute(1);  // by this process alone

  const Rank rank(o.place, desc);
  fmt::print("rank {} of {} is process {}\n", o.place.rank, o.place.world_size, getpid());
  std::fflush(stdout);
  const Results found = rank.compute(o.repeats);
  const double difference = rank.compare(found, expected);
  fmt::print("rank {} of {}: {} of {} tokens, forward and backward in {:.1f} ms, difference to one rank {:.1e}\n",
             o.place.rank, o.place.world_size, rank.num_tokens(), o.tokens, found.milliseconds, difference);
  if (!(difference <= 1e-5)) throw std::runtime_error("that is too much; at most 1e-05");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("One rank of a group of processes.");
  try {
    const Options o = parse(argc, argv, app);
    if (o.makes_id) {
      fmt::print("{}\n", make_id(o.place.bind));
      return 0;
    }
    try {
      run(o);
    } catch (const std::exception& e) {
      fmt::print(stderr, "rank {} of {}: {}\n", o.place.rank, o.place.world_size, e.what());
      return 1;
    }
    return 0;
  } catch (const CLI::ParseError& e) {
    return app.exit(e);
  } catch (const std::exception& e) {
    fmt::print(stderr, "{}\n", e.what());
    return 1;
  }
}
