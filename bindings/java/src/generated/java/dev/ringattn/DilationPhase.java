// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

/**
 * Which positions of a segment a query head keeps in a branch of dilation r: those whose place in
 * it, mod r, is its phase.
 */
public enum DilationPhase {
  /** Of query head h: floor(h / ceil(numHeadsQ / r)), as in torchscale's code. */
  BLOCKS_OF_HEADS(0),
  /** Of query head h: h mod r, as in the LongNet paper. */
  INTERLEAVED_HEADS(1);

  private final int value;

  DilationPhase(int value) {
    this.value = value;
  }

  /** The value of the C constant. */
  public int value() {
    return value;
  }

  static DilationPhase of(int value) {
    for (DilationPhase constant : values()) {
      if (constant.value == value) {
        return constant;
      }
    }
    throw new IllegalArgumentException("no DilationPhase has value " + value);
  }
}
