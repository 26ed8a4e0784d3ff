package dev.ringattn;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.Random;
import java.util.function.Function;
import org.junit.jupiter.api.Test;

/**
 * Conversions, against the definition: the value is the nearest of all, and of two the even one.
 */
class NumbersTest {
  private interface ToShort {
    short of(float value);
  }

  private static void check(ToShort round, Function<Short, Float> exact, int infinity) {
    for (int i = 0; i < 1 << 16; ++i) {
      short bits = (short) i;
      float value = exact.apply(bits);
      if (Float.isNaN(value)) {
        assertEquals(Float.NaN, exact.apply(round.of(value)));
      } else {
        assertEquals(bits, round.of(value));
      }
    }
    long seed = System.nanoTime();
    Random random = new Random(seed);
    for (int n = 0; n < 200_000; ++n) {
      int i = random.nextInt(infinity); // neighbours i and i + 1, and what is between them
      double low = exact.apply((short) i);
      double high =
          i + 1 == infinity ? 2 * low - exact.apply((short) (i - 1)) : exact.apply((short) (i + 1));
      float middle = (float) ((low + high) / 2);
      int even = (i & 1) == 0 ? i : i + 1;
      String what = "of " + i + ", seed " + seed;
      assertEquals((short) even, round.of(middle), what);
      assertEquals((short) i, round.of(Math.nextDown(middle)), what);
      assertEquals((short) (i + 1), round.of(Math.nextUp(middle)), what);
      assertEquals((short) (even | 0x8000), round.of(-middle), what);
    }
  }

  @Test
  void roundsToBFloat16() {
    check(BFloat16::fromFloat, BFloat16::toFloat, 0x7F80);
    assertEquals(Float.NaN, BFloat16.toFloat(BFloat16.fromFloat(Float.intBitsToFloat(0x7F800001))));
  }

  @Test
  void roundsToFloat16() {
    check(Float16::fromFloat, Float16::toFloat, 0x7C00);
    assertEquals(Float.NaN, Float16.toFloat(Float16.fromFloat(Float.intBitsToFloat(0x7F800001))));
    assertEquals(Float.POSITIVE_INFINITY, Float16.toFloat(Float16.fromFloat(Float.MAX_VALUE)));
    assertEquals(65504f, Float16.toFloat((short) 0x7BFF));
    assertEquals(0x1p-24f, Float16.toFloat((short) 1));
  }
}
