// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

/** What the backward pass differentiates. */
public enum DilationGradient {
  /** The result. */
  EXACT(0),
  /**
   * As torchscale: each branch by itself, and the weights by which branches are combined are taken
   * for constants. Not the gradient of the result, where a row has several branches; dsinks is.
   */
  CONSTANT_WEIGHTS(1);

  private final int value;

  DilationGradient(int value) {
    this.value = value;
  }

  /** The value of the C constant. */
  public int value() {
    return value;
  }

  static DilationGradient of(int value) {
    for (DilationGradient constant : values()) {
      if (constant.value == value) {
        return constant;
      }
    }
    throw new IllegalArgumentException("no DilationGradient has value " + value);
  }
}
