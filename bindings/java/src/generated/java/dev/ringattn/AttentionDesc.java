// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaAttentionDesc;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;
import java.util.Objects;

/**
 * One attention problem, equal on every rank.
 *
 * <p>Query i of one batch entry sees key j of the same entry iff all of these hold:
 *
 * <pre>
 * mask           Mask.FULL: always. Mask.CAUSAL: j &lt;= i + shift
 * window         windowLeft  &lt; 0 or j &gt;= i + shift - windowLeft;  windowRight &lt; 0 or j &lt;= i + shift + windowRight
 * documents      i and j lie in documents of the same number
 * kvLengths      j &lt; kvLengths[batch entry]
 * </pre>
 *
 * <p>where shift is 0 (top-left) or the number of keys minus the number of queries (bottom-right).
 * With documents, i, j and shift count inside the document, but kvLengths counts from the start of
 * the sequence and never moves the diagonal.
 *
 * <p>score(i, j) = softcap(softmaxScale * dot(q_i, k_j)), with softcap(s) = c * tanh(s / c) where c
 * = desc.softcap &gt; 0 (Gemma 2, 2024). lse_i = log(sum_j exp(score)), natural logarithm; out_i =
 * sum_j exp(score - lse_i) v_j. A row that sees no key has out = 0, lse = -infinity and gradients
 * 0.
 *
 * <p>Several threads may give it to calls at the same time; only one may change it, and meanwhile
 * no other use it.
 */
public final class AttentionDesc {
  private static final Struct<RaAttentionDesc> DEFAULTS = struct();

  private long batch;
  private long seqlenQ;
  private long seqlenKv;
  private long numHeadsQ;
  private long numHeadsKv;
  private long headDim;
  private long headDimV;
  private DType dtype;
  private DType outDtype;
  private DType gradDtype;
  private Sharding sharding;
  private long stripe;
  private Mask mask;
  private MaskAlignment maskAlignment;
  private long windowLeft;
  private long windowRight;
  private float softmaxScale;
  private float softcap;
  private long[] documentOffsetsQ;
  private long[] documentOffsetsKv;
  private long[] kvLengths;
  private Schedule schedule;
  private long numChunks;
  private long gatherBytes;

  /** As C reads it: made of the fields above when first asked for, and null after a change. */
  private volatile Struct<RaAttentionDesc> made;

  /** With the library's defaults. */
  public AttentionDesc() {
    RaAttentionDesc c = DEFAULTS.c;
    batch = c.getBatch();
    seqlenQ = c.getSeqlenQ();
    seqlenKv = c.getSeqlenKv();
    numHeadsQ = c.getNumHeadsQ();
    numHeadsKv = c.getNumHeadsKv();
    headDim = c.getHeadDim();
    headDimV = c.getHeadDimV();
    dtype = DType.of(c.getDtype());
    outDtype = DType.of(c.getOutDtype());
    gradDtype = DType.of(c.getGradDtype());
    sharding = Sharding.of(c.getSharding());
    stripe = c.getStripe();
    mask = Mask.of(c.getMask());
    maskAlignment = MaskAlignment.of(c.getMaskAlignment());
    windowLeft = c.getWindowLeft();
    windowRight = c.getWindowRight();
    softmaxScale = c.getSoftmaxScale();
    softcap = c.getSoftcap();
    schedule = Schedule.of(c.getSchedule());
    numChunks = c.getNumChunks();
    gatherBytes = c.getGatherBytes();
  }

  /** With what the other one has now. */
  public AttentionDesc(AttentionDesc other) {
    batch = other.batch;
    seqlenQ = other.seqlenQ;
    seqlenKv = other.seqlenKv;
    numHeadsQ = other.numHeadsQ;
    numHeadsKv = other.numHeadsKv;
    headDim = other.headDim;
    headDimV = other.headDimV;
    dtype = other.dtype;
    outDtype = other.outDtype;
    gradDtype = other.gradDtype;
    sharding = other.sharding;
    stripe = other.stripe;
    mask = other.mask;
    maskAlignment = other.maskAlignment;
    windowLeft = other.windowLeft;
    windowRight = other.windowRight;
    softmaxScale = other.softmaxScale;
    softcap = other.softcap;
    documentOffsetsQ = other.documentOffsetsQ;
    documentOffsetsKv = other.documentOffsetsKv;
    kvLengths = other.kvLengths;
    schedule = other.schedule;
    numChunks = other.numChunks;
    gatherBytes = other.gatherBytes;
    made = other.made;
  }

  /** Entries, &gt;= 1; default 1. */
  public AttentionDesc batch(long batch) {
    this.batch = batch;
    made = null;
    return this;
  }

  /** What {@link #batch(long)} set, or the default. */
  public long batch() {
    return batch;
  }

  /** Queries of the whole sequence, &gt;= 0; no default. */
  public AttentionDesc seqlenQ(long seqlenQ) {
    this.seqlenQ = seqlenQ;
    made = null;
    return this;
  }

  /** What {@link #seqlenQ(long)} set, or the default. */
  public long seqlenQ() {
    return seqlenQ;
  }

  /** Keys of the whole sequence, &gt;= 0; default -1: seqlenQ. */
  public AttentionDesc seqlenKv(long seqlenKv) {
    this.seqlenKv = seqlenKv;
    made = null;
    return this;
  }

  /** What {@link #seqlenKv(long)} set, or the default. */
  public long seqlenKv() {
    return seqlenKv;
  }

  /** &gt;= 1, a multiple of numHeadsKv; default 1. */
  public AttentionDesc numHeadsQ(long numHeadsQ) {
    this.numHeadsQ = numHeadsQ;
    made = null;
    return this;
  }

  /** What {@link #numHeadsQ(long)} set, or the default. */
  public long numHeadsQ() {
    return numHeadsQ;
  }

  /** &gt;= 1; default 0: numHeadsQ. Query head h uses head h / (numHeadsQ / numHeadsKv). */
  public AttentionDesc numHeadsKv(long numHeadsKv) {
    this.numHeadsKv = numHeadsKv;
    made = null;
    return this;
  }

  /** What {@link #numHeadsKv(long)} set, or the default. */
  public long numHeadsKv() {
    return numHeadsKv;
  }

  /** 1 .. 256, of q and k; no default. */
  public AttentionDesc headDim(long headDim) {
    this.headDim = headDim;
    made = null;
    return this;
  }

  /** What {@link #headDim(long)} set, or the default. */
  public long headDim() {
    return headDim;
  }

  /** 1 .. 256, of v and out; default 0: headDim. */
  public AttentionDesc headDimV(long headDimV) {
    this.headDimV = headDimV;
    made = null;
    return this;
  }

  /** What {@link #headDimV(long)} set, or the default. */
  public long headDimV() {
    return headDimV;
  }

  /** DType of q, k, v; default DType.FLOAT32. */
  public AttentionDesc dtype(DType dtype) {
    this.dtype = Objects.requireNonNull(dtype);
    made = null;
    return this;
  }

  /** What {@link #dtype(DType)} set, or the default. */
  public DType dtype() {
    return dtype;
  }

  /** DType of out and dout; default DType.SAME. */
  public AttentionDesc outDtype(DType outDtype) {
    this.outDtype = Objects.requireNonNull(outDtype);
    made = null;
    return this;
  }

  /** What {@link #outDtype(DType)} set, or the default. */
  public DType outDtype() {
    return outDtype;
  }

  /** DType of dq, dk, dv; default DType.SAME. */
  public AttentionDesc gradDtype(DType gradDtype) {
    this.gradDtype = Objects.requireNonNull(gradDtype);
    made = null;
    return this;
  }

  /** What {@link #gradDtype(DType)} set, or the default. */
  public DType gradDtype() {
    return gradDtype;
  }

  /** Sharding, of both sequences; default Sharding.CONTIGUOUS. */
  public AttentionDesc sharding(Sharding sharding) {
    this.sharding = Objects.requireNonNull(sharding);
    made = null;
    return this;
  }

  /** What {@link #sharding(Sharding)} set, or the default. */
  public Sharding sharding() {
    return sharding;
  }

  /** Tokens of a stripe, &gt;= 1; read for Sharding.STRIPED only; default 1. */
  public AttentionDesc stripe(long stripe) {
    this.stripe = stripe;
    made = null;
    return this;
  }

  /** What {@link #stripe(long)} set, or the default. */
  public long stripe() {
    return stripe;
  }

  /** Mask; default Mask.FULL. */
  public AttentionDesc mask(Mask mask) {
    this.mask = Objects.requireNonNull(mask);
    made = null;
    return this;
  }

  /** What {@link #mask(Mask)} set, or the default. */
  public Mask mask() {
    return mask;
  }

  /** MaskAlignment; default MaskAlignment.BOTTOM_RIGHT. */
  public AttentionDesc maskAlignment(MaskAlignment maskAlignment) {
    this.maskAlignment = Objects.requireNonNull(maskAlignment);
    made = null;
    return this;
  }

  /** What {@link #maskAlignment(MaskAlignment)} set, or the default. */
  public MaskAlignment maskAlignment() {
    return maskAlignment;
  }

  /** Keys visible before the diagonal, &gt;= -1; default -1: all. */
  public AttentionDesc windowLeft(long windowLeft) {
    this.windowLeft = windowLeft;
    made = null;
    return this;
  }

  /** What {@link #windowLeft(long)} set, or the default. */
  public long windowLeft() {
    return windowLeft;
  }

  /** Keys visible after the diagonal, &gt;= -1; default -1: all. */
  public AttentionDesc windowRight(long windowRight) {
    this.windowRight = windowRight;
    made = null;
    return this;
  }

  /** What {@link #windowRight(long)} set, or the default. */
  public long windowRight() {
    return windowRight;
  }

  /** Finite; default 0: 1 / sqrt(headDim). */
  public AttentionDesc softmaxScale(float softmaxScale) {
    this.softmaxScale = softmaxScale;
    made = null;
    return this;
  }

  /** What {@link #softmaxScale(float)} set, or the default. */
  public float softmaxScale() {
    return softmaxScale;
  }

  /** &gt;= 0 and finite; default 0: none. */
  public AttentionDesc softcap(float softcap) {
    this.softcap = softcap;
    made = null;
    return this;
  }

  /** What {@link #softcap(float)} set, or the default. */
  public float softcap() {
    return softcap;
  }

  /**
   * Host, one entry more than there are documents: 0, ascending, seqlenQ. Document d is the tokens
   * offsets[d] .. offsets[d + 1] - 1 (the cu_seqlens convention); may be empty.
   */
  public AttentionDesc documentOffsetsQ(long... documentOffsetsQ) {
    this.documentOffsetsQ = documentOffsetsQ == null ? null : documentOffsetsQ.clone();
    made = null;
    return this;
  }

  /** What {@link #documentOffsetsQ(long...)} set, or the default. */
  public long[] documentOffsetsQ() {
    return documentOffsetsQ == null ? null : documentOffsetsQ.clone();
  }

  /**
   * Host, one entry more than there are documents: the same for keys; null: documentOffsetsQ, and
   * then seqlenKv = seqlenQ.
   */
  public AttentionDesc documentOffsetsKv(long... documentOffsetsKv) {
    this.documentOffsetsKv = documentOffsetsKv == null ? null : documentOffsetsKv.clone();
    made = null;
    return this;
  }

  /** What {@link #documentOffsetsKv(long...)} set, or the default. */
  public long[] documentOffsetsKv() {
    return documentOffsetsKv == null ? null : documentOffsetsKv.clone();
  }

  /** Host, batch entries of 0 .. seqlenKv: keys before right padding; null: none. */
  public AttentionDesc kvLengths(long... kvLengths) {
    this.kvLengths = kvLengths == null ? null : kvLengths.clone();
    made = null;
    return this;
  }

  /** What {@link #kvLengths(long...)} set, or the default. */
  public long[] kvLengths() {
    return kvLengths == null ? null : kvLengths.clone();
  }

  /** Schedule; default Schedule.AUTO. */
  public AttentionDesc schedule(Schedule schedule) {
    this.schedule = Objects.requireNonNull(schedule);
    made = null;
    return this;
  }

  /** What {@link #schedule(Schedule)} set, or the default. */
  public Schedule schedule() {
    return schedule;
  }

  /**
   * Chunks that a K/V shard travels in, 1 .. 65536: more chunks, less memory; default 0: the
   * library chooses.
   */
  public AttentionDesc numChunks(long numChunks) {
    this.numChunks = numChunks;
    made = null;
    return this;
  }

  /** What {@link #numChunks(long)} set, or the default. */
  public long numChunks() {
    return numChunks;
  }

  /**
   * With Schedule.ALL_GATHER, most bytes that a rank holds of K and V of all ranks, and of their
   * gradients: the problem is computed in parts, some batch entries or some heads of K and V of one
   * entry, that need no more than this; a single head whose shards are longer is cut into chunks,
   * unless numChunks is set. 0 .. 2^58; default 0: 2^28. It holds more where one head is more than
   * 1,024 times as much: into more chunks than these the library cuts no shard unasked.
   */
  public AttentionDesc gatherBytes(long gatherBytes) {
    this.gatherBytes = gatherBytes;
    made = null;
    return this;
  }

  /** What {@link #gatherBytes(long)} set, or the default. */
  public long gatherBytes() {
    return gatherBytes;
  }

  private static Struct<RaAttentionDesc> struct() {
    return new Struct<>(
        RingAttnConstants.ATTENTION_DESC_SIZE, RaAttentionDesc::new, RingAttn::raInitAttentionDesc);
  }

  Struct<RaAttentionDesc> made() {
    Struct<RaAttentionDesc> known = made;
    return (known != null ? known : (made = make())).usable();
  }

  private Struct<RaAttentionDesc> make() {
    Struct<RaAttentionDesc> struct = struct();
    RaAttentionDesc c = struct.c;
    c.setNumDocuments(Struct.length(documentOffsetsQ, documentOffsetsKv) - 1);
    c.setBatch(batch);
    c.setSeqlenQ(seqlenQ);
    c.setSeqlenKv(seqlenKv);
    c.setNumHeadsQ(numHeadsQ);
    c.setNumHeadsKv(numHeadsKv);
    c.setHeadDim(headDim);
    c.setHeadDimV(headDimV);
    c.setDtype(dtype.value());
    c.setOutDtype(outDtype.value());
    c.setGradDtype(gradDtype.value());
    c.setSharding(sharding.value());
    c.setStripe(stripe);
    c.setMask(mask.value());
    c.setMaskAlignment(maskAlignment.value());
    c.setWindowLeft(windowLeft);
    c.setWindowRight(windowRight);
    c.setSoftmaxScale(softmaxScale);
    c.setSoftcap(softcap);
    c.setDocumentOffsetsQ(
        struct.list(
            "document_offsets_q", documentOffsetsQ, "num_documents + 1", c.getNumDocuments() + 1));
    c.setDocumentOffsetsKv(
        struct.list(
            "document_offsets_kv",
            documentOffsetsKv,
            "num_documents + 1",
            c.getNumDocuments() + 1));
    c.setKvLengths(struct.list("kv_lengths", kvLengths, "batch", c.getBatch()));
    c.setSchedule(schedule.value());
    c.setNumChunks(numChunks);
    c.setGatherBytes(gatherBytes);
    return struct;
  }
}
