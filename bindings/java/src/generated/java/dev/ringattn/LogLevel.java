// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

/** Severity of a log message. */
public enum LogLevel {
  DEBUG(0),
  INFO(1),
  WARNING(2),
  /** What a newer library calls something that is not known here. */
  UNKNOWN(-1);

  private final int value;

  LogLevel(int value) {
    this.value = value;
  }

  /** The value of the C constant. */
  public int value() {
    return value;
  }

  static LogLevel of(int value) {
    for (LogLevel constant : values()) {
      if (constant.value == value) {
        return constant;
      }
    }
    return UNKNOWN;
  }
}
