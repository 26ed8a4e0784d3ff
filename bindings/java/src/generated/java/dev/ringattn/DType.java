// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

/** Element type of a tensor. */
public enum DType {
  /** For output types only: the inputs' type. */
  SAME(0),
  FLOAT32(1),
  BFLOAT16(2),
  FLOAT16(3);

  private final int value;

  DType(int value) {
    this.value = value;
  }

  /** The value of the C constant. */
  public int value() {
    return value;
  }

  static DType of(int value) {
    for (DType constant : values()) {
      if (constant.value == value) {
        return constant;
      }
    }
    throw new IllegalArgumentException("no DType has value " + value);
  }
}
