// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

/** Which elements of a head of q and k are turned together (Su et al. 2021, "RoFormer"). */
public enum Rotary {
  NONE(0),
  /** Of the first r: element i with element i + r / 2, as GPT-NeoX and Hugging Face's LLaMA. */
  HALVES(1),
  /** Of the first r: element 2 i with element 2 i + 1, as in the paper and GPT-J. */
  INTERLEAVED(2);

  private final int value;

  Rotary(int value) {
    this.value = value;
  }

  /** The value of the C constant. */
  public int value() {
    return value;
  }

  static Rotary of(int value) {
    for (Rotary constant : values()) {
      if (constant.value == value) {
        return constant;
      }
    }
    throw new IllegalArgumentException("no Rotary has value " + value);
  }
}
