// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

/**
 * Which tokens a rank owns. P is the world size. A rank's shard holds its tokens densely in
 * ascending position.
 *
 * <p>Packed documents are cut one by one, so that every rank gets a like share of each; a sequence
 * without documents is one document. Contiguous and zigzag cut it into m parts, one behind the
 * other: of its n tokens, the first of which is token b of the whole sequence, part k (0 &lt;= k
 * &lt; m) has n / m, rounded down, and one more if (k - b) mod m &lt; n mod m, where mod is never
 * negative. So with one document the longer parts come first, and with many each gives its odd
 * tokens to the ranks after those of the document before: however many there are, shards differ in
 * length by one token at most, or by one stripe.
 *
 * <p>RingAttention.shardLength and RingAttention.shardPositions work this out. Queries and keys
 * follow the same rule, so token i of both is on one rank if their sequences are cut alike: equal
 * lengths and equal document offsets.
 */
public enum Sharding {
  /** P parts, rank r owns part r. */
  CONTIGUOUS(0),
  /** 2 P parts, rank r owns parts r and 2 P - 1 - r: equal work under a causal mask. */
  ZIGZAG(1),
  /**
   * Token p of the whole sequence belongs to rank (p / stripe) mod P, in whatever document it is:
   * equal work under a causal mask.
   */
  STRIPED(2);

  private final int value;

  Sharding(int value) {
    this.value = value;
  }

  /** The value of the C constant. */
  public int value() {
    return value;
  }

  static Sharding of(int value) {
    for (Sharding constant : values()) {
      if (constant.value == value) {
        return constant;
      }
    }
    throw new IllegalArgumentException("no Sharding has value " + value);
  }
}
