// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

/**
 * What Context.mhaForward keeps for Context.mhaBackward. Gradients are the same to the last bit
 * with each.
 */
public enum Checkpoint {
  /**
   * The output of attention and its lse: q, k and v are projected again, nothing is attended again.
   */
  ATTENTION(0),
  /**
   * Q, k and v too: nothing is computed again but, where there is any, rotation and normalisation.
   */
  ALL(1),
  /** Nothing, the caller keeps x: the forward pass is made again, its communication included. */
  INPUT(2);

  private final int value;

  Checkpoint(int value) {
    this.value = value;
  }

  /** The value of the C constant. */
  public int value() {
    return value;
  }

  static Checkpoint of(int value) {
    for (Checkpoint constant : values()) {
      if (constant.value == value) {
        return constant;
      }
    }
    throw new IllegalArgumentException("no Checkpoint has value " + value);
  }
}
