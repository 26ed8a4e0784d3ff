// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

/**
 * Which query and key face each other where their lengths differ: the diagonal of causal masks and
 * of windows.
 */
public enum MaskAlignment {
  /** Query i faces key i. */
  TOP_LEFT(0),
  /** Query i faces key i + seqlenKv - seqlenQ; inside each document, its lengths. */
  BOTTOM_RIGHT(1);

  private final int value;

  MaskAlignment(int value) {
    this.value = value;
  }

  /** The value of the C constant. */
  public int value() {
    return value;
  }

  static MaskAlignment of(int value) {
    for (MaskAlignment constant : values()) {
      if (constant.value == value) {
        return constant;
      }
    }
    throw new IllegalArgumentException("no MaskAlignment has value " + value);
  }
}
