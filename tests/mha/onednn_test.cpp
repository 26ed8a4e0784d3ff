// What is said where oneDNN cannot be used, with stand-ins for it in STAND_INS (onednn_stand_in.c). What was found once stays, so the test
// that finds the real one is the last.
#include "engine/cpu/onednn.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "core/error.h"
#include "support/mha.h"

namespace ringattn::cpu {
namespace {

const std::string stand_ins = STAND_INS;

void expect_refused(const std::string& file, const std::vector<std::string>& parts) {
  setenv("RINGATTN_ONEDNN_LIBRARY", file.c_str(), 1);
  const std::string missing = missing_onednn();
  for (const std::string& part : parts) EXPECT_NE(missing.find(part), std::string::npos) << part << " in: " << missing;

  // A layer says so, and attention goes on without.
  const test::Ranks alone(1);
  test::MhaShard shard(test::make_desc(8), test::make_mha(8), 1, 0);
  test::Error error;
  ra_mha_requirements needs;
  ra_init_mha_requirements(&needs, sizeof needs);
  EXPECT_EQ(ra_get_mha_requirements(alone[0], &shard.desc, &shard.mha, &needs, &error), RA_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(error.text(), missing);
  EXPECT_EQ(shard.forward(alone[0], &error), RA_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(error.text(), missing);
  EXPECT_EQ(test::Shard(test::make_desc(8), 1, 0).forward(alone[0], &error), RA_STATUS_SUCCESS) << error;
  unsetenv("RINGATTN_ONEDNN_LIBRARY");
}

TEST(OneDnn, IsNotThere) {
  expect_refused("/no/such/place/libdnnl.so.2", {"/no/such/place/libdnnl.so.2: ", "named by RINGATTN_ONEDNN_LIBRARY"});
  expect_refused("libdnnl-of-no-place.so.2", {"libdnnl-of-no-place.so.2: ", "looked in ", "cache of ldconfig"});
}
TEST(OneDnn, IsNoLibrary) { expect_refused(stand_ins + "/broken", {stand_ins + "/broken: file too short"}); }
TEST(OneDnn, IsOfAnotherVersion) {
  expect_refused(stand_ins + "/other_onednn", {stand_ins + "/other_onednn is oneDNN 3.1.0; must be 2.x"});
}
TEST(OneDnn, LacksAFunction) {
  expect_refused(stand_ins + "/partial_onednn", {stand_ins + "/partial_onednn has no function dnnl_"});
}
TEST(OneDnn, ZIsFoundWhereItIs) { EXPECT_EQ(missing_onednn(), ""); }

}  // namespace
}  // namespace ringattn::cpu
