// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

/** Which of the two sequences of a cross-attention a function speaks of. */
public enum Side {
  QUERY(0),
  KEY_VALUE(1);

  private final int value;

  Side(int value) {
    this.value = value;
  }

  /** The value of the C constant. */
  public int value() {
    return value;
  }

  static Side of(int value) {
    for (Side constant : values()) {
      if (constant.value == value) {
        return constant;
      }
    }
    throw new IllegalArgumentException("no Side has value " + value);
  }
}
