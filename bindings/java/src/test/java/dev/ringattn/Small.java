package dev.ringattn;

/** A causal problem of 64 tokens, and one rank's part in it. */
final class Small {
  static final int TOKENS = 64;

  final AttentionDesc desc =
      new AttentionDesc().seqlenQ(TOKENS).numHeadsQ(2).headDim(16).mask(Mask.CAUSAL);
  final int worldSize;
  private final long rows;

  Small(int worldSize) {
    this.worldSize = worldSize;
    rows = TOKENS / worldSize;
  }

  Array tensor(int seed) {
    return Array.floats(rows * 2 * 16).fill(seed, 0);
  }

  ForwardArgs args(Array out) {
    return new ForwardArgs()
        .q(tensor(1).tensor())
        .k(tensor(2).tensor())
        .v(tensor(3).tensor())
        .out(out.tensor())
        .lse(Array.floats(rows * 2).tensor());
  }

  /** Makes the call and says what came out. */
  String forward(Context context) {
    Array out = tensor(4);
    context.forward(desc, args(out));
    return out.hash();
  }

  /** Gradients of no particular numbers. */
  void backward(Context context) {
    context.backward(
        desc,
        new BackwardArgs()
            .q(tensor(1).tensor())
            .k(tensor(2).tensor())
            .v(tensor(3).tensor())
            .out(tensor(4).tensor())
            .lse(Array.floats(rows * 2).tensor())
            .dout(tensor(5).tensor())
            .dq(tensor(6).tensor())
            .dk(tensor(7).tensor())
            .dv(tensor(8).tensor()));
  }
}
