// The only file of the benchmarks that is compiled with the libraries for JSON and command lines: they take longer than all else.
#include "benchmark/report.h"

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
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <type_traits>
#include <utility>

namespace ringattn::benchmark {
namespace {

std::string read_cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(std::min(line.find(": ") + 2, line.size()));
  }
  utsname machine{};
  return uname(&machine) == 0 ? machine.machine : "unknown";
}

// Of the environment's RINGATTN_COMMIT, or of the working directory.
std::string read_commit() {
  if (const char* commit = std::getenv("RINGATTN_COMMIT")) return commit;
  std::string commit;
  if (FILE* git = popen("git rev-parse --short HEAD 2>/dev/null", "r")) {
    for (int c = std::fgetc(git); c != EOF && c != '\n'; c = std::fgetc(git)) commit += static_cast<char>(c);
    if (pclose(git) != 0) commit.clear();
  }
  return commit.empty() ? "unknown" : commit;
}

bool terminal() { return isatty(STDERR_FILENO) != 0; }

}  // namespace

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

void check(ra_status status, const ra_error& error) {
  if (status != RA_STATUS_SUCCESS)
    throw std::runtime_error(fmt::format("{}: {}", ra_get_status_name(status), error.message));
}

ra_capabilities read_capabilities() {
  ra_capabilities capabilities;
  ra_init_capabilities(&capabilities, sizeof capabilities);
  ra_error error;
  check(ra_get_capabilities(&capabilities, &error), error);
  return capabilities;
}

// ---------------------------------------------------------------- while it runs

void Progress::begin_step(const std::string& what) {
  ++step_;
  update_step(what);
}

void Progress::update_step(const std::string& what) const {
  if (!terminal()) return;
  fmt::print(stderr, "\r\033[K[{:>3} / {}]  {}", step_, steps_, what);
  std::fflush(stderr);
}

void Progress::wipe() {
  if (terminal()) fmt::print(stderr, "\r\033[K");
}

// ---------------------------------------------------------------- the report

struct Report::Contents {
  std::string name;
  bool quick;
  nlohmann::ordered_json file;
  std::string table;
  std::vector<Column> columns;

  template <class CellOf>
  void print_line(CellOf&& cell_of) const {
    Progress::wipe();
    for (const Column& c : columns)
      fmt::print("  {:>{}}", cell_of(c), std::max({c.title.size(), c.unit.size(), c.width}));
    fmt::print("\n");
    std::fflush(stdout);
  }
};

Report::Report(const std::string& name, bool quick)
    : contents_(std::make_unique<Contents>(Contents{name, quick, {}, {}, {}})) {
  nlohmann::ordered_json& file = contents_->file;
  const ra_capabilities capabilities = read_capabilities();
  const std::string engines = capabilities.engines;
  file["benchmark"] = name;
  file["cpu"] = read_cpu_name();
  file["engine"] = engines.substr(0, engines.find(','));
  file["threads"] = capabilities.hardware_threads;
  file["commit"] = read_commit();
  file["date"] = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
  file["quick"] = quick;
  file["rows"] = nlohmann::ordered_json::array();
  file["bars"] = nlohmann::ordered_json::array();
  fmt::print("{}: {} threads of {}, engine {}, commit {}{}\n", name, capabilities.hardware_threads,
             file["cpu"].get<std::string>(), file["engine"].get<std::string>(), file["commit"].get<std::string>(),
             quick ? "; quick: fewer and smaller measurements" : "");
}

Report::~Report() = default;

bool Report::quick() const { return contents_->quick; }

void Report::note(const std::string& text) const {
  Progress::wipe();
  fmt::print("{}\n", text);
}

void Report::begin_table(const std::string& title, std::vector<Column> columns) {
  Progress::wipe();
  contents_->table = title;
  contents_->columns = std::move(columns);
  fmt::print("\n{}\n", title);
  contents_->print_line([](const Column& c) { return c.title; });
  if (std::any_of(contents_->columns.begin(), contents_->columns.end(),
                  [](const Column& c) { return !c.unit.empty(); }))
    contents_->print_line([](const Column& c) { return c.unit; });
}

void Report::add_row(const std::vector<Value>& values) {
  if (values.size() != contents_->columns.size()) throw std::logic_error("a row must have a value for each column");
  nlohmann::ordered_json row{{"table", contents_->table}};
  std::size_t i = 0;
  contents_->print_line([&](const Column& c) {
    const Value& value = values[i++];
    if (const std::string* const text = std::get_if<std::string>(&value)) {
      row[c.key] = *text;
      return *text;
    }
    const double number = std::get<double>(value);
    row[c.key] = number;
    return number != number ? std::string("-") : fmt::format(fmt::runtime(c.format), number / c.scale);
  });
  contents_->file["rows"].push_back(row);
}

void Report::add_bar(const std::string& name, double value, const std::string& relation, double bar) {
  const bool holds = relation == "<=" ? value <= bar : relation == "<" ? value < bar : value >= bar;
  contents_->file["bars"].push_back(
      {{"name", name}, {"value", value}, {"relation", relation}, {"bar", bar}, {"holds", holds}});
}

bool Report::finish(const std::string& output) {
  Progress::wipe();
  const auto& bars = contents_->file["bars"];
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
  const std::filesystem::path path = std::filesystem::path(output) / (contents_->name + ".json");
  std::ofstream file(path);
  file << contents_->file.dump(2) << '\n';
  if (!file.flush()) throw std::runtime_error("cannot write " + path.string());
  fmt::print("\nwritten: {}\n", path.string());
  return all_hold;
}

// ---------------------------------------------------------------- the program

int run_benchmark(int argc, char** argv, const std::string& name, const std::string& description,
                  const std::vector<Option>& options, const std::function<void(Report&)>& body) {
  CLI::App app(description);
  bool quick = false;
  std::string output = "build/bench";
  app.add_flag("--quick", quick, "fewer and smaller measurements, within a minute");
  app.add_option("--output", output, "folder of " + name + ".json")->capture_default_str();
  for (const Option& option : options)
    std::visit(
        [&](auto* variable) {
          if constexpr (std::is_same_v<decltype(variable), bool*>)
            app.add_flag(option.name, *variable, option.help);
          else
            app.add_option(option.name, *variable, option.help);
        },
        option.variable);
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
