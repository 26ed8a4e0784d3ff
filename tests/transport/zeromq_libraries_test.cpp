// What is said where libzmq or libsodium cannot be used, with stand-ins for them in STAND_INS (zeromq_stand_in.c). What was found once
// stays, so the test that finds the real ones is the last.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "core/error.h"
#include "transport/zeromq.h"
#include "transport/zeromq/libraries.h"

namespace ringattn {
namespace {

constexpr char zeromq[] = "RINGATTN_ZEROMQ_LIBRARY", sodium[] = "RINGATTN_SODIUM_LIBRARY";
const std::string stand_ins = STAND_INS;

class Libraries : public testing::Test {
 protected:
  void TearDown() override {
    unsetenv(zeromq);
    unsetenv(sodium);
  }
};

// Loading what `variable` names as `file` is refused, with these words. The other library is kept from being found, and so from staying.
void expect_refused(const char* variable, const std::string& file, const std::vector<std::string>& parts) {
  setenv(zeromq, "/no/such/libzmq", 1);
  setenv(sodium, "/no/such/libsodium", 1);
  setenv(variable, file.c_str(), 1);
  const std::string missing = missing_zeromq();
  try {
    variable == zeromq ? static_cast<void>(zeromq_library()) : static_cast<void>(sodium_library());
    FAIL() << file << " is taken for a library that can be used";
  } catch (const Error& error) {
    EXPECT_EQ(error.status, RA_STATUS_NOT_SUPPORTED);
    EXPECT_NE(missing.find(error.message), std::string::npos) << error.message << " in: " << missing;
    for (const std::string& part : parts)
      EXPECT_NE(error.message.find(part), std::string::npos) << part << " in: " << error.message;
  }
}

TEST_F(Libraries, NoZeromqThere) {
  expect_refused(zeromq, "/no/such/place/libzmq.so.5",
                 {"/no/such/place/libzmq.so.5: ", "named by RINGATTN_ZEROMQ_LIBRARY"});
  expect_refused(zeromq, "libzmq-of-no-place.so.5", {"libzmq-of-no-place.so.5: ", "looked in ", "cache of ldconfig"});
}
TEST_F(Libraries, NoLibraryAsZeromq) {
  expect_refused(zeromq, stand_ins + "/broken", {stand_ins + "/broken: file too short"});
}
TEST_F(Libraries, OldZeromq) {
  expect_refused(zeromq, stand_ins + "/old_zeromq",
                 {stand_ins + "/old_zeromq is ZeroMQ 4.2.5; must be 4.3.0 or newer"});
}
TEST_F(Libraries, ZeromqWithoutCurve) {
  expect_refused(zeromq, stand_ins + "/zeromq_without_curve",
                 {stand_ins + "/zeromq_without_curve was built without CURVE"});
}
TEST_F(Libraries, PartialZeromq) {
  expect_refused(zeromq, stand_ins + "/partial_zeromq", {stand_ins + "/partial_zeromq has no function zmq_"});
}

TEST_F(Libraries, BothMissing) {
  setenv(zeromq, "/no/such/libzmq", 1);
  setenv(sodium, "/no/such/libsodium", 1);
  const std::string missing = missing_zeromq();
  EXPECT_EQ(missing.find("/no/such/libzmq: "), 0u) << missing;
  EXPECT_NE(missing.find("(named by RINGATTN_ZEROMQ_LIBRARY); and /no/such/libsodium: "), std::string::npos) << missing;
}

TEST_F(Libraries, NoSodiumThere) {
  expect_refused(sodium, "/no/such/place/libsodium.so.23",
                 {"/no/such/place/libsodium.so.23: ", "named by RINGATTN_SODIUM_LIBRARY"});
}
TEST_F(Libraries, NoLibraryAsSodium) {
  expect_refused(sodium, stand_ins + "/broken", {stand_ins + "/broken: file too short"});
}
TEST_F(Libraries, PartialSodium) {
  expect_refused(sodium, stand_ins + "/partial_sodium", {stand_ins + "/partial_sodium has no function "});
}
TEST_F(Libraries, SodiumThatDoesNotStart) {
  expect_refused(sodium, stand_ins + "/sodium_that_fails", {stand_ins + "/sodium_that_fails fails in sodium_init"});
}

TEST_F(Libraries, RealOnes) {
  EXPECT_EQ(missing_zeromq(), "");
  setenv(zeromq, "/no/such/libzmq", 1);
  EXPECT_EQ(missing_zeromq(), "") << "what was found is kept";
  int major = 0, minor = 0, patch = 0;
  zeromq_library().zmq_version(&major, &minor, &patch);
  EXPECT_GE(ZMQ_MAKE_VERSION(major, minor, patch), oldest_zeromq);
}

}  // namespace
}  // namespace ringattn
