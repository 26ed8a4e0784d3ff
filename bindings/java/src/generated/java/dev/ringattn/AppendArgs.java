// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaAppendArgs;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;

/**
 * New tokens of some sequences. Every rank is given all of them, and stores those of its pages.
 *
 * <p>Several threads may give it to calls at the same time; only one may change it, and meanwhile
 * no other use it.
 */
public final class AppendArgs {
  private static final Struct<RaAppendArgs> DEFAULTS = struct();

  private long numTokens;
  private long[] sequences;
  private long[] lengths;
  private long[] positions;
  private Tensor k;
  private Tensor v;
  private long stream;

  /** As C reads it: made of the fields above when first asked for, and null after a change. */
  private volatile Struct<RaAppendArgs> made;

  /** With the library's defaults. */
  public AppendArgs() {
    RaAppendArgs c = DEFAULTS.c;
    numTokens = c.getNumTokens();
    stream = c.getStream();
  }

  /** With what the other one has now. */
  public AppendArgs(AppendArgs other) {
    numTokens = other.numTokens;
    sequences = other.sequences;
    lengths = other.lengths;
    positions = other.positions;
    k = other.k;
    v = other.v;
    stream = other.stream;
    made = other.made;
  }

  /** Of k and v, for each sequence, &gt;= 0; no default: -1, which is refused. */
  public AppendArgs numTokens(long numTokens) {
    this.numTokens = numTokens;
    made = null;
    return this;
  }

  /** What {@link #numTokens(long)} set, or the default. */
  public long numTokens() {
    return numTokens;
  }

  /** Each another sequence. */
  public AppendArgs sequences(long... sequences) {
    this.sequences = sequences == null ? null : sequences.clone();
    made = null;
    return this;
  }

  /** What {@link #sequences(long...)} set, or the default. */
  public long[] sequences() {
    return sequences == null ? null : sequences.clone();
  }

  /**
   * Host, an entry for each of the sequences, 0 .. numTokens: tokens that are appended, the first
   * ones; null: all.
   */
  public AppendArgs lengths(long... lengths) {
    this.lengths = lengths == null ? null : lengths.clone();
    made = null;
    return this;
  }

  /** What {@link #lengths(long...)} set, or the default. */
  public long[] lengths() {
    return lengths == null ? null : lengths.clone();
  }

  /**
   * Host, an entry for each of the sequences: in the place of which tokens they come, from there
   * on. It is the sequence's length, behind the others, or where pages are lost: there its first
   * lost token (KvCache.lostTokens), and as many as are lost there, or all of several pages. null:
   * behind the others, everywhere.
   */
  public AppendArgs positions(long... positions) {
    this.positions = positions == null ? null : positions.clone();
    made = null;
    return this;
  }

  /** What {@link #positions(long...)} set, or the default. */
  public long[] positions() {
    return positions == null ? null : positions.clone();
  }

  /** [numSequences, numTokens, numHeadsKv, headDim], the cache's dtype. */
  public AppendArgs k(Tensor k) {
    this.k = k;
    made = null;
    return this;
  }

  /** What {@link #k(Tensor)} set, or the default. */
  public Tensor k() {
    return k;
  }

  /** [numSequences, numTokens, numHeadsKv, headDimV], the cache's dtype. */
  public AppendArgs v(Tensor v) {
    this.v = v;
    made = null;
    return this;
  }

  /** What {@link #v(Tensor)} set, or the default. */
  public Tensor v() {
    return v;
  }

  /** Must be 0 on the CPU. */
  public AppendArgs stream(long stream) {
    this.stream = stream;
    made = null;
    return this;
  }

  /** What {@link #stream(long)} set, or the default. */
  public long stream() {
    return stream;
  }

  /** Refuses tensors of other types than `cache` has. */
  void requireTypes(KvCacheDesc cache) {
    Tensor.requireType("k", k, cache.dtype(), "cache.dtype");
    Tensor.requireType("v", v, cache.dtype(), "cache.dtype");
  }

  private static Struct<RaAppendArgs> struct() {
    return new Struct<>(
        RingAttnConstants.APPEND_ARGS_SIZE, RaAppendArgs::new, RingAttn::raInitAppendArgs);
  }

  Struct<RaAppendArgs> made() {
    Struct<RaAppendArgs> known = made;
    return (known != null ? known : (made = make())).usable();
  }

  private Struct<RaAppendArgs> make() {
    Struct<RaAppendArgs> struct = struct();
    RaAppendArgs c = struct.c;
    c.setNumSequences(Struct.count(1, 0, sequences, lengths, positions));
    c.setNumTokens(numTokens);
    c.setSequences(struct.list("sequences", sequences, "num_sequences", c.getNumSequences()));
    c.setLengths(struct.list("lengths", lengths, "num_sequences", c.getNumSequences()));
    c.setPositions(struct.list("positions", positions, "num_sequences", c.getNumSequences()));
    Tensor.write(k, c.getK(), struct);
    Tensor.write(v, c.getV(), struct);
    c.setStream(stream);
    return struct;
  }
}
