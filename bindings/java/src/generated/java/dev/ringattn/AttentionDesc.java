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
 * maskSlices     there are none, or one of them has (i, j) (MaskSliceKind)
 * </pre>
 *
 * <p>where shift is 0 (top-left) or the number of keys minus the number of queries (bottom-right).
 * With documents, i, j and shift count inside the document, but kvLengths and maskSlices count from
 * the start of the sequence; neither moves the diagonal.
 *
 * <p>score(i, j) = softcap(softmaxScale * dot(q_i, k_j)) - alibiSlopes[head] * |i + shift - j| +
 * keyBias[batch entry, j], with softcap(s) = c * tanh(s / c) where c = desc.softcap &gt; 0 (Gemma
 * 2, 2024); the second term as in Press et al. 2022, "ALiBi"; what the description does not ask for
 * is left out. The sinks of a query head are logits that join its softmax without a value (Xiao et
 * al. 2024): lse_i = log(sum_j exp(score) + sum_n exp(sinks[head, n])), natural logarithm; out_i =
 * sum_j exp(score - lse_i) v_j. A row that sees no key has out = 0 and gradients 0; its lse is that
 * of the sinks alone, -infinity without any.
 *
 * <p>Dropout of probability p makes weights 0 by chance and the others larger: out_i = sum_j
 * kept_ij / (1 - p) exp(score - lse_i) v_j, where lse_i is as without. Which are kept
 * (RingAttention.dropoutMask) depends on dropoutSeed, dropoutOffset, the batch entry, the query
 * head and the positions of query and key in the whole sequence, by Philox 4x32-10 (Salmon et al.
 * 2011): it is the same for every world size, sharding, schedule, number of chunks and backend, and
 * the backward pass finds it again.
 *
 * <p>Dilated attention (Ding et al. 2023, "LongNet") has one or more branches. Branch n cuts the
 * positions of a document's keys into segments of g = min(segmentLengths[n], keys of the document),
 * of which the last may be shorter; query i stands at position i + shift, and before the first key
 * or behind the last one in the first or the last segment. With r = dilations[n], each query head
 * keeps those positions of a segment whose place in it, mod r, is the head's phase (dilationPhase).
 * In branch n, i sees j iff all that is said above holds, both are of one segment, and the head
 * keeps both. With o_n, l_n the output and lse of branch n alone, out_i = sum_n exp(l_n) o_n /
 * sum_n exp(l_n), and lse_i = log(sum_n exp(l_n)).
 *
 * <p>So a key that a row sees in several branches counts as often; sinks join the sum once, and
 * dropout keeps or drops a pair for all branches alike. A row that a branch does not keep has
 * nothing from it, and one that no branch keeps sees no key: its out is 0. A branch of dilation 1
 * keeps all. Where heads share K and V the phase is the query head's, so that they may use
 * different rows. Where g is no multiple of r and there are several segments, places still count
 * from the start of each; torchscale, which counts on through the segments, places rows elsewhere
 * there.
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
  private float[] alibiSlopes;
  private long numSinks;
  private float dropoutProbability;
  private boolean hasKeyBias;
  private long dropoutSeed;
  private long dropoutOffset;
  private long[] maskSlices;
  private DilationPhase dilationPhase;
  private long[] segmentLengths;
  private long[] dilations;
  private DilationPadding dilationPadding;
  private DilationGradient dilationGradient;

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
    numSinks = c.getNumSinks();
    dropoutProbability = c.getDropoutProbability();
    hasKeyBias = c.getHasKeyBias() != 0;
    dropoutSeed = c.getDropoutSeed();
    dropoutOffset = c.getDropoutOffset();
    dilationPhase = DilationPhase.of(c.getDilationPhase());
    dilationPadding = DilationPadding.of(c.getDilationPadding());
    dilationGradient = DilationGradient.of(c.getDilationGradient());
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
    alibiSlopes = other.alibiSlopes;
    numSinks = other.numSinks;
    dropoutProbability = other.dropoutProbability;
    hasKeyBias = other.hasKeyBias;
    dropoutSeed = other.dropoutSeed;
    dropoutOffset = other.dropoutOffset;
    maskSlices = other.maskSlices;
    dilationPhase = other.dilationPhase;
    segmentLengths = other.segmentLengths;
    dilations = other.dilations;
    dilationPadding = other.dilationPadding;
    dilationGradient = other.dilationGradient;
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

  /** Queries of the whole sequence, &gt;= 0; no default: -1, which is refused. */
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
   * With Schedule.ALL_GATHER, most bytes that a rank holds of K, V and keyBias of all ranks, and of
   * their gradients: the problem is computed in parts, some batch entries or some heads of K and V
   * of one entry, that need no more than this; a single head whose shards are longer is cut into
   * chunks, unless numChunks is set. 0 .. 2^58; default 0: 2^28. It holds more where one head is
   * more than 1,024 times as much: into more chunks than these the library cuts no shard unasked.
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

  /**
   * Host, numHeadsQ entries, finite: what a key's distance from the diagonal takes off its score,
   * per position, for each query head; null: none.
   */
  public AttentionDesc alibiSlopes(float... alibiSlopes) {
    this.alibiSlopes = alibiSlopes == null ? null : alibiSlopes.clone();
    made = null;
    return this;
  }

  /** What {@link #alibiSlopes(float...)} set, or the default. */
  public float[] alibiSlopes() {
    return alibiSlopes == null ? null : alibiSlopes.clone();
  }

  /** Sinks of each query head, 0 .. 1024, in ForwardArgs.sinks; default 0: none. */
  public AttentionDesc numSinks(long numSinks) {
    this.numSinks = numSinks;
    made = null;
    return this;
  }

  /** What {@link #numSinks(long)} set, or the default. */
  public long numSinks() {
    return numSinks;
  }

  /** Of a weight to be dropped, 0 &lt;= p &lt; 1; default 0: none. */
  public AttentionDesc dropoutProbability(float dropoutProbability) {
    this.dropoutProbability = dropoutProbability;
    made = null;
    return this;
  }

  /** What {@link #dropoutProbability(float)} set, or the default. */
  public float dropoutProbability() {
    return dropoutProbability;
  }

  /** 1 if scores get ForwardArgs.keyBias; default 0. */
  public AttentionDesc hasKeyBias(boolean hasKeyBias) {
    this.hasKeyBias = hasKeyBias;
    made = null;
    return this;
  }

  /** What {@link #hasKeyBias(boolean)} set, or the default. */
  public boolean hasKeyBias() {
    return hasKeyBias;
  }

  /** 64 bits, any; read where dropoutProbability &gt; 0 only; default 0. */
  public AttentionDesc dropoutSeed(long dropoutSeed) {
    this.dropoutSeed = dropoutSeed;
    made = null;
    return this;
  }

  /** What {@link #dropoutSeed(long)} set, or the default. */
  public long dropoutSeed() {
    return dropoutSeed;
  }

  /**
   * 64 bits, any: another one for each call that is to drop other weights, but in the backward pass
   * that of its forward pass; read as dropoutSeed; default 0.
   */
  public AttentionDesc dropoutOffset(long dropoutOffset) {
    this.dropoutOffset = dropoutOffset;
    made = null;
    return this;
  }

  /** What {@link #dropoutOffset(long)} set, or the default. */
  public long dropoutOffset() {
    return dropoutOffset;
  }

  /**
   * Host, 5 entries for each of the mask slices: q_begin, q_end, kv_begin, kv_end, MaskSliceKind of
   * each, in positions of the whole sequence, 0 &lt;= begin &lt;= end &lt;= seqlen; null where
   * there are none. In any order; may be empty; no two rectangles have a pair in common, whatever
   * their kinds. Slices that share queries or keys are computed one after the other
   * (MemoryRequirements), but for MaskSliceKind.FULL side by side.
   */
  public AttentionDesc maskSlices(long... maskSlices) {
    this.maskSlices = maskSlices == null ? null : maskSlices.clone();
    made = null;
    return this;
  }

  /** What {@link #maskSlices(long...)} set, or the default. */
  public long[] maskSlices() {
    return maskSlices == null ? null : maskSlices.clone();
  }

  /**
   * DilationPhase; default DilationPhase.BLOCKS_OF_HEADS. As all that follows it changes nothing
   * where there are no branches.
   */
  public AttentionDesc dilationPhase(DilationPhase dilationPhase) {
    this.dilationPhase = Objects.requireNonNull(dilationPhase);
    made = null;
    return this;
  }

  /** What {@link #dilationPhase(DilationPhase)} set, or the default. */
  public DilationPhase dilationPhase() {
    return dilationPhase;
  }

  /**
   * Host, an entry for each of the branches: positions of a segment of each branch, &gt;= 1 and at
   * least seqlenKv / 2^20; null where there are none.
   */
  public AttentionDesc segmentLengths(long... segmentLengths) {
    this.segmentLengths = segmentLengths == null ? null : segmentLengths.clone();
    made = null;
    return this;
  }

  /** What {@link #segmentLengths(long...)} set, or the default. */
  public long[] segmentLengths() {
    return segmentLengths == null ? null : segmentLengths.clone();
  }

  /**
   * Host, an entry for each of the branches: of how many positions each branch keeps one, 1 ..
   * 2^48; null where there are none. A head whose phase is beyond a segment keeps nothing of it.
   */
  public AttentionDesc dilations(long... dilations) {
    this.dilations = dilations == null ? null : dilations.clone();
    made = null;
    return this;
  }

  /** What {@link #dilations(long...)} set, or the default. */
  public long[] dilations() {
    return dilations == null ? null : dilations.clone();
  }

  /** DilationPadding; default DilationPadding.MASKED. */
  public AttentionDesc dilationPadding(DilationPadding dilationPadding) {
    this.dilationPadding = Objects.requireNonNull(dilationPadding);
    made = null;
    return this;
  }

  /** What {@link #dilationPadding(DilationPadding)} set, or the default. */
  public DilationPadding dilationPadding() {
    return dilationPadding;
  }

  /** DilationGradient; default DilationGradient.EXACT. */
  public AttentionDesc dilationGradient(DilationGradient dilationGradient) {
    this.dilationGradient = Objects.requireNonNull(dilationGradient);
    made = null;
    return this;
  }

  /** What {@link #dilationGradient(DilationGradient)} set, or the default. */
  public DilationGradient dilationGradient() {
    return dilationGradient;
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
    c.setNumDocuments(Struct.count(1, 1, documentOffsetsQ, documentOffsetsKv));
    c.setNumMaskSlices(Struct.count(5, 0, maskSlices));
    c.setNumBranches((int) Struct.count(1, 0, segmentLengths, dilations));
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
    c.setAlibiSlopes(struct.list("alibi_slopes", alibiSlopes, "num_heads_q", c.getNumHeadsQ()));
    c.setNumSinks(numSinks);
    c.setDropoutProbability(dropoutProbability);
    c.setHasKeyBias(hasKeyBias ? 1 : 0);
    c.setDropoutSeed(dropoutSeed);
    c.setDropoutOffset(dropoutOffset);
    c.setMaskSlices(
        struct.list("mask_slices", maskSlices, "5 * num_mask_slices", 5 * c.getNumMaskSlices()));
    c.setDilationPhase(dilationPhase.value());
    c.setSegmentLengths(
        struct.list("segment_lengths", segmentLengths, "num_branches", c.getNumBranches()));
    c.setDilations(struct.list("dilations", dilations, "num_branches", c.getNumBranches()));
    c.setDilationPadding(dilationPadding.value());
    c.setDilationGradient(dilationGradient.value());
    return struct;
  }
}
