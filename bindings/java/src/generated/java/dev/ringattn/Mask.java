// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

/** Shape of the mask before windows, documents and padding, which all intersect with it. */
public enum Mask {
  FULL(0),
  CAUSAL(1);

  private final int value;

  Mask(int value) {
    this.value = value;
  }

  /** The value of the C constant. */
  public int value() {
    return value;
  }

  static Mask of(int value) {
    for (Mask constant : values()) {
      if (constant.value == value) {
        return constant;
      }
    }
    throw new IllegalArgumentException("no Mask has value " + value);
  }
}
