// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaSequenceArgs;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;
import java.util.Objects;

/**
 * Which tensor RingAttention.splitSequence and RingAttention.joinSequence copy.
 *
 * <p>Several threads may give it to calls at the same time; only one may change it, and meanwhile
 * no other use it.
 */
public final class SequenceArgs {
  private static final Struct<RaSequenceArgs> DEFAULTS = struct();

  private Side side;
  private DType dtype;
  private long numHeads;
  private long dim;
  private Tensor whole;
  private Tensor shard;

  /** As C reads it: made of the fields above when first asked for, and null after a change. */
  private volatile Struct<RaSequenceArgs> made;

  /** With the library's defaults. */
  public SequenceArgs() {
    RaSequenceArgs c = DEFAULTS.c;
    side = Side.of(c.getSide());
    dtype = DType.of(c.getDtype());
    numHeads = c.getNumHeads();
    dim = c.getDim();
  }

  /** With what the other one has now. */
  public SequenceArgs(SequenceArgs other) {
    side = other.side;
    dtype = other.dtype;
    numHeads = other.numHeads;
    dim = other.dim;
    whole = other.whole;
    shard = other.shard;
    made = other.made;
  }

  /** Side; default Side.QUERY. */
  public SequenceArgs side(Side side) {
    this.side = Objects.requireNonNull(side);
    made = null;
    return this;
  }

  /** What {@link #side(Side)} set, or the default. */
  public Side side() {
    return side;
  }

  /** DType of the elements; default DType.SAME: desc.dtype. */
  public SequenceArgs dtype(DType dtype) {
    this.dtype = Objects.requireNonNull(dtype);
    made = null;
    return this;
  }

  /** What {@link #dtype(DType)} set, or the default. */
  public DType dtype() {
    return dtype;
  }

  /** Heads of this tensor, &gt;= 1; no default. */
  public SequenceArgs numHeads(long numHeads) {
    this.numHeads = numHeads;
    made = null;
    return this;
  }

  /** What {@link #numHeads(long)} set, or the default. */
  public long numHeads() {
    return numHeads;
  }

  /** Elements of a head, &gt;= 1; no default. */
  public SequenceArgs dim(long dim) {
    this.dim = dim;
    made = null;
    return this;
  }

  /** What {@link #dim(long)} set, or the default. */
  public long dim() {
    return dim;
  }

  /** [batch, seqlenQ or seqlenKv, numHeads, dim]. */
  public SequenceArgs whole(Tensor whole) {
    this.whole = whole;
    made = null;
    return this;
  }

  /** What {@link #whole(Tensor)} set, or the default. */
  public Tensor whole() {
    return whole;
  }

  /** [batch, shard length, numHeads, dim]. */
  public SequenceArgs shard(Tensor shard) {
    this.shard = shard;
    made = null;
    return this;
  }

  /** What {@link #shard(Tensor)} set, or the default. */
  public Tensor shard() {
    return shard;
  }

  private static Struct<RaSequenceArgs> struct() {
    return new Struct<>(
        RingAttnConstants.SEQUENCE_ARGS_SIZE, RaSequenceArgs::new, RingAttn::raInitSequenceArgs);
  }

  Struct<RaSequenceArgs> made() {
    Struct<RaSequenceArgs> known = made;
    return (known != null ? known : (made = make())).usable();
  }

  private Struct<RaSequenceArgs> make() {
    Struct<RaSequenceArgs> struct = struct();
    RaSequenceArgs c = struct.c;
    c.setSide(side.value());
    c.setDtype(dtype.value());
    c.setNumHeads(numHeads);
    c.setDim(dim);
    Tensor.write(whole, c.getWhole(), struct);
    Tensor.write(shard, c.getShard(), struct);
    return struct;
  }
}
