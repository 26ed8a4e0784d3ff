// What is said where cuBLAS cannot be used, with stand-ins for it in STAND_INS (cublas_stand_in.c). What was found once stays, so the test
// that finds one is the last.
#include "engine/cuda/cublas_library.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "core/error.h"

namespace ringattn::cuda {
namespace {

const std::string stand_ins = STAND_INS;

void expect_missing(const std::string& file, const std::vector<std::string>& parts) {
  setenv("RINGATTN_CUBLAS_LIBRARY", file.c_str(), 1);
  try {
    cublas_functions();
    ADD_FAILURE() << "there is one";
  } catch (const Error& error) {
    EXPECT_EQ(error.status, RA_STATUS_NOT_SUPPORTED);
    for (const std::string& part : parts)
      EXPECT_NE(error.message.find(part), std::string::npos) << part << " in: " << error.message;
  }
}

TEST(CublasLibrary, IsNotThere) {
  expect_missing("/no/such/place/libcublas.so.13",
                 {"/no/such/place/libcublas.so.13: ", "named by RINGATTN_CUBLAS_LIBRARY"});
  expect_missing("libcublas-of-no-place.so", {"libcublas-of-no-place.so: ", "looked in ", "cache of ldconfig"});
}
TEST(CublasLibrary, IsNoLibrary) { expect_missing(stand_ins + "/broken", {stand_ins + "/broken: file too short"}); }
TEST(CublasLibrary, LacksAFunction) {
  expect_missing(stand_ins + "/partial_cublas", {stand_ins + "/partial_cublas has no function cublasGemmEx_64"});
}
TEST(CublasLibrary, ZIsFoundWhereItIsNamed) {
  setenv("RINGATTN_CUBLAS_LIBRARY", (stand_ins + "/cublas").c_str(), 1);
  EXPECT_EQ(cublas_functions().cublasCreate_v2(nullptr), CublasStatus::success);
  setenv("RINGATTN_CUBLAS_LIBRARY", "/no/such/place", 1);
  EXPECT_EQ(&cublas_functions(), &cublas_functions());
}

}  // namespace
}  // namespace ringattn::cuda
