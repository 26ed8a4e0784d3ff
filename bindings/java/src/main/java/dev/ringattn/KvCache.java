package dev.ringattn;

import dev.ringattn.internal.RaAppendArgs;
import dev.ringattn.internal.RaAttentionDesc;
import dev.ringattn.internal.RaDecodeArgs;
import dev.ringattn.internal.RaKvCacheDesc;
import dev.ringattn.internal.RaKvCacheStatistics;
import dev.ringattn.internal.RingAttn;
import java.lang.ref.Cleaner;
import java.lang.ref.Reference;
import java.util.function.LongConsumer;
import java.util.function.LongFunction;
import java.util.function.LongUnaryOperator;

/**
 * Keys and values of many sequences that grow token by token, in pages that are spread over the
 * ranks of a context, for {@link #decode}.
 *
 * <p>A sequence is a number that {@link #createSequence} or {@link #fork} gave. {@link #append}
 * puts tokens behind it, decode attends its last tokens to all of them, {@link #truncate} and
 * {@link #free} give pages back. {@link #moveTo} goes on with fewer ranks where some are gone.
 *
 * <p>Page i of a sequence has its tokens i * pageTokens and the pageTokens - 1 behind, and lies on
 * rank (b + i) mod worldSize, where b differs from sequence to sequence. Which page is where is
 * known on every rank, without a word between them: all ranks make the same calls with a cache, in
 * the same order. So they get the same sequences, and the same refusal, as where there is no page
 * left on some rank, or a sequence is not known; what is refused has changed nothing. Ranks that
 * have made other calls get MISMATCH from the next decode. Only that one sends anything; the others
 * are local and do not block.
 *
 * <p>Threads: any, but a call waits until the one that another thread makes on the same cache has
 * returned.
 *
 * <p>A cache outlives its context: that may be closed, and until the cache was moved to another one
 * append and decode say INVALID_STATE. What nobody closed, the garbage collector closes; its pages
 * are outside of the heap, and it does not know how many they are.
 */
public final class KvCache implements AutoCloseable {
  private final KvCacheDesc desc;
  private final Handle handle;
  private final Cleaner.Cleanable cleanable;
  private Context context; // whose it is now

  /**
   * Makes an empty cache for the ranks of `context`, with memory for all pages of this rank:
   * numPages * pageTokens * numHeadsKv * (headDim + headDimV) elements, and beside it some 4 bytes
   * for each page of each rank.
   *
   * <p>Errors: INVALID_ARGUMENT, NOT_SUPPORTED (the CPU backend has caches), OUT_OF_MEMORY.
   */
  public KvCache(Context context, KvCacheDesc desc) {
    this.context = context;
    this.desc = new KvCacheDesc(desc);
    Struct<RaKvCacheDesc> d = this.desc.made();
    handle = new Handle(context.get(c -> RingAttn.raCreateKvCache(c, d.c)));
    d.keepAlive();
    cleanable = Context.CLEANER.register(this, handle);
  }

  /**
   * A new sequence without tokens, which takes no page. Returns its number, &gt;= 0 and never given
   * again, the same on every rank. Errors: OUT_OF_MEMORY.
   */
  public long createSequence() {
    return number(RingAttn::raCreateSequence);
  }

  /**
   * A new sequence that begins with all tokens of `sequence`: both share the pages, which stay as
   * long as anybody has them. Whichever first appends to a page that they share, and that is not
   * full, gets one of its own for it, on the same rank.
   *
   * <p>Returns the new sequence's number. Errors: INVALID_ARGUMENT (`sequence` is not known, or was
   * freed), OUT_OF_MEMORY.
   */
  public long fork(long sequence) {
    return number(cache -> RingAttn.raForkSequence(cache, sequence));
  }

  /**
   * Leaves the first `length` tokens, 0 &lt;= length &lt;= those it has, and gives back pages of
   * the others. Errors: INVALID_ARGUMENT.
   */
  public void truncate(long sequence, long length) {
    run(cache -> RingAttn.raTruncateSequence(cache, sequence, length));
  }

  /**
   * Gives back the pages of a sequence, which is no more. Errors: INVALID_ARGUMENT (also if that
   * was done before).
   */
  public void free(long sequence) {
    run(cache -> RingAttn.raFreeSequence(cache, sequence));
  }

  /** Tokens of a sequence, lost ones included. Errors: INVALID_ARGUMENT. */
  public long length(long sequence) {
    return number(cache -> RingAttn.raGetSequenceLength(cache, sequence));
  }

  /**
   * Appends tokens to sequences: one to each, as in decoding, or many, as of a prompt. A sequence
   * takes a page for each pageTokens tokens begun. Local.
   *
   * <p>Errors: INVALID_ARGUMENT; OUT_OF_MEMORY where a rank has not enough free pages for all of
   * them: the message says which rank, how many it has and how many are needed, is the same on all
   * ranks, and nothing was appended to any sequence; INVALID_STATE where the last page is lost, or
   * the context is closed or in use by another thread. The context stays usable after each.
   */
  public void append(AppendArgs args) {
    args.requireTypes(desc);
    Struct<RaAppendArgs> a = args.made();
    run(cache -> context.local(c -> RingAttn.raAppend(c, cache, a.c)));
    a.keepAlive();
  }

  /**
   * Attends the last seqlenQ tokens of each of desc.batch sequences to all tokens of theirs: a new
   * token or several, as where guesses are checked, or a chunk of a prompt. Their keys and values
   * were appended before.
   *
   * <p>Collective: every rank calls it with an equal `desc`, the same sequences and the same q, and
   * gets the same out, to the last bit. Of `desc`, seqlenKv is -1: keys are those of the cache. A
   * query sees keys by mask, windows and their alignment, which is MaskAlignment.BOTTOM_RIGHT, as
   * in {@link Context#forward} with the sequence's length for seqlenKv; softmaxScale, softcap,
   * alibiSlopes and sinks are as there. numHeadsKv, headDim, headDimV and dtype are the cache's.
   * Documents, kvLengths, keyBias, dropout, mask slices, branches, numChunks but with
   * Schedule.RING, and shardings other than Sharding.CONTIGUOUS, the default, are not part of it.
   *
   * <p>With Schedule.PASS_Q each rank attends all queries to the keys that it has, and keys never
   * move: each of the batch * seqlenQ * numHeadsQ rows of partial results, headDimV + 1 numbers of
   * FLOAT32, goes to one rank that merges those of all ranks, in the order of ranks, and comes back
   * to all. With n such rows, of which a rank merges m, it sends (n - m) + (worldSize - 1) m of
   * them, whatever the cache holds: 2 (worldSize - 1) / worldSize times all of them, where they
   * divide evenly. With Schedule.RING each rank attends a part of the queries to all keys, which go
   * around, and then gives its part of the results to the others. Schedule.AUTO takes the first
   * where queries are fewer bytes than keys: t / n &lt; 2 numHeadsKv / numHeadsQ with t queries and
   * n keys, those of t included, over all sequences (Yang et al. 2024, "Context Parallelism for
   * Scalable Million-Token Inference"); and where worldSize is 1. {@link Context#statistics} says
   * which it was.
   *
   * <p>Blocking and errors as forward; INVALID_ARGUMENT also where a sequence has fewer than
   * seqlenQ tokens or is not known, or `desc` is of another dtype or shape than the cache;
   * INVALID_STATE also where a sequence has lost tokens.
   */
  public void decode(AttentionDesc desc, DecodeArgs args) {
    args.requireTypes(desc);
    Struct<RaAttentionDesc> d = desc.made();
    Struct<RaDecodeArgs> a = args.made();
    run(cache -> context.collective(c -> RingAttn.raDecode(c, cache, d.c, a.c)));
    d.keepAlive();
    a.keepAlive();
  }

  /** What the cache holds now. */
  public KvCacheStatistics statistics() {
    Struct<RaKvCacheStatistics> statistics = KvCacheStatistics.struct();
    run(cache -> RingAttn.raGetKvCacheStatistics(cache, statistics.c));
    return KvCacheStatistics.of(statistics);
  }

  /**
   * Makes the cache that of another context, with the ranks that are left: rank r of `context` is
   * the one that was rank formerRanks[r] of the context before, and brings its pages. Pages of
   * ranks that are not among them are lost; the sequences keep their lengths, and once {@link
   * #append} was given the lost tokens again ({@link #lostTokens}), or they are cut off or freed,
   * go on as before.
   *
   * <p>`formerRanks` has as many entries as `context` has ranks, each another one, the same on
   * every rank. The former context may be broken, or closed. Errors: INVALID_ARGUMENT,
   * NOT_SUPPORTED (the CPU backend has caches), OUT_OF_MEMORY; the cache is then as it was.
   */
  public void moveTo(Context context, int... formerRanks) {
    int worldSize = context.info().worldSize();
    Struct.requireEntries("former_ranks", formerRanks.length, "world_size", worldSize);
    run(
        cache -> {
          context.local(c -> RingAttn.raMoveKvCache(cache, c, formerRanks));
          this.context = context;
        });
  }

  /**
   * The first token of `sequence` from position `from` on that is lost, 0 &lt;= from &lt;= its
   * length; its length, if there is none. Tokens are lost up to the end of the page, or of the
   * sequence, at least. Errors: INVALID_ARGUMENT.
   */
  public long lostTokens(long sequence, long from) {
    return number(cache -> RingAttn.raGetLostTokens(cache, sequence, from));
  }

  /**
   * Frees the cache and its memory; once, after which it does nothing. From any thread: waits for a
   * call in progress, which {@link Context#close} or {@link Context#abort} ends where it waits for
   * other ranks.
   */
  @Override
  public synchronized void close() {
    cleanable.clean();
  }

  private synchronized <R> R call(LongFunction<R> function) {
    try {
      return function.apply(handle.open());
    } finally {
      Reference.reachabilityFence(this); // else the cleaner may free it during the call
    }
  }

  private void run(LongConsumer procedure) {
    call(
        cache -> {
          procedure.accept(cache);
          return null;
        });
  }

  private long number(LongUnaryOperator function) {
    return call(function::applyAsLong);
  }

  /** The C cache; 0 when it is freed. */
  private static final class Handle implements Runnable {
    private long cache;

    Handle(long cache) {
      this.cache = cache;
    }

    long open() {
      if (cache == 0) {
        throw new RingAttentionException(Status.INVALID_STATE, "the cache is closed");
      }
      return cache;
    }

    @Override
    public void run() {
      RingAttn.raDestroyKvCache(cache);
      cache = 0;
    }
  }
}
