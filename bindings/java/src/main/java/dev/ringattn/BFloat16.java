package dev.ringattn;

/** Numbers of DType.BFLOAT16, as shorts: the upper half of a float. */
public final class BFloat16 {
  private BFloat16() {}

  /** The nearest, ties to even; NaN stays NaN. */
  public static short fromFloat(float value) {
    int bits = Float.floatToRawIntBits(value);
    if (Float.isNaN(value)) {
      return (short) (bits >>> 16 | 0x40); // quiet, so that a NaN is left of it
    }
    return (short) (bits + 0x7FFF + (bits >>> 16 & 1) >>> 16);
  }

  /** Exactly. */
  public static float toFloat(short value) {
    return Float.intBitsToFloat(value << 16);
  }
}
