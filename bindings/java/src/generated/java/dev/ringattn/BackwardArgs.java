// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaBackwardArgs;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;
import java.nio.ByteBuffer;

/**
 * One rank's tensors of Context.backward; shapes as in ForwardArgs.
 *
 * <p>Several threads may give it to calls at the same time; only one may change it, and meanwhile
 * no other use it.
 */
public final class BackwardArgs {
  private static final Struct<RaBackwardArgs> DEFAULTS = struct();

  private Tensor dout;
  private Tensor q;
  private Tensor k;
  private Tensor v;
  private Tensor out;
  private Tensor lse;
  private Tensor dq;
  private Tensor dk;
  private Tensor dv;
  private boolean accumulate;
  private Tensor workspace;
  private long stream;
  private Tensor keyBias;
  private Tensor sinks;
  private Tensor dsinks;

  /** As C reads it: made of the fields above when first asked for, and null after a change. */
  private volatile Struct<RaBackwardArgs> made;

  /** With the library's defaults. */
  public BackwardArgs() {
    RaBackwardArgs c = DEFAULTS.c;
    accumulate = c.getAccumulate() != 0;
    stream = c.getStream();
  }

  /** With what the other one has now. */
  public BackwardArgs(BackwardArgs other) {
    dout = other.dout;
    q = other.q;
    k = other.k;
    v = other.v;
    out = other.out;
    lse = other.lse;
    dq = other.dq;
    dk = other.dk;
    dv = other.dv;
    accumulate = other.accumulate;
    workspace = other.workspace;
    stream = other.stream;
    keyBias = other.keyBias;
    sinks = other.sinks;
    dsinks = other.dsinks;
    made = other.made;
  }

  /** With what `other` has of it: q, k, v, out, lse, keyBias and sinks. */
  public BackwardArgs(ForwardArgs other) {
    this();
    q = other.q();
    k = other.k();
    v = other.v();
    out = other.out();
    lse = other.lse();
    keyBias = other.keyBias();
    sinks = other.sinks();
  }

  /** Shape of out, desc.outDtype. */
  public BackwardArgs dout(Tensor dout) {
    this.dout = dout;
    made = null;
    return this;
  }

  /** What {@link #dout(Tensor)} set, or the default. */
  public Tensor dout() {
    return dout;
  }

  /** As given to Context.forward. */
  public BackwardArgs q(Tensor q) {
    this.q = q;
    made = null;
    return this;
  }

  /** What {@link #q(Tensor)} set, or the default. */
  public Tensor q() {
    return q;
  }

  /** As given to Context.forward. */
  public BackwardArgs k(Tensor k) {
    this.k = k;
    made = null;
    return this;
  }

  /** What {@link #k(Tensor)} set, or the default. */
  public Tensor k() {
    return k;
  }

  /** As given to Context.forward. */
  public BackwardArgs v(Tensor v) {
    this.v = v;
    made = null;
    return this;
  }

  /** What {@link #v(Tensor)} set, or the default. */
  public Tensor v() {
    return v;
  }

  /** As Context.forward wrote it. */
  public BackwardArgs out(Tensor out) {
    this.out = out;
    made = null;
    return this;
  }

  /** What {@link #out(Tensor)} set, or the default. */
  public Tensor out() {
    return out;
  }

  /** As Context.forward wrote it. */
  public BackwardArgs lse(Tensor lse) {
    this.lse = Tensor.packedFloats("lse", lse, false);
    made = null;
    return this;
  }

  /** What {@link #lse(Tensor)} set, or the default. */
  public Tensor lse() {
    return lse;
  }

  /** Shape of q, desc.gradDtype; written. */
  public BackwardArgs dq(Tensor dq) {
    this.dq = Tensor.writable("dq", dq);
    made = null;
    return this;
  }

  /** What {@link #dq(Tensor)} set, or the default. */
  public Tensor dq() {
    return dq;
  }

  /** Shape of k, desc.gradDtype; written. */
  public BackwardArgs dk(Tensor dk) {
    this.dk = Tensor.writable("dk", dk);
    made = null;
    return this;
  }

  /** What {@link #dk(Tensor)} set, or the default. */
  public Tensor dk() {
    return dk;
  }

  /** Shape of v, desc.gradDtype; written. */
  public BackwardArgs dv(Tensor dv) {
    this.dv = Tensor.writable("dv", dv);
    made = null;
    return this;
  }

  /** What {@link #dv(Tensor)} set, or the default. */
  public Tensor dv() {
    return dv;
  }

  /** 0: overwrite dq, dk, dv and dsinks; 1: add to what they hold. */
  public BackwardArgs accumulate(boolean accumulate) {
    this.accumulate = accumulate;
    made = null;
    return this;
  }

  /** What {@link #accumulate(boolean)} set, or the default. */
  public boolean accumulate() {
    return accumulate;
  }

  /**
   * backwardWorkspace bytes aligned to 64, or null: the context keeps one of its own, as large as
   * its largest call needed, until it is destroyed.
   */
  public BackwardArgs workspace(ByteBuffer workspace) {
    this.workspace = Tensor.bytes("workspace", workspace);
    made = null;
    return this;
  }

  /** The same, of memory that is no buffer. */
  public BackwardArgs workspace(long address, long size) {
    this.workspace = Tensor.at(address, size, null);
    made = null;
    return this;
  }

  /** A stream of the context's device; must be 0 on the CPU. */
  public BackwardArgs stream(long stream) {
    this.stream = stream;
    made = null;
    return this;
  }

  /** What {@link #stream(long)} set, or the default. */
  public long stream() {
    return stream;
  }

  /** As given to Context.forward. */
  public BackwardArgs keyBias(Tensor keyBias) {
    this.keyBias = Tensor.packedFloats("key_bias", keyBias, false);
    made = null;
    return this;
  }

  /** What {@link #keyBias(Tensor)} set, or the default. */
  public Tensor keyBias() {
    return keyBias;
  }

  /** As given to Context.forward. */
  public BackwardArgs sinks(Tensor sinks) {
    this.sinks = Tensor.packedFloats("sinks", sinks, false);
    made = null;
    return this;
  }

  /** What {@link #sinks(Tensor)} set, or the default. */
  public Tensor sinks() {
    return sinks;
  }

  /**
   * [numHeadsQ, numSinks] packed; written: this rank's share of the gradient, that of its own
   * queries. The gradient is the sum over all ranks, which the caller makes. null if not wanted.
   */
  public BackwardArgs dsinks(Tensor dsinks) {
    this.dsinks = Tensor.packedFloats("dsinks", dsinks, true);
    made = null;
    return this;
  }

  /** What {@link #dsinks(Tensor)} set, or the default. */
  public Tensor dsinks() {
    return dsinks;
  }

  /** Refuses tensors of other types than `desc` has. */
  void requireTypes(AttentionDesc desc) {
    Tensor.requireType(
        "dout", dout, Tensor.orSame(desc.outDtype(), desc.dtype()), "desc.out_dtype");
    Tensor.requireType("q", q, desc.dtype(), "desc.dtype");
    Tensor.requireType("k", k, desc.dtype(), "desc.dtype");
    Tensor.requireType("v", v, desc.dtype(), "desc.dtype");
    Tensor.requireType("out", out, Tensor.orSame(desc.outDtype(), desc.dtype()), "desc.out_dtype");
    Tensor.requireType("dq", dq, Tensor.orSame(desc.gradDtype(), desc.dtype()), "desc.grad_dtype");
    Tensor.requireType("dk", dk, Tensor.orSame(desc.gradDtype(), desc.dtype()), "desc.grad_dtype");
    Tensor.requireType("dv", dv, Tensor.orSame(desc.gradDtype(), desc.dtype()), "desc.grad_dtype");
  }

  private static Struct<RaBackwardArgs> struct() {
    return new Struct<>(
        RingAttnConstants.BACKWARD_ARGS_SIZE, RaBackwardArgs::new, RingAttn::raInitBackwardArgs);
  }

  Struct<RaBackwardArgs> made() {
    Struct<RaBackwardArgs> known = made;
    return (known != null ? known : (made = make())).usable();
  }

  private Struct<RaBackwardArgs> make() {
    Struct<RaBackwardArgs> struct = struct();
    RaBackwardArgs c = struct.c;
    Tensor.write(dout, c.getDout(), struct);
    Tensor.write(q, c.getQ(), struct);
    Tensor.write(k, c.getK(), struct);
    Tensor.write(v, c.getV(), struct);
    Tensor.write(out, c.getOut(), struct);
    c.setLse(Tensor.address(lse, struct));
    c.setLseSize(Tensor.shortest(lse));
    Tensor.write(dq, c.getDq(), struct);
    Tensor.write(dk, c.getDk(), struct);
    Tensor.write(dv, c.getDv(), struct);
    c.setAccumulate(accumulate ? 1 : 0);
    c.setWorkspace(Tensor.address(workspace, struct));
    c.setWorkspaceSize(workspace == null ? 0 : workspace.size());
    c.setStream(stream);
    c.setKeyBias(Tensor.address(keyBias, struct));
    c.setKeyBiasSize(Tensor.shortest(keyBias));
    c.setSinks(Tensor.address(sinks, struct));
    c.setSinksSize(Tensor.shortest(sinks));
    c.setDsinks(Tensor.address(dsinks, struct));
    c.setDsinksSize(Tensor.shortest(dsinks));
    return struct;
  }
}
