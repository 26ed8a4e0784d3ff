package dev.ringattn;

import dev.ringattn.internal.RaAttentionDesc;
import dev.ringattn.internal.RaCapabilities;
import dev.ringattn.internal.RaContextConfig;
import dev.ringattn.internal.RaMachineRates;
import dev.ringattn.internal.RaMemoryRequirements;
import dev.ringattn.internal.RaMergeArgs;
import dev.ringattn.internal.RaSequenceArgs;
import dev.ringattn.internal.RaTimeEstimate;
import dev.ringattn.internal.RingAttn;
import java.nio.charset.StandardCharsets;

/** What needs no context. All of it is local, does not block, and may run in any thread. */
public final class RingAttention {
  private static final int LONGEST_ARRAY = Integer.MAX_VALUE - 8;

  private RingAttention() {}

  /** Version of the library that was loaded: major * 10000 + minor * 100 + patch. */
  public static int version() {
    return RingAttn.raGetVersion();
  }

  /** What this build can do on this machine. */
  public static Capabilities capabilities() {
    Struct<RaCapabilities> capabilities = Capabilities.struct();
    RingAttn.raGetCapabilities(capabilities.c);
    return Capabilities.of(capabilities);
  }

  /**
   * {@link Context#memoryRequirements} before any context or device exists: of `config` only rank,
   * worldSize, backend, transport, numThreads and engine are read. Errors: as those of a new
   * Context and of {@link Context#checkSupport}.
   */
  public static MemoryRequirements estimateMemory(ContextConfig config, AttentionDesc desc) {
    Struct<RaContextConfig> c = config.made();
    Struct<RaAttentionDesc> d = desc.made();
    Struct<RaMemoryRequirements> requirements = MemoryRequirements.struct();
    RingAttn.raEstimateMemory(c.c, d.c, requirements.c);
    c.keepAlive();
    d.keepAlive();
    return MemoryRequirements.of(requirements);
  }

  /**
   * Predicts how long a rank's calls take, by going through what all ranks do with a clock for
   * each; comparable with {@link CallStatistics}. Counted are the products of visible pairs, and
   * bytes, so that short calls take longer than this says. Of `config` only rank and worldSize are
   * read. Takes as long as planning for every rank does. Errors: INVALID_ARGUMENT, OUT_OF_MEMORY.
   */
  public static TimeEstimate estimateTime(
      ContextConfig config, AttentionDesc desc, MachineRates rates) {
    Struct<RaContextConfig> c = config.made();
    Struct<RaAttentionDesc> d = desc.made();
    Struct<RaMachineRates> r = rates.made();
    Struct<RaTimeEstimate> estimate = TimeEstimate.struct();
    RingAttn.raEstimateTime(c.c, d.c, r.c, estimate.c);
    c.keepAlive();
    d.keepAlive();
    r.keepAlive();
    return TimeEstimate.of(estimate);
  }

  /**
   * Tokens of one side that rank `rank` of `worldSize` owns; may be 0. Errors: INVALID_ARGUMENT.
   */
  public static long shardLength(AttentionDesc desc, int worldSize, int rank, Side side) {
    Struct<RaAttentionDesc> d = desc.made();
    long length = RingAttn.raGetShardLength(d.c, worldSize, rank, side.value());
    d.keepAlive();
    return length;
  }

  /**
   * Position in the whole sequence of token `index` of that shard, 0 &lt;= index &lt; {@link
   * #shardLength}. Errors: INVALID_ARGUMENT.
   */
  public static long shardPosition(
      AttentionDesc desc, int worldSize, int rank, Side side, long index) {
    Struct<RaAttentionDesc> d = desc.made();
    long position = RingAttn.raGetShardPosition(d.c, worldSize, rank, side.value(), index);
    d.keepAlive();
    return position;
  }

  /** The same for all tokens of that shard. */
  public static long[] shardPositions(AttentionDesc desc, int worldSize, int rank, Side side) {
    long length = shardLength(desc, worldSize, rank, side);
    return shardPositions(desc, worldSize, rank, side, 0, length);
  }

  /** The same for `count` tokens of that shard from token `first` on. */
  public static long[] shardPositions(
      AttentionDesc desc, int worldSize, int rank, Side side, long first, long count) {
    long length = shardLength(desc, worldSize, rank, side);
    long taken = Math.max(0, Math.min(count, length)); // the library refuses any other count
    RingAttentionException.require(
        taken <= LONGEST_ARRAY, () -> "count is " + count + "; an array holds " + LONGEST_ARRAY);
    long[] positions = new long[(int) taken];
    Struct<RaAttentionDesc> d = desc.made();
    RingAttn.raGetShardPositions(d.c, worldSize, rank, side.value(), first, count, positions);
    d.keepAlive();
    return positions;
  }

  /**
   * Which weights of one row dropout keeps: entry n is for key `firstKey` + n, whether the query
   * sees it or not. All true without dropout. `entry` is of the batch, `head` of Q; `query` and the
   * keys are positions of the whole sequence. For tests, and for those who compute a row by
   * themselves. Errors: INVALID_ARGUMENT.
   */
  public static boolean[] dropoutMask(
      AttentionDesc desc, long entry, long head, long query, long firstKey, int count) {
    boolean[] mask = new boolean[Math.max(0, count)]; // the library refuses a negative count
    Struct<RaAttentionDesc> d = desc.made();
    RingAttn.raGetDropoutMask(d.c, entry, head, query, firstKey, count, mask);
    d.keepAlive();
    return mask;
  }

  /**
   * Copies the tokens that `rank` owns out of the whole tensor of `args` into the shard. Host
   * memory. Where the elements are not desc.dtype, as those of out, lse and gradients may be, set
   * dtype. For lse [batch, head, n] set dtype to FLOAT32, dim to 1 and strides (numHeads * n, 1,
   * n), where n is the length of the whole sequence or of the shard. Errors: INVALID_ARGUMENT.
   */
  public static void splitSequence(AttentionDesc desc, int worldSize, int rank, SequenceArgs args) {
    Tensor.writable("shard", args.shard());
    requireTypes(desc, args);
    Struct<RaAttentionDesc> d = desc.made();
    Struct<RaSequenceArgs> a = args.made();
    RingAttn.raSplitSequence(d.c, worldSize, rank, a.c);
    d.keepAlive();
    a.keepAlive();
  }

  /** The reverse: copies the shard to its places in the whole, and leaves the other tokens. */
  public static void joinSequence(AttentionDesc desc, int worldSize, int rank, SequenceArgs args) {
    Tensor.writable("whole", args.whole());
    requireTypes(desc, args);
    Struct<RaAttentionDesc> d = desc.made();
    Struct<RaSequenceArgs> a = args.made();
    RingAttn.raJoinSequence(d.c, worldSize, rank, a.c);
    d.keepAlive();
    a.keepAlive();
  }

  /**
   * Combines attention over two disjoint sets of keys into attention over their union: lse =
   * log(exp(lse_a) + exp(lse_b)), out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b. Host
   * memory, on the calling thread. Errors: INVALID_ARGUMENT.
   */
  public static void mergeAttention(MergeArgs args) {
    Tensor.requireType("out_a", args.outA(), args.dtype(), "args.dtype");
    Tensor.requireType("out_b", args.outB(), args.dtype(), "args.dtype");
    Tensor.requireType("out", args.out(), args.dtype(), "args.dtype");
    Struct<RaMergeArgs> a = args.made();
    RingAttn.raMergeAttention(a.c);
    a.keepAlive();
  }

  /** Receives log lines; from any thread. Must not call this library, nor throw. */
  @FunctionalInterface
  public interface LogCallback {
    void log(LogLevel level, String message);
  }

  /**
   * Sends log messages of `minLevel` and above to `callback`; null, the initial state, discards
   * them. For the whole process. When it returns, no call of the earlier callback is in progress.
   */
  public static synchronized void setLogCallback(LogCallback callback, LogLevel minLevel) {
    RingAttn.raSetLogCallback(callback == null ? null : new Sink(callback), minLevel.value());
  }

  /** What JNI calls (bindings/swig/java.i). */
  private record Sink(LogCallback callback) {
    void log(int level, byte[] message) {
      try {
        callback.log(LogLevel.of(level), new String(message, StandardCharsets.UTF_8));
      } catch (Throwable thrown) {
        Thread thread = Thread.currentThread();
        thread.getUncaughtExceptionHandler().uncaughtException(thread, thrown);
      }
    }
  }

  private static void requireTypes(AttentionDesc desc, SequenceArgs args) {
    boolean isSame = args.dtype() == DType.SAME;
    DType dtype = isSame ? desc.dtype() : args.dtype();
    Tensor.requireType("whole", args.whole(), dtype, isSame ? "desc.dtype" : "args.dtype");
    Tensor.requireType("shard", args.shard(), dtype, isSame ? "desc.dtype" : "args.dtype");
  }
}
