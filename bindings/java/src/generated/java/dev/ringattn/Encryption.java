// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

/** Whether what ranks of Transport.ZEROMQ send each other over TCP can be read on the way. */
public enum Encryption {
  /** Encrypted and authenticated. */
  ON(0),
  /** Authenticated only: whoever listens reads it, but nobody can change it unnoticed. */
  OFF(1);

  private final int value;

  Encryption(int value) {
    this.value = value;
  }

  /** The value of the C constant. */
  public int value() {
    return value;
  }

  static Encryption of(int value) {
    for (Encryption constant : values()) {
      if (constant.value == value) {
        return constant;
      }
    }
    throw new IllegalArgumentException("no Encryption has value " + value);
  }
}
