// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaMergeArgs;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;
import java.util.Objects;

/**
 * Two partial results over disjoint sets of keys, and where their union goes.
 *
 * <p>Several threads may give it to calls at the same time; only one may change it, and meanwhile
 * no other use it.
 */
public final class MergeArgs {
  private static final Struct<RaMergeArgs> DEFAULTS = struct();

  private long batch;
  private long seqlen;
  private long numHeads;
  private long headDimV;
  private DType dtype;
  private Tensor outA;
  private Tensor outB;
  private Tensor out;
  private Tensor lseA;
  private Tensor lseB;
  private Tensor lse;

  /** As C reads it: made of the fields above when first asked for, and null after a change. */
  private volatile Struct<RaMergeArgs> made;

  /** With the library's defaults. */
  public MergeArgs() {
    RaMergeArgs c = DEFAULTS.c;
    batch = c.getBatch();
    seqlen = c.getSeqlen();
    numHeads = c.getNumHeads();
    headDimV = c.getHeadDimV();
    dtype = DType.of(c.getDtype());
  }

  /** With what the other one has now. */
  public MergeArgs(MergeArgs other) {
    batch = other.batch;
    seqlen = other.seqlen;
    numHeads = other.numHeads;
    headDimV = other.headDimV;
    dtype = other.dtype;
    outA = other.outA;
    outB = other.outB;
    out = other.out;
    lseA = other.lseA;
    lseB = other.lseB;
    lse = other.lse;
    made = other.made;
  }

  /** &gt;= 1; default 1. */
  public MergeArgs batch(long batch) {
    this.batch = batch;
    made = null;
    return this;
  }

  /** What {@link #batch(long)} set, or the default. */
  public long batch() {
    return batch;
  }

  /** Rows, &gt;= 0; no default: -1, which is refused. */
  public MergeArgs seqlen(long seqlen) {
    this.seqlen = seqlen;
    made = null;
    return this;
  }

  /** What {@link #seqlen(long)} set, or the default. */
  public long seqlen() {
    return seqlen;
  }

  /** &gt;= 1; default 1. */
  public MergeArgs numHeads(long numHeads) {
    this.numHeads = numHeads;
    made = null;
    return this;
  }

  /** What {@link #numHeads(long)} set, or the default. */
  public long numHeads() {
    return numHeads;
  }

  /** &gt;= 1; no default. */
  public MergeArgs headDimV(long headDimV) {
    this.headDimV = headDimV;
    made = null;
    return this;
  }

  /** What {@link #headDimV(long)} set, or the default. */
  public long headDimV() {
    return headDimV;
  }

  /** DType of the three tensors; default DType.FLOAT32. */
  public MergeArgs dtype(DType dtype) {
    this.dtype = Objects.requireNonNull(dtype);
    made = null;
    return this;
  }

  /** What {@link #dtype(DType)} set, or the default. */
  public DType dtype() {
    return dtype;
  }

  /** [batch, seqlen, numHeads, headDimV]. */
  public MergeArgs outA(Tensor outA) {
    this.outA = outA;
    made = null;
    return this;
  }

  /** What {@link #outA(Tensor)} set, or the default. */
  public Tensor outA() {
    return outA;
  }

  /** The same shape. */
  public MergeArgs outB(Tensor outB) {
    this.outB = outB;
    made = null;
    return this;
  }

  /** What {@link #outB(Tensor)} set, or the default. */
  public Tensor outB() {
    return outB;
  }

  /**
   * The same shape; written; may be outA or outB with the same strides, else may not overlap them.
   */
  public MergeArgs out(Tensor out) {
    this.out = Tensor.writable("out", out);
    made = null;
    return this;
  }

  /** What {@link #out(Tensor)} set, or the default. */
  public Tensor out() {
    return out;
  }

  /** [batch, numHeads, seqlen] packed. */
  public MergeArgs lseA(Tensor lseA) {
    this.lseA = Tensor.packedFloats("lse_a", lseA, false);
    made = null;
    return this;
  }

  /** What {@link #lseA(Tensor)} set, or the default. */
  public Tensor lseA() {
    return lseA;
  }

  /** The same shape. */
  public MergeArgs lseB(Tensor lseB) {
    this.lseB = Tensor.packedFloats("lse_b", lseB, false);
    made = null;
    return this;
  }

  /** What {@link #lseB(Tensor)} set, or the default. */
  public Tensor lseB() {
    return lseB;
  }

  /** The same shape; written; may be lseA or lseB itself. */
  public MergeArgs lse(Tensor lse) {
    this.lse = Tensor.packedFloats("lse", lse, true);
    made = null;
    return this;
  }

  /** What {@link #lse(Tensor)} set, or the default. */
  public Tensor lse() {
    return lse;
  }

  private static Struct<RaMergeArgs> struct() {
    return new Struct<>(
        RingAttnConstants.MERGE_ARGS_SIZE, RaMergeArgs::new, RingAttn::raInitMergeArgs);
  }

  Struct<RaMergeArgs> made() {
    Struct<RaMergeArgs> known = made;
    return (known != null ? known : (made = make())).usable();
  }

  private Struct<RaMergeArgs> make() {
    Struct<RaMergeArgs> struct = struct();
    RaMergeArgs c = struct.c;
    c.setBatch(batch);
    c.setSeqlen(seqlen);
    c.setNumHeads(numHeads);
    c.setHeadDimV(headDimV);
    c.setDtype(dtype.value());
    Tensor.write(outA, c.getOutA(), struct);
    Tensor.write(outB, c.getOutB(), struct);
    Tensor.write(out, c.getOut(), struct);
    c.setLseA(Tensor.address(lseA, struct));
    c.setLseB(Tensor.address(lseB, struct));
    c.setLse(Tensor.address(lse, struct));
    c.setLseSize(Tensor.shortest(lseA, lseB, lse));
    return struct;
  }
}
