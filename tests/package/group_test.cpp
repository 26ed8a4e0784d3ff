// The group of ranks that the examples in C++ share.
#include "../../examples/01_long_context/c/group.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <string>

namespace {

// A rank that fails does not leave the others waiting for it until their time-out, and what it threw is what one gets to know.
TEST(ExampleGroup, LetsTheOthersGo) {
  const Group group(3);
  ra_attention_desc desc;
  ra_init_attention_desc(&desc, sizeof desc);
  desc.seqlen_q = 30;
  desc.head_dim = 8;
  const auto begin = std::chrono::steady_clock::now();
  std::string message;
  try {
    group.on_every_rank([&](int32_t rank, ra_context* context) {
      std::vector<float> tensor(10 * 8), out(10 * 8);
      ra_forward_args args;
      ra_init_forward_args(&args, sizeof args);
      args.q.data = args.k.data = args.v.data = tensor.data();
      args.out.data = rank == 2 ? nullptr : out.data();
      ra_error error;
      check(ra_forward(context, &desc, &args, &error), error);
    });
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  EXPECT_EQ(message.substr(0, message.find(';')), "INVALID_ARGUMENT: out.data is NULL");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::minutes(1));
}

}  // namespace
