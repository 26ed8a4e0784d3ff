// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

/**
 * Which pairs of its rectangle a mask slice has: query i of q_begin .. q_end - 1, key j of kv_begin
 * .. kv_end - 1.
 */
public enum MaskSliceKind {
  /** All. */
  FULL(0),
  /** J - kv_end &lt;= i - q_end: the last query faces the last key, and sees none behind. */
  CAUSAL(1),
  /** J - kv_begin &gt;= i - q_begin: the first query faces the first key, and sees none before. */
  INVERSE_CAUSAL(2),
  /**
   * What both CAUSAL and INVERSE_CAUSAL have: a band, or nothing where there are more queries than
   * keys.
   */
  BIDIRECTIONAL_CAUSAL(3);

  private final int value;

  MaskSliceKind(int value) {
    this.value = value;
  }

  /** The value of the C constant. */
  public int value() {
    return value;
  }

  static MaskSliceKind of(int value) {
    for (MaskSliceKind constant : values()) {
      if (constant.value == value) {
        return constant;
      }
    }
    throw new IllegalArgumentException("no MaskSliceKind has value " + value);
  }
}
