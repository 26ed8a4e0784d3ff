// What a benchmark prints and keeps.
//
//   int main(int argc, char** argv) { return run_benchmark(argc, argv, "ring", "what it measures", {}, body); }
//
//   void body(Report& report) {
//     Progress progress(steps);
//     report.begin_table("forward", {{"ranks", "ranks"}, {"bytes", "memory", "MB", "{:.2f}", megabyte}});
//     report.add_row({4.0, 5e6});                          printed at once, in the column's unit; kept as given
//     report.add_bar("memory on 4 ranks, MB", 4.8, "<", 8);
//   }
//
// After the body come the bars, and OUTPUT/NAME.json with everything: cpu, engine, threads, commit, date, quick, rows, bars.
// Exit status: 0 if every bar holds, 1 if one does not, 2 if the benchmark could not be run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "ringattn/ringattn.h"

namespace ringattn::benchmark {

constexpr double megabyte = 1 << 20;

double median(std::vector<double> values);

// Throws what the library said.
void check(ra_status status, const ra_error& error);

ra_capabilities read_capabilities();

// One line of standard error, drawn anew for each step; nothing where that is no terminal.
class Progress {
 public:
  explicit Progress(int steps) : steps_(steps) {}
  ~Progress() { wipe(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void begin_step(const std::string& what);
  void update_step(const std::string& what) const;
  static void wipe();

 private:
  int steps_;
  int step_ = 0;
};

struct Column {
  std::string key;    // in the file
  std::string title;  // in the table
  std::string unit = "";
  std::string format = "{:.0f}";  // of value / scale
  double scale = 1;
  std::size_t width = 7;  // at least
};
using Value = std::variant<double, std::string>;  // a NaN is printed as "-" and kept as null

class Report {
 public:
  Report(const std::string& name, bool quick);
  ~Report();

  bool quick() const;
  void note(const std::string& text) const;
  void begin_table(const std::string& title, std::vector<Column> columns);
  void add_row(const std::vector<Value>& values);
  // `relation` is "<=", "<" or ">=".
  void add_bar(const std::string& name, double value, const std::string& relation, double bar);
  // Prints the bars and writes the file in the folder `output`. Whether every bar holds.
  bool finish(const std::string& output);

 private:
  struct Contents;
  std::unique_ptr<Contents> contents_;
};

// An option of a benchmark's own, "--name"; its variable has the default. One of a bool takes no value.
struct Option {
  std::string name;
  std::variant<bool*, int*, std::int64_t*, std::size_t*, double*, std::string*> variable;
  std::string help;
};

// The main function of a benchmark, which has its own options beside --quick and --output.
int run_benchmark(int argc, char** argv, const std::string& name, const std::string& description,
                  const std::vector<Option>& options, const std::function<void(Report&)>& body);

}  // namespace ringattn::benchmark
