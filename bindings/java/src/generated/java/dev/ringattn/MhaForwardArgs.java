// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaMhaForwardArgs;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;
import java.nio.ByteBuffer;

/**
 * One rank's tensors of Context.mhaForward. n: this rank's shard length
 * (RingAttention.shardLength). Weights are whole on every rank. A matrix [rows, columns] is a
 * tensor of one entry and one head, with a token for each row: unless it is packed, seqStride,
 * which is then at least columns, leads from one row to the next, as in a matrix that has wQ, wK
 * and wV side by side. So is [batch, n, dModel].
 *
 * <p>Several threads may give it to calls at the same time; only one may change it, and meanwhile
 * no other use it.
 */
public final class MhaForwardArgs {
  private static final Struct<RaMhaForwardArgs> DEFAULTS = struct();

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
  private Tensor out;
  private Tensor activations;
  private Tensor workspace;
  private long stream;

  /** As C reads it: made of the fields above when first asked for, and null after a change. */
  private volatile Struct<RaMhaForwardArgs> made;

  /** With the library's defaults. */
  public MhaForwardArgs() {
    RaMhaForwardArgs c = DEFAULTS.c;
    stream = c.getStream();
  }

  /** With what the other one has now. */
  public MhaForwardArgs(MhaForwardArgs other) {
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
    out = other.out;
    activations = other.activations;
    workspace = other.workspace;
    stream = other.stream;
    made = other.made;
  }

  /** [batch, n, dModel], desc.dtype. */
  public MhaForwardArgs x(Tensor x) {
    this.x = x;
    made = null;
    return this;
  }

  /** What {@link #x(Tensor)} set, or the default. */
  public Tensor x() {
    return x;
  }

  /** [dModel, numHeadsQ * headDim], desc.dtype. */
  public MhaForwardArgs wQ(Tensor wQ) {
    this.wQ = wQ;
    made = null;
    return this;
  }

  /** What {@link #wQ(Tensor)} set, or the default. */
  public Tensor wQ() {
    return wQ;
  }

  /** [dModel, numHeadsKv * headDim], desc.dtype. */
  public MhaForwardArgs wK(Tensor wK) {
    this.wK = wK;
    made = null;
    return this;
  }

  /** What {@link #wK(Tensor)} set, or the default. */
  public Tensor wK() {
    return wK;
  }

  /** [dModel, numHeadsKv * headDimV], desc.dtype. */
  public MhaForwardArgs wV(Tensor wV) {
    this.wV = wV;
    made = null;
    return this;
  }

  /** What {@link #wV(Tensor)} set, or the default. */
  public Tensor wV() {
    return wV;
  }

  /** [numHeadsQ * headDimV, dModel], desc.dtype. */
  public MhaForwardArgs wO(Tensor wO) {
    this.wO = wO;
    made = null;
    return this;
  }

  /** What {@link #wO(Tensor)} set, or the default. */
  public Tensor wO() {
    return wO;
  }

  /** [numHeadsQ * headDim], desc.dtype, where mha.hasQkvBias is 1, else null. */
  public MhaForwardArgs bQ(Tensor bQ) {
    this.bQ = bQ;
    made = null;
    return this;
  }

  /** What {@link #bQ(Tensor)} set, or the default. */
  public Tensor bQ() {
    return bQ;
  }

  /** [numHeadsKv * headDim], desc.dtype, where there is bQ. */
  public MhaForwardArgs bK(Tensor bK) {
    this.bK = bK;
    made = null;
    return this;
  }

  /** What {@link #bK(Tensor)} set, or the default. */
  public Tensor bK() {
    return bK;
  }

  /** [numHeadsKv * headDimV], desc.dtype, where there is bQ. */
  public MhaForwardArgs bV(Tensor bV) {
    this.bV = bV;
    made = null;
    return this;
  }

  /** What {@link #bV(Tensor)} set, or the default. */
  public Tensor bV() {
    return bV;
  }

  /** [dModel], desc.dtype, where mha.hasOutBias is 1, else null. */
  public MhaForwardArgs bO(Tensor bO) {
    this.bO = bO;
    made = null;
    return this;
  }

  /** What {@link #bO(Tensor)} set, or the default. */
  public Tensor bO() {
    return bO;
  }

  /** [headDim], desc.dtype, where mha.normalizeHeads is 1, else null. */
  public MhaForwardArgs normQ(Tensor normQ) {
    this.normQ = normQ;
    made = null;
    return this;
  }

  /** What {@link #normQ(Tensor)} set, or the default. */
  public Tensor normQ() {
    return normQ;
  }

  /** [headDim], desc.dtype, where there is normQ. */
  public MhaForwardArgs normK(Tensor normK) {
    this.normK = normK;
    made = null;
    return this;
  }

  /** What {@link #normK(Tensor)} set, or the default. */
  public Tensor normK() {
    return normK;
  }

  /** [batch, n, dModel], desc.outDtype; written. */
  public MhaForwardArgs out(Tensor out) {
    this.out = Tensor.writable("out", out);
    made = null;
    return this;
  }

  /** What {@link #out(Tensor)} set, or the default. */
  public Tensor out() {
    return out;
  }

  /**
   * MhaRequirements.activations bytes aligned to 64, written for Context.mhaBackward; null with
   * Checkpoint.INPUT, which needs none, also where Context.mhaBackward will not be called.
   */
  public MhaForwardArgs activations(Activations activations) {
    this.activations = activations == null ? null : activations.memory();
    made = null;
    return this;
  }

  /** The same, of memory that is no buffer. */
  public MhaForwardArgs activations(long address, long size) {
    this.activations = Tensor.at(address, size, null);
    made = null;
    return this;
  }

  Tensor activations() {
    return activations;
  }

  /**
   * MhaRequirements.forwardWorkspace bytes aligned to 64, or null: the context keeps one of its
   * own.
   */
  public MhaForwardArgs workspace(ByteBuffer workspace) {
    this.workspace = Tensor.bytes("workspace", workspace);
    made = null;
    return this;
  }

  /** The same, of memory that is no buffer. */
  public MhaForwardArgs workspace(long address, long size) {
    this.workspace = Tensor.at(address, size, null);
    made = null;
    return this;
  }

  /** Must be 0 on the CPU. */
  public MhaForwardArgs stream(long stream) {
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
    Tensor.requireType("out", out, Tensor.orSame(desc.outDtype(), desc.dtype()), "desc.out_dtype");
  }

  private static Struct<RaMhaForwardArgs> struct() {
    return new Struct<>(
        RingAttnConstants.MHA_FORWARD_ARGS_SIZE,
        RaMhaForwardArgs::new,
        RingAttn::raInitMhaForwardArgs);
  }

  Struct<RaMhaForwardArgs> made() {
    Struct<RaMhaForwardArgs> known = made;
    return (known != null ? known : (made = make())).usable();
  }

  private Struct<RaMhaForwardArgs> make() {
    Struct<RaMhaForwardArgs> struct = struct();
    RaMhaForwardArgs c = struct.c;
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
    Tensor.write(out, c.getOut(), struct);
    c.setActivations(Tensor.address(activations, struct));
    c.setActivationsSize(activations == null ? 0 : activations.size());
    c.setWorkspace(Tensor.address(workspace, struct));
    c.setWorkspaceSize(workspace == null ? 0 : workspace.size());
    c.setStream(stream);
    return struct;
  }
}
