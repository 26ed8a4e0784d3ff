// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

/**
 * Who computes and sends what, in which order. Results follow the same rules with each, but not to
 * the last bit.
 *
 * <p>Schedule.AUTO is Schedule.ALL_GATHER where sequences are so short that the P - 1 hops of a
 * ring cost more than they hide: if worldSize is 3 or more, no rank has more than 256 keys,
 * numChunks is 0, and 2^24 bytes, or gatherBytes where that is less, are enough to gather all at
 * once. Else, and with mask slices or branches, it is Schedule.RING. MemoryRequirements says which.
 * The rule comes from measurements with ranks of one process on CPUs; on GPUs nothing has been
 * measured yet.
 */
public enum Schedule {
  /** The library chooses. */
  AUTO(0),
  /** Chunks of K and V travel from neighbour to neighbour. */
  RING(1),
  /**
   * Each rank sends its K and V to all ranks that see them, in one exchange, and computes with all
   * that it got; in the backward pass another exchange returns the gradients. By parts of the
   * problem, one after the other, so that memory stays within AttentionDesc.gatherBytes.
   */
  ALL_GATHER(2),
  ALL_TO_ALL(3),
  HYBRID(4),
  /** Of KvCache.decode alone: queries come to the keys, and what they see there is merged. */
  PASS_Q(5),
  /** What a newer library calls something that is not known here. */
  UNKNOWN(-1);

  private final int value;

  Schedule(int value) {
    this.value = value;
  }

  /** The value of the C constant. */
  public int value() {
    return value;
  }

  static Schedule of(int value) {
    for (Schedule constant : values()) {
      if (constant.value == value) {
        return constant;
      }
    }
    return UNKNOWN;
  }
}
