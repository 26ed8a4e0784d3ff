// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

/** Where the arithmetic runs. */
public enum Backend {
  CPU(0),
  CUDA(1),
  /** What a newer library calls something that is not known here. */
  UNKNOWN(-1);

  private final int value;

  Backend(int value) {
    this.value = value;
  }

  /** The value of the C constant. */
  public int value() {
    return value;
  }

  static Backend of(int value) {
    for (Backend constant : values()) {
      if (constant.value == value) {
        return constant;
      }
    }
    return UNKNOWN;
  }
}
