// ringattn-info: what libringattn can do on this machine, and why not what it cannot. The first thing to run when something is wrong.
//
//   ringattn-info           versions, engines, backends and transports
//   ringattn-info --check   runs the self-test too, in this process and in rings of two processes
//
// It asks the library through its public API only. Exit status: 0, or 1 if a check fails, or 2 if it is not called as above.
#include <ringattn/ringattn.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

extern char** environ;

namespace {

constexpr int num_problems = 50;
constexpr int timeout_ms = 20'000;

using Context = std::unique_ptr<ra_context, void (*)(ra_context*)>;

ra_context_config make_config() {
  ra_context_config config;
  ra_init_context_config(&config, sizeof config);
  config.timeout_ms = timeout_ms;
  return config;
}

Context make_context(const ra_context_config& config, ra_error& error) {
  return {ra_create_context(&config, &error), ra_destroy_context};
}

// ---------------------------------------------------------------- what there is

void print(const char* what, const char* refusal) {
  std::printf("%-18s %s%s\n", what, *refusal == '\0' ? "yes" : "no: ", refusal);
}

void print_transport(const char* name, int transport) {
  ra_unique_id id;
  ra_error error;
  ra_create_unique_id(&id, transport, nullptr, &error);
  print(name, error.message);
}

// Layers of multi-head attention.
void print_layers(const char* what, const ra_context_config& config) {
  ra_error error;
  const Context context = make_context(config, error);
  if (context == nullptr) return print(what, error.message);
  ra_attention_desc desc;
  ra_init_attention_desc(&desc, sizeof desc);
  desc.seqlen_q = 1;
  desc.head_dim = 1;
  ra_mha_desc mha;
  ra_init_mha_desc(&mha, sizeof mha);
  mha.d_model = 1;
  ra_mha_requirements requirements;
  ra_init_mha_requirements(&requirements, sizeof requirements);
  ra_get_mha_requirements(context.get(), &desc, &mha, &requirements, &error);
  print(what, error.message);
}

int describe() {
  ra_capabilities capabilities;
  ra_init_capabilities(&capabilities, sizeof capabilities);
  ra_error error;
  if (ra_get_capabilities(&capabilities, &error) != RA_STATUS_SUCCESS) {
    std::printf("ra_get_capabilities: %s\n", error.message);
    return 1;
  }
  const int version = capabilities.version;
  std::printf("%-18s %d.%d.%d\n", "libringattn", version / 10'000, version / 100 % 100, version % 100);
  std::printf("%-18s %d\n", "processors", capabilities.hardware_threads);
  std::printf("%-18s %s\n", "engines", capabilities.engines);
  std::printf("%-18s %d\n", "CUDA devices", capabilities.num_devices);

  ra_context_config config = make_config();
  print("backend cpu", make_context(config, error) == nullptr ? error.message : "");
  print_layers("layers cpu", config);
  config.backend = RA_BACKEND_CUDA;
  print("backend cuda", make_context(config, error) == nullptr ? error.message : "");
  if (capabilities.has_cuda != 0) print_layers("layers cuda", config);
  print_transport("transport local", RA_TRANSPORT_LOCAL);
  print_transport("transport zeromq", RA_TRANSPORT_ZEROMQ);
  print_transport("transport nccl", RA_TRANSPORT_NCCL);
  return 0;
}

// ---------------------------------------------------------------- whether it works

bool pass_self_test(const ra_context_config& config) {
  ra_error error;
  const Context context = make_context(config, error);
  if (context != nullptr && ra_run_self_test(context.get(), num_problems, 1, &error) == RA_STATUS_SUCCESS) return true;
  std::fprintf(stderr, "rank %d: %s: %s\n", config.rank, ra_get_status_name(error.status), error.message);
  return false;
}

// One of two processes; the id comes by the standard input, since arguments are there for all users to read.
int be_rank(const char* rank, const char* address) {
  std::array<char, sizeof(ra_unique_id::text)> id{};
  if (std::fgets(id.data(), id.size(), stdin) == nullptr) return 2;
  ra_context_config config = make_config();
  config.rank = std::atoi(rank);
  config.world_size = 2;
  config.num_threads = 1;
  config.transport = RA_TRANSPORT_ZEROMQ;
  config.unique_id = id.data();
  if (*address != '\0') config.bind_address = address;
  return pass_self_test(config) ? 0 : 1;
}

bool pass_ring(const char* address) {
  ra_unique_id id;
  ra_error error;
  if (ra_create_unique_id(&id, RA_TRANSPORT_ZEROMQ, nullptr, &error) != RA_STATUS_SUCCESS) return false;
  std::array<pid_t, 2> ranks{-1, -1};
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    std::array<int, 2> way{-1, -1};
    if (pipe(way.data()) != 0) return false;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, way[0], STDIN_FILENO);
    posix_spawn_file_actions_addclose(&actions, way[1]);
    std::string program = "/proc/self/exe", option = "--rank", number = std::to_string(rank), where = address;
    char* arguments[] = {program.data(), option.data(), number.data(), where.data(), nullptr};
    const bool is_started = posix_spawn(&ranks[rank], program.c_str(), &actions, nullptr, arguments, environ) == 0;
    posix_spawn_file_actions_destroy(&actions);
    const auto length = static_cast<ssize_t>(std::strlen(id.text));
    const bool is_told = is_started && write(way[1], id.text, std::strlen(id.text)) == length;
    close(way[0]);
    close(way[1]);
    if (!is_told) std::fprintf(stderr, "cannot start rank %zu\n", rank);
  }
  bool passes = true;
  for (const pid_t rank : ranks) {
    int status = 1;
    passes = rank > 0 && waitpid(rank, &status, 0) == rank && status == 0 && passes;
  }
  return passes;
}

template <class F>
bool check(const char* what, F&& passes) {
  std::printf("%-46s ", what);
  std::fflush(stdout);
  const auto begin = std::chrono::steady_clock::now();
  const bool passed = passes();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::printf("%s (%.1f s)\n", passed ? "passes" : "FAILS", seconds);
  return passed;
}

int check_all() {
  ra_unique_id id;
  std::printf("\n");
  bool passes = check("self-test in one process", [] { return pass_self_test(make_config()); });
  if (ra_create_unique_id(&id, RA_TRANSPORT_ZEROMQ, nullptr, nullptr) == RA_STATUS_SUCCESS) {
    passes &= check("self-test in two processes, Unix sockets", [] { return pass_ring(""); });
    passes &= check("self-test in two processes, TCP over loopback", [] { return pass_ring("127.0.0.1"); });
  }
  return passes ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string option = argc > 1 ? argv[1] : "";
  if (argc == 4 && option == "--rank") return be_rank(argv[2], argv[3]);
  if (argc > 2 || (argc == 2 && option != "--check")) {
    std::fprintf(stderr, "usage: ringattn-info [--check]\n");
    return 2;
  }
  const int status = describe();
  return status == 0 && option == "--check" ? check_all() : status;
}
