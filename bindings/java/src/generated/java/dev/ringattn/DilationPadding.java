// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

/**
 * What a head has in a segment where it keeps fewer positions than other heads, or than in other
 * segments of its branch.
 */
public enum DilationPadding {
  /** Nothing. */
  MASKED(0),
  /**
   * What torchscale pads with: keys with score 0 and value 0, so many that each head keeps ceil(g /
   * r) in every segment of g positions, those counted that kvLengths hides; for full masks only.
   * Rows of that segment get smaller outputs and a larger lse for it, also those that see no other
   * key, and longer sequences other results for the same tokens.
   */
  ZERO_KEYS(1);

  private final int value;

  DilationPadding(int value) {
    this.value = value;
  }

  /** The value of the C constant. */
  public int value() {
    return value;
  }

  static DilationPadding of(int value) {
    for (DilationPadding constant : values()) {
      if (constant.value == value) {
        return constant;
      }
    }
    throw new IllegalArgumentException("no DilationPadding has value " + value);
  }
}
