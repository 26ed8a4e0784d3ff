import dev.ringattn.AttentionDesc;
import dev.ringattn.Context;
import dev.ringattn.ContextConfig;
import dev.ringattn.ForwardArgs;
import dev.ringattn.Mask;
import dev.ringattn.MaskAlignment;
import dev.ringattn.MemoryRequirements;
import dev.ringattn.RingAttention;
import dev.ringattn.SequenceArgs;
import dev.ringattn.Sharding;
import dev.ringattn.Side;
import dev.ringattn.Tensor;
import dev.ringattn.Transport;
import dev.ringattn.UniqueId;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicReference;

/**
 * The ranks that share the text, as threads of this process: all calls of the library are in this
 * file; with another transport only the config differs.
 *
 * <p>The problem, in the library's words. There are `length` keys, one for each byte but the last,
 * and SCORED queries:
 *
 * <pre>
 * key, value j   byte j, 0 &lt;= j &lt; length
 * query i        byte t = length - SCORED + i + 1, the one after the key that query i faces
 * visible        j &lt;= t - 1 by the causal mask, j &gt;= t - context by windowLeft = context - 1
 * </pre>
 *
 * <p>so a byte is never visible to its own query.
 */
final class Ranks implements AutoCloseable {
  static final int SCORED = 2048;

  private final long length;
  private final Sharding sharding;
  private final Rank[] ranks;
  private final ExecutorService threads;

  /** One rank, and its shards. */
  private static final class Rank {
    Context context;
    FloatBuffer q;
    FloatBuffer k;
    FloatBuffer v;
    FloatBuffer out;
  }

  private interface Work {
    void run(int r, Rank rank);
  }

  Ranks(byte[] text, long length, int worldSize, Sharding sharding) {
    this.length = length;
    this.sharding = sharding;
    ranks = new Rank[worldSize];
    threads = Executors.newFixedThreadPool(worldSize);
    UniqueId id = UniqueId.create(Transport.LOCAL);
    try {
      onEveryRank(
          (r, none) -> {
            Rank rank = ranks[r] = new Rank();
            rank.context =
                new Context(new ContextConfig().rank(r).worldSize(worldSize).uniqueId(id));
            fill(r, rank, text);
          });
    } catch (RuntimeException | Error e) {
      close();
      throw e;
    }
  }

  static AttentionDesc describe(long length, long context, Sharding sharding) {
    return new AttentionDesc()
        .seqlenQ(SCORED)
        .seqlenKv(length)
        .headDim(InductionHead.DIM)
        .headDimV(InductionHead.ALPHABET)
        .softmaxScale(InductionHead.SOFTMAX_SCALE)
        .sharding(sharding)
        .mask(Mask.CAUSAL)
        .maskAlignment(MaskAlignment.BOTTOM_RIGHT)
        .windowLeft(context - 1)
        .numChunks(32); // what travels at once is a fixed part of a shard, and shrinks with it
  }

  /** The byte of the text that query `i` guesses. */
  static long getTarget(long length, long i) {
    return length - SCORED + i + 1;
  }

  /** [SCORED, ALPHABET]: the head's distribution over each scored byte. */
  FloatBuffer forward(long context) {
    AttentionDesc desc = describe(length, context, sharding);
    FloatBuffer whole = Tensor.allocateFloats(SCORED * InductionHead.ALPHABET);
    onEveryRank(
        (r, rank) -> {
          Tensor out = Tensor.of(rank.out);
          rank.context.forward(
              desc,
              new ForwardArgs()
                  .q(Tensor.of(rank.q))
                  .k(Tensor.of(rank.k))
                  .v(Tensor.of(rank.v))
                  .out(out));

          // Every rank puts its rows where they belong; no two ranks write the same one.
          SequenceArgs rows = new SequenceArgs().numHeads(1).dim(InductionHead.ALPHABET);
          RingAttention.joinSequence(
              desc, ranks.length, r, rows.shard(out).whole(Tensor.of(whole)));
        });
    return whole;
  }

  /** Tensors and workspace of the rank that needs most, in bytes. */
  long getMemory(long context) {
    AttentionDesc desc = describe(length, context, sharding);
    long most = 0;
    for (Rank rank : ranks) {
      MemoryRequirements memory = rank.context.memoryRequirements(desc);
      most = Math.max(most, memory.forwardTensors() + memory.forwardWorkspace());
    }
    return most;
  }

  /** What getMemory would say for the longest context, without making the ranks. */
  static long estimateMemory(long length, int worldSize, Sharding sharding) {
    AttentionDesc desc = describe(length, length, sharding);
    long most = 0;
    for (int r = 0; r < worldSize; ++r) {
      ContextConfig config = new ContextConfig().rank(r).worldSize(worldSize);
      MemoryRequirements memory = RingAttention.estimateMemory(config, desc);
      most = Math.max(most, memory.forwardTensors() + memory.forwardWorkspace());
    }
    return most;
  }

  @Override
  public void close() {
    threads.shutdown();
    for (Rank rank : ranks) {
      if (rank != null && rank.context != null) {
        rank.context.close();
      }
    }
  }

  // A collective call returns when all ranks have made it, so each makes it in a thread of its own.
  // If one fails, the others need not wait for it until their time-out: they are let go.
  private void onEveryRank(Work work) {
    List<Future<?>> calls = new ArrayList<>();
    AtomicReference<Throwable> first = new AtomicReference<>(); // what the others say comes of it
    for (int r = 0; r < ranks.length; ++r) {
      int rank = r;
      calls.add(
          threads.submit(
              () -> {
                try {
                  work.run(rank, ranks[rank]);
                } catch (RuntimeException | Error e) {
                  first.compareAndSet(null, e);
                  if (ranks[rank] != null && ranks[rank].context != null) {
                    ranks[rank].context.abort();
                  }
                }
              }));
    }
    for (Future<?> call : calls) {
      try {
        call.get();
      } catch (ExecutionException | InterruptedException e) {
        first.compareAndSet(null, e);
      }
    }
    if (first.get() instanceof RuntimeException failure) { // now that no rank is at work any more
      throw failure;
    } else if (first.get() != null) {
      throw new IllegalStateException(first.get());
    }
  }

  // A rank makes the tensors of its own tokens only: nobody ever holds those of the whole sequence.
  private void fill(int r, Rank rank, byte[] text) {
    AttentionDesc desc = describe(length, length, sharding);
    long[] queries = RingAttention.shardPositions(desc, ranks.length, r, Side.QUERY);
    long[] keys = RingAttention.shardPositions(desc, ranks.length, r, Side.KEY_VALUE);
    rank.q = Tensor.allocateFloats((long) queries.length * InductionHead.DIM);
    rank.k = Tensor.allocateFloats((long) keys.length * InductionHead.DIM);
    rank.v = Tensor.allocateFloats((long) keys.length * InductionHead.ALPHABET);
    rank.out = Tensor.allocateFloats((long) queries.length * InductionHead.ALPHABET);
    for (long i : queries) {
      rank.q.put(InductionHead.makeFeature(text, getTarget(length, i)));
    }
    for (int index = 0; index < keys.length; ++index) {
      rank.k.put(InductionHead.makeFeature(text, keys[index]));
      rank.v.put(index * InductionHead.ALPHABET + text[(int) keys[index]], 1);
    }
    rank.q.rewind();
    rank.k.rewind();
  }
}
