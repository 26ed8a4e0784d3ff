// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaForwardArgs;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;
import java.nio.ByteBuffer;

/**
 * One rank's tensors of Context.forward. n_q, n_kv: this rank's shard lengths
 * (RingAttention.shardLength).
 *
 * <p>Several threads may give it to calls at the same time; only one may change it, and meanwhile
 * no other use it.
 */
public final class ForwardArgs {
  private static final Struct<RaForwardArgs> DEFAULTS = struct();

  private Tensor q;
  private Tensor k;
  private Tensor v;
  private Tensor out;
  private Tensor lse;
  private Tensor workspace;
  private long stream;
  private Tensor keyBias;
  private Tensor sinks;

  /** As C reads it: made of the fields above when first asked for, and null after a change. */
  private volatile Struct<RaForwardArgs> made;

  /** With the library's defaults. */
  public ForwardArgs() {
    RaForwardArgs c = DEFAULTS.c;
    stream = c.getStream();
  }

  /** With what the other one has now. */
  public ForwardArgs(ForwardArgs other) {
    q = other.q;
    k = other.k;
    v = other.v;
    out = other.out;
    lse = other.lse;
    workspace = other.workspace;
    stream = other.stream;
    keyBias = other.keyBias;
    sinks = other.sinks;
    made = other.made;
  }

  /** [batch, n_q, numHeadsQ, headDim], desc.dtype. */
  public ForwardArgs q(Tensor q) {
    this.q = q;
    made = null;
    return this;
  }

  /** What {@link #q(Tensor)} set, or the default. */
  public Tensor q() {
    return q;
  }

  /** [batch, n_kv, numHeadsKv, headDim], desc.dtype. */
  public ForwardArgs k(Tensor k) {
    this.k = k;
    made = null;
    return this;
  }

  /** What {@link #k(Tensor)} set, or the default. */
  public Tensor k() {
    return k;
  }

  /** [batch, n_kv, numHeadsKv, headDimV], desc.dtype. */
  public ForwardArgs v(Tensor v) {
    this.v = v;
    made = null;
    return this;
  }

  /** What {@link #v(Tensor)} set, or the default. */
  public Tensor v() {
    return v;
  }

  /** [batch, n_q, numHeadsQ, headDimV], desc.outDtype; written. */
  public ForwardArgs out(Tensor out) {
    this.out = Tensor.writable("out", out);
    made = null;
    return this;
  }

  /** What {@link #out(Tensor)} set, or the default. */
  public Tensor out() {
    return out;
  }

  /** [batch, numHeadsQ, n_q] packed; written; null if not wanted (Context.backward needs it). */
  public ForwardArgs lse(Tensor lse) {
    this.lse = Tensor.packedFloats("lse", lse, true);
    made = null;
    return this;
  }

  /** What {@link #lse(Tensor)} set, or the default. */
  public Tensor lse() {
    return lse;
  }

  /**
   * forwardWorkspace bytes aligned to 64, or null: the context keeps one of its own, as large as
   * its largest call needed, until it is destroyed.
   */
  public ForwardArgs workspace(ByteBuffer workspace) {
    this.workspace = Tensor.bytes("workspace", workspace);
    made = null;
    return this;
  }

  /** The same, of memory that is no buffer. */
  public ForwardArgs workspace(long address, long size) {
    this.workspace = Tensor.at(address, size, null);
    made = null;
    return this;
  }

  /** A stream of the context's device; must be 0 on the CPU. */
  public ForwardArgs stream(long stream) {
    this.stream = stream;
    made = null;
    return this;
  }

  /** What {@link #stream(long)} set, or the default. */
  public long stream() {
    return stream;
  }

  /**
   * [batch, n_kv] packed, of this rank's keys; where desc.hasKeyBias is 1, else null. -infinity
   * hides a key; NaN or +infinity make the rows that see it undefined.
   */
  public ForwardArgs keyBias(Tensor keyBias) {
    this.keyBias = Tensor.packedFloats("key_bias", keyBias, false);
    made = null;
    return this;
  }

  /** What {@link #keyBias(Tensor)} set, or the default. */
  public Tensor keyBias() {
    return keyBias;
  }

  /**
   * [numHeadsQ, numSinks] packed, the same on every rank; where desc.numSinks &gt; 0, else null. As
   * keyBias, never NaN or +infinity.
   */
  public ForwardArgs sinks(Tensor sinks) {
    this.sinks = Tensor.packedFloats("sinks", sinks, false);
    made = null;
    return this;
  }

  /** What {@link #sinks(Tensor)} set, or the default. */
  public Tensor sinks() {
    return sinks;
  }

  /** Refuses tensors of other types than `desc` has. */
  void requireTypes(AttentionDesc desc) {
    Tensor.requireType("q", q, desc.dtype(), "desc.dtype");
    Tensor.requireType("k", k, desc.dtype(), "desc.dtype");
    Tensor.requireType("v", v, desc.dtype(), "desc.dtype");
    Tensor.requireType("out", out, Tensor.orSame(desc.outDtype(), desc.dtype()), "desc.out_dtype");
  }

  private static Struct<RaForwardArgs> struct() {
    return new Struct<>(
        RingAttnConstants.FORWARD_ARGS_SIZE, RaForwardArgs::new, RingAttn::raInitForwardArgs);
  }

  Struct<RaForwardArgs> made() {
    Struct<RaForwardArgs> known = made;
    return (known != null ? known : (made = make())).usable();
  }

  private Struct<RaForwardArgs> make() {
    Struct<RaForwardArgs> struct = struct();
    RaForwardArgs c = struct.c;
    Tensor.write(q, c.getQ(), struct);
    Tensor.write(k, c.getK(), struct);
    Tensor.write(v, c.getV(), struct);
    Tensor.write(out, c.getOut(), struct);
    c.setLse(Tensor.address(lse, struct));
    c.setLseSize(Tensor.shortest(lse));
    c.setWorkspace(Tensor.address(workspace, struct));
    c.setWorkspaceSize(workspace == null ? 0 : workspace.size());
    c.setStream(stream);
    c.setKeyBias(Tensor.address(keyBias, struct));
    c.setKeyBiasSize(Tensor.shortest(keyBias));
    c.setSinks(Tensor.address(sinks, struct));
    c.setSinksSize(Tensor.shortest(sinks));
    return struct;
  }
}
