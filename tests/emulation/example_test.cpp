// examples/02_gpu_ring, compiled as C++, on emulated GPUs: ranks that are threads of one program, and ranks that are programs, here
// threads, and find each other through a file.
#include <unistd.h>

#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "emulation/program.h"

int example_main(int argc, char** argv);  // main.c

namespace ringattn::test {
namespace {

int run_example(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "example");
  for (const char* more : {"--tokens", "100", "--heads", "2", "--heads-kv", "1", "--head-dim", "16", "--repeats", "2"})
    arguments.push_back(more);
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  return example_main(static_cast<int>(pointers.size()), pointers.data());
}

void expect_clean() {
  expect_no_violations();
  EXPECT_EQ(emulation::live_objects(), std::vector<std::string>{});
}

TEST(Example, ThreadsOnOneDeviceAndOnSeveral) {
  const std::uint64_t first = seed();
  for (const int devices : {1, 3}) {
    emulation::reset({.devices = devices, .seed = first});
    EXPECT_EQ(run_example({"--ranks", "3"}), 0);
    expect_clean();
  }
}

TEST(Example, ProcessesOverNccl) {
  constexpr int size = 3;
  emulation::reset({.devices = size, .seed = seed()});
  const std::filesystem::path id =
      std::filesystem::temp_directory_path() / ("ringattn_example_" + std::to_string(getpid()));
  std::vector<int> status(size, -1);
  std::vector<std::thread> processes;
  for (std::size_t r = 0; r < size; ++r)
    processes.emplace_back([&, r] {
      status[r] =
          run_example({"--transport", "nccl", "--ranks", "3", "--rank", std::to_string(r), "--id", id.string()});
    });
  for (std::thread& process : processes) process.join();
  std::filesystem::remove(id);
  EXPECT_EQ(status, std::vector<int>(size, 0));
  expect_clean();
}

}  // namespace
}  // namespace ringattn::test
