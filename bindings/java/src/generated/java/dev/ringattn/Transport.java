// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

/** What carries chunks of K and V between ranks. */
public enum Transport {
  /**
   * Ranks are threads of one process; with CUDA on one GPU or several, whose copy engines do it.
   */
  LOCAL(0),
  /**
   * Ranks are processes, or threads, on one machine or many; CPU backend. Needs libzmq and
   * libsodium.
   */
  ZEROMQ(1),
  /** Ranks have a GPU each, in one process or many, CUDA backend. */
  NCCL(2),
  /** What a newer library calls something that is not known here. */
  UNKNOWN(-1);

  private final int value;

  Transport(int value) {
    this.value = value;
  }

  /** The value of the C constant. */
  public int value() {
    return value;
  }

  static Transport of(int value) {
    for (Transport constant : values()) {
      if (constant.value == value) {
        return constant;
      }
    }
    return UNKNOWN;
  }
}
