// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaDecodeArgs;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;

/**
 * Tensors of KvCache.decode, the same on every rank.
 *
 * <p>Several threads may give it to calls at the same time; only one may change it, and meanwhile
 * no other use it.
 */
public final class DecodeArgs {
  private static final Struct<RaDecodeArgs> DEFAULTS = struct();

  private long[] sequences;
  private Tensor q;
  private Tensor out;
  private Tensor lse;
  private Tensor sinks;
  private long stream;

  /** As C reads it: made of the fields above when first asked for, and null after a change. */
  private volatile Struct<RaDecodeArgs> made;

  /** With the library's defaults. */
  public DecodeArgs() {
    RaDecodeArgs c = DEFAULTS.c;
    stream = c.getStream();
  }

  /** With what the other one has now. */
  public DecodeArgs(DecodeArgs other) {
    sequences = other.sequences;
    q = other.q;
    out = other.out;
    lse = other.lse;
    sinks = other.sinks;
    stream = other.stream;
    made = other.made;
  }

  /** Whose tokens the queries of each batch entry are; one may come twice. */
  public DecodeArgs sequences(long... sequences) {
    this.sequences = sequences == null ? null : sequences.clone();
    made = null;
    return this;
  }

  /** What {@link #sequences(long...)} set, or the default. */
  public long[] sequences() {
    return sequences == null ? null : sequences.clone();
  }

  /** [batch, seqlenQ, numHeadsQ, headDim], desc.dtype. */
  public DecodeArgs q(Tensor q) {
    this.q = q;
    made = null;
    return this;
  }

  /** What {@link #q(Tensor)} set, or the default. */
  public Tensor q() {
    return q;
  }

  /** [batch, seqlenQ, numHeadsQ, headDimV], desc.outDtype; written. */
  public DecodeArgs out(Tensor out) {
    this.out = Tensor.writable("out", out);
    made = null;
    return this;
  }

  /** What {@link #out(Tensor)} set, or the default. */
  public Tensor out() {
    return out;
  }

  /** [batch, numHeadsQ, seqlenQ] packed; written; null if not wanted. */
  public DecodeArgs lse(Tensor lse) {
    this.lse = Tensor.packedFloats("lse", lse, true);
    made = null;
    return this;
  }

  /** What {@link #lse(Tensor)} set, or the default. */
  public Tensor lse() {
    return lse;
  }

  /** [numHeadsQ, numSinks] packed; where desc.numSinks &gt; 0, else null. As in ForwardArgs. */
  public DecodeArgs sinks(Tensor sinks) {
    this.sinks = Tensor.packedFloats("sinks", sinks, false);
    made = null;
    return this;
  }

  /** What {@link #sinks(Tensor)} set, or the default. */
  public Tensor sinks() {
    return sinks;
  }

  /** Must be 0 on the CPU. */
  public DecodeArgs stream(long stream) {
    this.stream = stream;
    made = null;
    return this;
  }

  /** What {@link #stream(long)} set, or the default. */
  public long stream() {
    return stream;
  }

  /** Refuses tensors of other types than `desc` has. */
  void requireTypes(AttentionDesc desc) {
    Tensor.requireType("q", q, desc.dtype(), "desc.dtype");
    Tensor.requireType("out", out, Tensor.orSame(desc.outDtype(), desc.dtype()), "desc.out_dtype");
  }

  private static Struct<RaDecodeArgs> struct() {
    return new Struct<>(
        RingAttnConstants.DECODE_ARGS_SIZE, RaDecodeArgs::new, RingAttn::raInitDecodeArgs);
  }

  Struct<RaDecodeArgs> made() {
    Struct<RaDecodeArgs> known = made;
    return (known != null ? known : (made = make())).usable();
  }

  private Struct<RaDecodeArgs> make() {
    Struct<RaDecodeArgs> struct = struct();
    RaDecodeArgs c = struct.c;
    c.setNumSequences(Struct.count(1, 0, sequences));
    c.setSequences(struct.list("sequences", sequences, "num_sequences", c.getNumSequences()));
    Tensor.write(q, c.getQ(), struct);
    Tensor.write(out, c.getOut(), struct);
    c.setLse(Tensor.address(lse, struct));
    c.setLseSize(Tensor.shortest(lse));
    c.setSinks(Tensor.address(sinks, struct));
    c.setSinksSize(Tensor.shortest(sinks));
    c.setStream(stream);
    return struct;
  }
}
