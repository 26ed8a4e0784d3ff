// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaMhaDesc;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;
import java.util.Objects;

/**
 * What a layer of multi-head attention has around attention, equal on every rank.
 *
 * <pre>
 * q = heads(x wQ + bQ)    k = heads(x wK + bK)    v = x wV + bV    out = attention(q, k, v) wO + bO
 * </pre>
 *
 * <p>where each head of q and k is first normalised, if normalizeHeads is 1: y = norm * x /
 * sqrt(mean(x^2) + normEpsilon), and then turned by its token's position p in the whole sequence,
 * unless rotary is NONE: elements a and b of pair i become a cos t - b sin t and a sin t + b cos t
 * with t = p * rotaryBase^(-2 i / r). Attention is that of a AttentionDesc, whose numHeadsQ,
 * numHeadsKv, headDim and headDimV are those of the weights.
 *
 * <p>Several threads may give it to calls at the same time; only one may change it, and meanwhile
 * no other use it.
 */
public final class MhaDesc {
  private static final Struct<RaMhaDesc> DEFAULTS = struct();

  private long dModel;
  private Rotary rotary;
  private float rotaryBase;
  private float rotaryFraction;
  private boolean hasQkvBias;
  private boolean hasOutBias;
  private boolean normalizeHeads;
  private float normEpsilon;
  private Checkpoint checkpoint;

  /** As C reads it: made of the fields above when first asked for, and null after a change. */
  private volatile Struct<RaMhaDesc> made;

  /** With the library's defaults. */
  public MhaDesc() {
    RaMhaDesc c = DEFAULTS.c;
    dModel = c.getDModel();
    rotary = Rotary.of(c.getRotary());
    rotaryBase = c.getRotaryBase();
    rotaryFraction = c.getRotaryFraction();
    hasQkvBias = c.getHasQkvBias() != 0;
    hasOutBias = c.getHasOutBias() != 0;
    normalizeHeads = c.getNormalizeHeads() != 0;
    normEpsilon = c.getNormEpsilon();
    checkpoint = Checkpoint.of(c.getCheckpoint());
  }

  /** With what the other one has now. */
  public MhaDesc(MhaDesc other) {
    dModel = other.dModel;
    rotary = other.rotary;
    rotaryBase = other.rotaryBase;
    rotaryFraction = other.rotaryFraction;
    hasQkvBias = other.hasQkvBias;
    hasOutBias = other.hasOutBias;
    normalizeHeads = other.normalizeHeads;
    normEpsilon = other.normEpsilon;
    checkpoint = other.checkpoint;
    made = other.made;
  }

  /** Elements of a token of x and out, 1 .. 2^20; no default. */
  public MhaDesc dModel(long dModel) {
    this.dModel = dModel;
    made = null;
    return this;
  }

  /** What {@link #dModel(long)} set, or the default. */
  public long dModel() {
    return dModel;
  }

  /** Rotary; default Rotary.NONE. What follows of it changes nothing then. */
  public MhaDesc rotary(Rotary rotary) {
    this.rotary = Objects.requireNonNull(rotary);
    made = null;
    return this;
  }

  /** What {@link #rotary(Rotary)} set, or the default. */
  public Rotary rotary() {
    return rotary;
  }

  /** Finite and &gt; 1; default 10000. */
  public MhaDesc rotaryBase(float rotaryBase) {
    this.rotaryBase = rotaryBase;
    made = null;
    return this;
  }

  /** What {@link #rotaryBase(float)} set, or the default. */
  public float rotaryBase() {
    return rotaryBase;
  }

  /**
   * Of a head's elements that are turned, 0 &lt; f &lt;= 1: r = 2 floor(f * headDim / 2), at least
   * 2; default 1.
   */
  public MhaDesc rotaryFraction(float rotaryFraction) {
    this.rotaryFraction = rotaryFraction;
    made = null;
    return this;
  }

  /** What {@link #rotaryFraction(float)} set, or the default. */
  public float rotaryFraction() {
    return rotaryFraction;
  }

  /** 1 if there are bQ, bK and bV; default 0. */
  public MhaDesc hasQkvBias(boolean hasQkvBias) {
    this.hasQkvBias = hasQkvBias;
    made = null;
    return this;
  }

  /** What {@link #hasQkvBias(boolean)} set, or the default. */
  public boolean hasQkvBias() {
    return hasQkvBias;
  }

  /** 1 if there is bO; default 0. */
  public MhaDesc hasOutBias(boolean hasOutBias) {
    this.hasOutBias = hasOutBias;
    made = null;
    return this;
  }

  /** What {@link #hasOutBias(boolean)} set, or the default. */
  public boolean hasOutBias() {
    return hasOutBias;
  }

  /** 1 if there are normQ and normK (RMSNorm: Zhang and Sennrich 2019); default 0. */
  public MhaDesc normalizeHeads(boolean normalizeHeads) {
    this.normalizeHeads = normalizeHeads;
    made = null;
    return this;
  }

  /** What {@link #normalizeHeads(boolean)} set, or the default. */
  public boolean normalizeHeads() {
    return normalizeHeads;
  }

  /** &gt;= 0 and finite; default 1e-6. */
  public MhaDesc normEpsilon(float normEpsilon) {
    this.normEpsilon = normEpsilon;
    made = null;
    return this;
  }

  /** What {@link #normEpsilon(float)} set, or the default. */
  public float normEpsilon() {
    return normEpsilon;
  }

  /** Checkpoint; default Checkpoint.ATTENTION. */
  public MhaDesc checkpoint(Checkpoint checkpoint) {
    this.checkpoint = Objects.requireNonNull(checkpoint);
    made = null;
    return this;
  }

  /** What {@link #checkpoint(Checkpoint)} set, or the default. */
  public Checkpoint checkpoint() {
    return checkpoint;
  }

  private static Struct<RaMhaDesc> struct() {
    return new Struct<>(RingAttnConstants.MHA_DESC_SIZE, RaMhaDesc::new, RingAttn::raInitMhaDesc);
  }

  Struct<RaMhaDesc> made() {
    Struct<RaMhaDesc> known = made;
    return (known != null ? known : (made = make())).usable();
  }

  private Struct<RaMhaDesc> make() {
    Struct<RaMhaDesc> struct = struct();
    RaMhaDesc c = struct.c;
    c.setDModel(dModel);
    c.setRotary(rotary.value());
    c.setRotaryBase(rotaryBase);
    c.setRotaryFraction(rotaryFraction);
    c.setHasQkvBias(hasQkvBias ? 1 : 0);
    c.setHasOutBias(hasOutBias ? 1 : 0);
    c.setNormalizeHeads(normalizeHeads ? 1 : 0);
    c.setNormEpsilon(normEpsilon);
    c.setCheckpoint(checkpoint.value());
    return struct;
  }
}
