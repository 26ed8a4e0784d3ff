package dev.ringattn;

/** Numbers of DType.FLOAT16, IEEE 754 binary16, as shorts. */
public final class Float16 {
  private static final int EXPONENT_BIAS_DIFFERENCE = 127 - 15;
  private static final float SMALLEST_SUBNORMAL = 0x1p-24f;

  private Float16() {}

  /** The nearest, ties to even; infinite beyond 65504 and what rounds to it; NaN stays NaN. */
  public static short fromFloat(float value) {
    int bits = Float.floatToRawIntBits(value);
    int sign = bits >>> 16 & 0x8000;
    float magnitude = Math.abs(value);
    if (Float.isNaN(value)) {
      return (short) (sign | 0x7E00 | bits >>> 13 & 0x1FF);
    }
    if (magnitude >= 65520) {
      return (short) (sign | 0x7C00);
    }
    if (magnitude < 0x1p-14f) { // subnormal: a multiple of 2^-24, which rint finds, ties to even
      return (short) (sign | (int) Math.rint((double) magnitude / SMALLEST_SUBNORMAL));
    }
    int rounded = (bits & 0x7FFFFFFF) + 0xFFF + (bits >>> 13 & 1);
    return (short) (sign | (rounded >>> 13) - (EXPONENT_BIAS_DIFFERENCE << 10));
  }

  /** Exactly. */
  public static float toFloat(short value) {
    int sign = (value & 0x8000) << 16;
    int exponent = value >>> 10 & 0x1F;
    int fraction = value & 0x3FF;
    if (exponent == 0) {
      float magnitude = fraction * SMALLEST_SUBNORMAL;
      return Float.intBitsToFloat(sign | Float.floatToRawIntBits(magnitude));
    }
    int wide = exponent == 0x1F ? 0xFF : exponent + EXPONENT_BIAS_DIFFERENCE;
    return Float.intBitsToFloat(sign | wide << 23 | fraction << 13);
  }
}
