// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

/** Strides that are not a distance. */
public enum Stride {
  /** All three: each follows from the sizes. */
  PACKED(0),
  /** One slice again and again, as in a tensor that is broadcast; of inputs only. */
  REPEAT(-1);

  private final int value;

  Stride(int value) {
    this.value = value;
  }

  /** The value of the C constant. */
  public int value() {
    return value;
  }

  static Stride of(int value) {
    for (Stride constant : values()) {
      if (constant.value == value) {
        return constant;
      }
    }
    throw new IllegalArgumentException("no Stride has value " + value);
  }
}
