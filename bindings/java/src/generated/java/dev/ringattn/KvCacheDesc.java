// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaKvCacheDesc;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;
import java.util.Objects;

/**
 * What a cache holds; the same on every rank.
 *
 * <p>Several threads may give it to calls at the same time; only one may change it, and meanwhile
 * no other use it.
 */
public final class KvCacheDesc {
  private static final Struct<RaKvCacheDesc> DEFAULTS = struct();

  private long pageTokens;
  private long numPages;
  private long numHeadsKv;
  private long headDim;
  private long headDimV;
  private DType dtype;

  /** As C reads it: made of the fields above when first asked for, and null after a change. */
  private volatile Struct<RaKvCacheDesc> made;

  /** With the library's defaults. */
  public KvCacheDesc() {
    RaKvCacheDesc c = DEFAULTS.c;
    pageTokens = c.getPageTokens();
    numPages = c.getNumPages();
    numHeadsKv = c.getNumHeadsKv();
    headDim = c.getHeadDim();
    headDimV = c.getHeadDimV();
    dtype = DType.of(c.getDtype());
  }

  /** With what the other one has now. */
  public KvCacheDesc(KvCacheDesc other) {
    pageTokens = other.pageTokens;
    numPages = other.numPages;
    numHeadsKv = other.numHeadsKv;
    headDim = other.headDim;
    headDimV = other.headDimV;
    dtype = other.dtype;
    made = other.made;
  }

  /** Tokens of a page, 16 .. 256; default 64. */
  public KvCacheDesc pageTokens(long pageTokens) {
    this.pageTokens = pageTokens;
    made = null;
    return this;
  }

  /** What {@link #pageTokens(long)} set, or the default. */
  public long pageTokens() {
    return pageTokens;
  }

  /** Pages of each rank, 1 .. 2^24; no default. */
  public KvCacheDesc numPages(long numPages) {
    this.numPages = numPages;
    made = null;
    return this;
  }

  /** What {@link #numPages(long)} set, or the default. */
  public long numPages() {
    return numPages;
  }

  /** Of K and V, &gt;= 1; no default. */
  public KvCacheDesc numHeadsKv(long numHeadsKv) {
    this.numHeadsKv = numHeadsKv;
    made = null;
    return this;
  }

  /** What {@link #numHeadsKv(long)} set, or the default. */
  public long numHeadsKv() {
    return numHeadsKv;
  }

  /** Of K, 1 .. 256; no default. */
  public KvCacheDesc headDim(long headDim) {
    this.headDim = headDim;
    made = null;
    return this;
  }

  /** What {@link #headDim(long)} set, or the default. */
  public long headDim() {
    return headDim;
  }

  /** Of V, 1 .. 256; default 0: headDim. */
  public KvCacheDesc headDimV(long headDimV) {
    this.headDimV = headDimV;
    made = null;
    return this;
  }

  /** What {@link #headDimV(long)} set, or the default. */
  public long headDimV() {
    return headDimV;
  }

  /** DType of K and V; default DType.FLOAT32. */
  public KvCacheDesc dtype(DType dtype) {
    this.dtype = Objects.requireNonNull(dtype);
    made = null;
    return this;
  }

  /** What {@link #dtype(DType)} set, or the default. */
  public DType dtype() {
    return dtype;
  }

  private static Struct<RaKvCacheDesc> struct() {
    return new Struct<>(
        RingAttnConstants.KV_CACHE_DESC_SIZE, RaKvCacheDesc::new, RingAttn::raInitKvCacheDesc);
  }

  Struct<RaKvCacheDesc> made() {
    Struct<RaKvCacheDesc> known = made;
    return (known != null ? known : (made = make())).usable();
  }

  private Struct<RaKvCacheDesc> make() {
    Struct<RaKvCacheDesc> struct = struct();
    RaKvCacheDesc c = struct.c;
    c.setPageTokens(pageTokens);
    c.setNumPages(numPages);
    c.setNumHeadsKv(numHeadsKv);
    c.setHeadDim(headDim);
    c.setHeadDimV(headDimV);
    c.setDtype(dtype.value());
    return struct;
  }
}
