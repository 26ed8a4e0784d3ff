package dev.ringattn.internal;

import static org.junit.jupiter.api.Assertions.assertEquals;

import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Which libraries go with classes that were generated from which header. */
class VersionTest {
  @ParameterizedTest
  @CsvSource({
    "0, 1, 0, 100, true",
    "0, 1, 2, 103, true",
    "0, 1, 2, 101, false",
    "0, 1, 0, 200, false",
    "0, 2, 0, 199, false",
    "0, 9, 0, 10900, false",
    "1, 0, 0, 900, false",
    "1, 2, 3, 10203, true",
    "1, 2, 3, 10300, true",
    "1, 2, 3, 10202, false",
    "1, 2, 3, 20000, false",
  })
  void matches(int major, int minor, int patch, int version, boolean isGood) {
    String refusal = Loader.refusal(version, major, minor, patch);
    assertEquals(isGood, refusal == null, refusal);
    if (!isGood) {
      String theirs = version / 10000 + "." + version / 100 % 100 + "." + version % 100;
      String both =
          "libringattn is version %s; these classes need %d.%d.%d or a newer one that is"
              + " compatible";
      assertEquals(String.format(both, theirs, major, minor, patch), refusal);
    }
  }
}
