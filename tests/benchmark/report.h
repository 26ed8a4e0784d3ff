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

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ringattn/ringattn.h"

namespace ringattn::benchmark {

constexpr double megabyte = 1 << 20;

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

inline void check(ra_status status, const ra_error& error) {
  if (status != RA_STATUS_SUCCESS)
    throw std::runtime_error(fmt::format("{}: {}", ra_get_status_name(status), error.message));
}

// ---------------------------------------------------------------- what was measured on what

inline std::string read_cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(std::min(line.find(": ") + 2, line.size()));
  }
  utsname machine{};
  return uname(&machine) == 0 ? machine.machine : "unknown";
}

// Of the environment's RINGATTN_COMMIT, or of the working directory.
inline std::string read_commit() {
  if (const char* commit = std::getenv("RINGATTN_COMMIT")) return commit;
  std::string commit;
  if (FILE* git = popen("git rev-parse --short HEAD 2>/dev/null", "r")) {
    for (int c = std::fgetc(git); c != EOF && c != '\n'; c = std::fgetc(git)) commit += static_cast<char>(c);
    if (pclose(git) != 0) commit.clear();
  }
  return commit.empty() ? "unknown" : commit;
}

inline ra_capabilities read_capabilities() {
  ra_capabilities capabilities;
  ra_init_capabilities(&capabilities, sizeof capabilities);
  ra_error error;
  check(ra_get_capabilities(&capabilities, &error), error);
  return capabilities;
}

// ---------------------------------------------------------------- while it runs

// One line of standard error, drawn anew for each step; nothing where that is no terminal.
class Progress {
 public:
  explicit Progress(int steps) : steps_(steps) {}
  ~Progress() { wipe(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void begin_step(const std::string& what) {
    ++step_;
    update_step(what);
  }
  void update_step(const std::string& what) const {
    if (!terminal()) return;
    fmt::print(stderr, "\r\033[K[{:>3} / {}]  {}", step_, steps_, what);
    std::fflush(stderr);
  }
  static void wipe() {
    if (terminal()) fmt::print(stderr, "\r\033[K");
  }

 private:
  static bool terminal() { return isatty(STDERR_FILENO) != 0; }
  int steps_;
  int step_ = 0;
};

// ---------------------------------------------------------------- the report

struct Column {
  std::string key;    // in the file
  std::string title;  // in the table
  std::string unit = "";
  std::string format = "{:.0f}";  // of value / scale
  double scale = 1;
  std::size_t width = 7;  // at least
};
using Value = nlohmann::ordered_json;  // a number or text; a NaN is printed as "-" and kept as null

class Report {
 public:
  Report(std::string name, bool quick) : name_(std::move(name)), quick_(quick) {
    const ra_capabilities capabilities = read_capabilities();
    const std::string engines = capabilities.engines;
    file_["benchmark"] = name_;
    file_["cpu"] = read_cpu_name();
    file_["engine"] = engines.substr(0, engines.find(','));
    file_["threads"] = capabilities.hardware_threads;
    file_["commit"] = read_commit();
    file_["date"] = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
    file_["quick"] = quick_;
    file_["rows"] = nlohmann::ordered_json::array();
    file_["bars"] = nlohmann::ordered_json::array();
    fmt::print("{}: {} threads of {}, engine {}, commit {}{}\n", name_, capabilities.hardware_threads,
               file_["cpu"].get<std::string>(), file_["engine"].get<std::string>(), file_["commit"].get<std::string>(),
               quick_ ? "; quick: fewer and smaller measurements" : "");
  }

  bool quick() const { return quick_; }

  void note(const std::string& text) const {
    Progress::wipe();
    fmt::print("{}\n", text);
  }

  void begin_table(const std::string& title, std::vector<Column> columns) {
    Progress::wipe();
    table_ = title;
    columns_ = std::move(columns);
    fmt::print("\n{}\n", title);
    print_line([](const Column& c) { return c.title; });
    if (std::any_of(columns_.begin(), columns_.end(), [](const Column& c) { return !c.unit.empty(); }))
      print_line([](const Column& c) { return c.unit; });
  }

  void add_row(const std::vector<Value>& values) {
    if (values.size() != columns_.size()) throw std::logic_error("a row must have a value for each column");
    nlohmann::ordered_json row{{"table", table_}};
    std::size_t i = 0;
    print_line([&](const Column& c) {
      const Value& value = values[i++];
      row[c.key] = value;
      if (value.is_string()) return value.get<std::string>();
      const double number = value.get<double>();
      return number != number ? std::string("-") : fmt::format(fmt::runtime(c.format), number / c.scale);
    });
    file_["rows"].push_back(row);
  }

  // `relation` is "<=", "<" or ">=".
  void add_bar(const std::string& name, double value, const std::string& relation, double bar) {
    const bool holds = relation == "<=" ? value <= bar : relation == "<" ? value < bar : value >= bar;
    file_["bars"].push_back({{"name", name}, {"value", value}, {"relation", relation}, {"bar", bar}, {"holds", holds}});
  }

  // Prints the bars and writes the file. Whether every bar holds.
  bool finish(const std::filesystem::path& output) {
    Progress::wipe();
    const auto& bars = file_["bars"];
    std::size_t width = 0;
    for (const auto& bar : bars) width = std::max(width, bar["name"].get<std::string>().size());
    bool all_hold = true;
    fmt::print("\nbars\n");
    for (const auto& bar : bars) {
      const bool holds = bar["holds"].get<bool>();
      fmt::print("  {:<{}}  {:>9.3f}  {:>2} {:<5}  {}\n", bar["name"].get<std::string>(), width,
                 bar["value"].get<double>(), bar["relation"].get<std::string>(), bar["bar"].get<double>(),
                 holds ? "holds" : "DOES NOT HOLD");
      all_hold = all_hold && holds;
    }
    std::filesystem::create_directories(output);
    const std::filesystem::path path = output / (name_ + ".json");
    std::ofstream file(path);
    file << file_.dump(2) << '\n';
    if (!file.flush()) throw std::runtime_error("cannot write " + path.string());
    fmt::print("\nwritten: {}\n", path.string());
    return all_hold;
  }

 private:
  template <class CellOf>
  void print_line(CellOf&& cell_of) const {
    Progress::wipe();
    for (const Column& c : columns_)
      fmt::print("  {:>{}}", cell_of(c), std::max({c.title.size(), c.unit.size(), c.width}));
    fmt::print("\n");
    std::fflush(stdout);
  }

  std::string name_;
  bool quick_;
  nlohmann::ordered_json file_;
  std::string table_;
  std::vector<Column> columns_;
};

// The main function of a benchmark. `add_options` adds its own options to --quick and --output.
inline int run_benchmark(int argc, char** argv, const std::string& name, const std::string& description,
                         const std::function<void(CLI::App&)>& add_options, const std::function<void(Report&)>& body) {
  CLI::App app(description);
  bool quick = false;
  std::string output = "build/bench";
  app.add_flag("--quick", quick, "fewer and smaller measurements, within a minute");
  app.add_option("--output", output, "folder of " + name + ".json")->capture_default_str();
  if (add_options) add_options(app);
  CLI11_PARSE(app, argc, argv);
  try {
    Report report(name, quick);
    body(report);
    return report.finish(output) ? 0 : 1;
  } catch (const std::exception& exception) {
    Progress::wipe();
    fmt::print(stderr, "bench_{}: {}\n", name, exception.what());
    return 2;
  }
}

}  // namespace ringattn::benchmark
