// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaMhaBackwardArgs;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;
import java.nio.ByteBuffer;

/**
 * One rank's tensors of Context.mhaBackward; shapes as in MhaForwardArgs.
 *
 * <p>Several threads may give it to calls at the same time; only one may change it, and meanwhile
 * no other use it.
 */
public final class MhaBackwardArgs {
  private static final Struct<RaMhaBackwardArgs> DEFAULTS = struct();

  private Tensor dout;
  private Tensor x;
  private Tensor wQ;
  private Tensor wK;
  private Tensor wV;
  private Tensor wO;
  private Tensor bQ;
  private Tensor bK;
  private Tensor bV;
  private Tensor bO;
  private Tensor normQ;
  private Tensor normK;
  private Tensor dx;
  private Tensor dwQ;
  private Tensor dwK;
  private Tensor dwV;
  private Tensor dwO;
  private Tensor dbQ;
  private Tensor dbK;
  private Tensor dbV;
  private Tensor dbO;
  private Tensor dnormQ;
  private Tensor dnormK;
  private boolean accumulate;
  private boolean reduce;
  private Tensor activations;
  private Tensor workspace;
  private long stream;

  /** As C reads it: made of the fields above when first asked for, and null after a change. */
  private volatile Struct<RaMhaBackwardArgs> made;

  /** With the library's defaults. */
  public MhaBackwardArgs() {
    RaMhaBackwardArgs c = DEFAULTS.c;
    accumulate = c.getAccumulate() != 0;
    reduce = c.getReduce() != 0;
    stream = c.getStream();
  }

  /** With what the other one has now. */
  public MhaBackwardArgs(MhaBackwardArgs other) {
    dout = other.dout;
    x = other.x;
    wQ = other.wQ;
    wK = other.wK;
    wV = other.wV;
    wO = other.wO;
    bQ = other.bQ;
    bK = other.bK;
    bV = other.bV;
    bO = other.bO;
    normQ = other.normQ;
    normK = other.normK;
    dx = other.dx;
    dwQ = other.dwQ;
    dwK = other.dwK;
    dwV = other.dwV;
    dwO = other.dwO;
    dbQ = other.dbQ;
    dbK = other.dbK;
    dbV = other.dbV;
    dbO = other.dbO;
    dnormQ = other.dnormQ;
    dnormK = other.dnormK;
    accumulate = other.accumulate;
    reduce = other.reduce;
    activations = other.activations;
    workspace = other.workspace;
    stream = other.stream;
    made = other.made;
  }

  /**
   * With what `other` has of it: x, wQ, wK, wV, wO, bQ, bK, bV, bO, normQ, normK and activations.
   */
  public MhaBackwardArgs(MhaForwardArgs other) {
    this();
    x = other.x();
    wQ = other.wQ();
    wK = other.wK();
    wV = other.wV();
    wO = other.wO();
    bQ = other.bQ();
    bK = other.bK();
    bV = other.bV();
    bO = other.bO();
    normQ = other.normQ();
    normK = other.normK();
    activations = other.activations();
  }

  /** Shape of out, desc.outDtype. */
  public MhaBackwardArgs dout(Tensor dout) {
    this.dout = dout;
    made = null;
    return this;
  }

  /** What {@link #dout(Tensor)} set, or the default. */
  public Tensor dout() {
    return dout;
  }

  /** As given to Context.mhaForward. */
  public MhaBackwardArgs x(Tensor x) {
    this.x = x;
    made = null;
    return this;
  }

  /** What {@link #x(Tensor)} set, or the default. */
  public Tensor x() {
    return x;
  }

  /** As given to Context.mhaForward. */
  public MhaBackwardArgs wQ(Tensor wQ) {
    this.wQ = wQ;
    made = null;
    return this;
  }

  /** What {@link #wQ(Tensor)} set, or the default. */
  public Tensor wQ() {
    return wQ;
  }

  /** As given to Context.mhaForward. */
  public MhaBackwardArgs wK(Tensor wK) {
    this.wK = wK;
    made = null;
    return this;
  }

  /** What {@link #wK(Tensor)} set, or the default. */
  public Tensor wK() {
    return wK;
  }

  /** As given to Context.mhaForward. */
  public MhaBackwardArgs wV(Tensor wV) {
    this.wV = wV;
    made = null;
    return this;
  }

  /** What {@link #wV(Tensor)} set, or the default. */
  public Tensor wV() {
    return wV;
  }

  /** As given to Context.mhaForward. */
  public MhaBackwardArgs wO(Tensor wO) {
    this.wO = wO;
    made = null;
    return this;
  }

  /** What {@link #wO(Tensor)} set, or the default. */
  public Tensor wO() {
    return wO;
  }

  /** As given to Context.mhaForward. */
  public MhaBackwardArgs bQ(Tensor bQ) {
    this.bQ = bQ;
    made = null;
    return this;
  }

  /** What {@link #bQ(Tensor)} set, or the default. */
  public Tensor bQ() {
    return bQ;
  }

  /** As given to Context.mhaForward. */
  public MhaBackwardArgs bK(Tensor bK) {
    this.bK = bK;
    made = null;
    return this;
  }

  /** What {@link #bK(Tensor)} set, or the default. */
  public Tensor bK() {
    return bK;
  }

  /** As given to Context.mhaForward. */
  public MhaBackwardArgs bV(Tensor bV) {
    this.bV = bV;
    made = null;
    return this;
  }

  /** What {@link #bV(Tensor)} set, or the default. */
  public Tensor bV() {
    return bV;
  }

  /** As given to Context.mhaForward. */
  public MhaBackwardArgs bO(Tensor bO) {
    this.bO = bO;
    made = null;
    return this;
  }

  /** What {@link #bO(Tensor)} set, or the default. */
  public Tensor bO() {
    return bO;
  }

  /** As given to Context.mhaForward. */
  public MhaBackwardArgs normQ(Tensor normQ) {
    this.normQ = normQ;
    made = null;
    return this;
  }

  /** What {@link #normQ(Tensor)} set, or the default. */
  public Tensor normQ() {
    return normQ;
  }

  /** As given to Context.mhaForward. */
  public MhaBackwardArgs normK(Tensor normK) {
    this.normK = normK;
    made = null;
    return this;
  }

  /** What {@link #normK(Tensor)} set, or the default. */
  public Tensor normK() {
    return normK;
  }

  /** Shape of x, desc.gradDtype; written; null if not wanted. */
  public MhaBackwardArgs dx(Tensor dx) {
    this.dx = Tensor.writable("dx", dx);
    made = null;
    return this;
  }

  /** What {@link #dx(Tensor)} set, or the default. */
  public Tensor dx() {
    return dx;
  }

  /** Shape of wQ, fp32; written; null if not wanted. */
  public MhaBackwardArgs dwQ(Tensor dwQ) {
    this.dwQ = Tensor.writable("dw_q", Tensor.floats("dw_q", dwQ));
    made = null;
    return this;
  }

  /** What {@link #dwQ(Tensor)} set, or the default. */
  public Tensor dwQ() {
    return dwQ;
  }

  /** Shape of wK, fp32; written; null if not wanted. */
  public MhaBackwardArgs dwK(Tensor dwK) {
    this.dwK = Tensor.writable("dw_k", Tensor.floats("dw_k", dwK));
    made = null;
    return this;
  }

  /** What {@link #dwK(Tensor)} set, or the default. */
  public Tensor dwK() {
    return dwK;
  }

  /** Shape of wV, fp32; written; null if not wanted. */
  public MhaBackwardArgs dwV(Tensor dwV) {
    this.dwV = Tensor.writable("dw_v", Tensor.floats("dw_v", dwV));
    made = null;
    return this;
  }

  /** What {@link #dwV(Tensor)} set, or the default. */
  public Tensor dwV() {
    return dwV;
  }

  /** Shape of wO, fp32; written; null if not wanted. */
  public MhaBackwardArgs dwO(Tensor dwO) {
    this.dwO = Tensor.writable("dw_o", Tensor.floats("dw_o", dwO));
    made = null;
    return this;
  }

  /** What {@link #dwO(Tensor)} set, or the default. */
  public Tensor dwO() {
    return dwO;
  }

  /** Shape of bQ, fp32; written; null if not wanted. */
  public MhaBackwardArgs dbQ(Tensor dbQ) {
    this.dbQ = Tensor.writable("db_q", Tensor.floats("db_q", dbQ));
    made = null;
    return this;
  }

  /** What {@link #dbQ(Tensor)} set, or the default. */
  public Tensor dbQ() {
    return dbQ;
  }

  /** Shape of bK, fp32; written; null if not wanted. */
  public MhaBackwardArgs dbK(Tensor dbK) {
    this.dbK = Tensor.writable("db_k", Tensor.floats("db_k", dbK));
    made = null;
    return this;
  }

  /** What {@link #dbK(Tensor)} set, or the default. */
  public Tensor dbK() {
    return dbK;
  }

  /** Shape of bV, fp32; written; null if not wanted. */
  public MhaBackwardArgs dbV(Tensor dbV) {
    this.dbV = Tensor.writable("db_v", Tensor.floats("db_v", dbV));
    made = null;
    return this;
  }

  /** What {@link #dbV(Tensor)} set, or the default. */
  public Tensor dbV() {
    return dbV;
  }

  /** Shape of bO, fp32; written; null if not wanted. */
  public MhaBackwardArgs dbO(Tensor dbO) {
    this.dbO = Tensor.writable("db_o", Tensor.floats("db_o", dbO));
    made = null;
    return this;
  }

  /** What {@link #dbO(Tensor)} set, or the default. */
  public Tensor dbO() {
    return dbO;
  }

  /** Shape of normQ, fp32; written; null if not wanted. */
  public MhaBackwardArgs dnormQ(Tensor dnormQ) {
    this.dnormQ = Tensor.writable("dnorm_q", Tensor.floats("dnorm_q", dnormQ));
    made = null;
    return this;
  }

  /** What {@link #dnormQ(Tensor)} set, or the default. */
  public Tensor dnormQ() {
    return dnormQ;
  }

  /** Shape of normK, fp32; written; null if not wanted. */
  public MhaBackwardArgs dnormK(Tensor dnormK) {
    this.dnormK = Tensor.writable("dnorm_k", Tensor.floats("dnorm_k", dnormK));
    made = null;
    return this;
  }

  /** What {@link #dnormK(Tensor)} set, or the default. */
  public Tensor dnormK() {
    return dnormK;
  }

  /**
   * 0: overwrite the gradients of weights; 1: add to what they hold, as over micro-batches. dx is
   * overwritten in any case.
   */
  public MhaBackwardArgs accumulate(boolean accumulate) {
    this.accumulate = accumulate;
    made = null;
    return this;
  }

  /** What {@link #accumulate(boolean)} set, or the default. */
  public boolean accumulate() {
    return accumulate;
  }

  /**
   * 0: gradients of weights are this rank's share, and their sum over all ranks is the gradient; 1:
   * in the end each is summed over all ranks, what it held before with accumulate included, as
   * after the last micro-batch; the same on every rank, and so are the gradients that are wanted.
   */
  public MhaBackwardArgs reduce(boolean reduce) {
    this.reduce = reduce;
    made = null;
    return this;
  }

  /** What {@link #reduce(boolean)} set, or the default. */
  public boolean reduce() {
    return reduce;
  }

  /** As Context.mhaForward wrote it; with Checkpoint.INPUT null. */
  public MhaBackwardArgs activations(Activations activations) {
    this.activations = activations == null ? null : activations.memory();
    made = null;
    return this;
  }

  /** The same, of memory that is no buffer. */
  public MhaBackwardArgs activations(long address, long size) {
    this.activations = Tensor.at(address, size, null);
    made = null;
    return this;
  }

  Tensor activations() {
    return activations;
  }

  /**
   * MhaRequirements.backwardWorkspace bytes aligned to 64, or null: the context keeps one of its
   * own.
   */
  public MhaBackwardArgs workspace(ByteBuffer workspace) {
    this.workspace = Tensor.bytes("workspace", workspace);
    made = null;
    return this;
  }

  /** The same, of memory that is no buffer. */
  public MhaBackwardArgs workspace(long address, long size) {
    this.workspace = Tensor.at(address, size, null);
    made = null;
    return this;
  }

  /** Must be 0 on the CPU. */
  public MhaBackwardArgs stream(long stream) {
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
    Tensor.requireType(
        "dout", dout, Tensor.orSame(desc.outDtype(), desc.dtype()), "desc.out_dtype");
    Tensor.requireType("x", x, desc.dtype(), "desc.dtype");
    Tensor.requireType("w_q", wQ, desc.dtype(), "desc.dtype");
    Tensor.requireType("w_k", wK, desc.dtype(), "desc.dtype");
    Tensor.requireType("w_v", wV, desc.dtype(), "desc.dtype");
    Tensor.requireType("w_o", wO, desc.dtype(), "desc.dtype");
    Tensor.requireType("b_q", bQ, desc.dtype(), "desc.dtype");
    Tensor.requireType("b_k", bK, desc.dtype(), "desc.dtype");
    Tensor.requireType("b_v", bV, desc.dtype(), "desc.dtype");
    Tensor.requireType("b_o", bO, desc.dtype(), "desc.dtype");
    Tensor.requireType("norm_q", normQ, desc.dtype(), "desc.dtype");
    Tensor.requireType("norm_k", normK, desc.dtype(), "desc.dtype");
    Tensor.requireType("dx", dx, Tensor.orSame(desc.gradDtype(), desc.dtype()), "desc.grad_dtype");
  }

  private static Struct<RaMhaBackwardArgs> struct() {
    return new Struct<>(
        RingAttnConstants.MHA_BACKWARD_ARGS_SIZE,
        RaMhaBackwardArgs::new,
        RingAttn::raInitMhaBackwardArgs);
  }

  Struct<RaMhaBackwardArgs> made() {
    Struct<RaMhaBackwardArgs> known = made;
    return (known != null ? known : (made = make())).usable();
  }

  private Struct<RaMhaBackwardArgs> make() {
    Struct<RaMhaBackwardArgs> struct = struct();
    RaMhaBackwardArgs c = struct.c;
    Tensor.write(dout, c.getDout(), struct);
    Tensor.write(x, c.getX(), struct);
    Tensor.write(wQ, c.getWQ(), struct);
    Tensor.write(wK, c.getWK(), struct);
    Tensor.write(wV, c.getWV(), struct);
    Tensor.write(wO, c.getWO(), struct);
    Tensor.write(bQ, c.getBQ(), struct);
    Tensor.write(bK, c.getBK(), struct);
    Tensor.write(bV, c.getBV(), struct);
    Tensor.write(bO, c.getBO(), struct);
    Tensor.write(normQ, c.getNormQ(), struct);
    Tensor.write(normK, c.getNormK(), struct);
    Tensor.write(dx, c.getDx(), struct);
    Tensor.write(dwQ, c.getDwQ(), struct);
    Tensor.write(dwK, c.getDwK(), struct);
    Tensor.write(dwV, c.getDwV(), struct);
    Tensor.write(dwO, c.getDwO(), struct);
    Tensor.write(dbQ, c.getDbQ(), struct);
    Tensor.write(dbK, c.getDbK(), struct);
    Tensor.write(dbV, c.getDbV(), struct);
    Tensor.write(dbO, c.getDbO(), struct);
    Tensor.write(dnormQ, c.getDnormQ(), struct);
    Tensor.write(dnormK, c.getDnormK(), struct);
    c.setAccumulate(accumulate ? 1 : 0);
    c.setReduce(reduce ? 1 : 0);
    c.setActivations(Tensor.address(activations, struct));
    c.setActivationsSize(activations == null ? 0 : activations.size());
    c.setWorkspace(Tensor.address(workspace, struct));
    c.setWorkspaceSize(workspace == null ? 0 : workspace.size());
    c.setStream(stream);
    return struct;
  }
}
