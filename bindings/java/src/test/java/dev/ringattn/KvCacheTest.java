package dev.ringattn;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.function.Consumer;
import java.util.function.LongFunction;
import java.util.stream.LongStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** KV caches: what is decoded is what forward has of the same tokens, whatever was done before. */
@Timeout(120)
class KvCacheTest {
  static final int PAGE = 16;

  static KvCacheDesc shape(long numPages) {
    return new KvCacheDesc()
        .pageTokens(PAGE)
        .numPages(numPages)
        .numHeadsKv(2)
        .headDim(8)
        .headDimV(6);
  }

  static AttentionDesc desc(long batch, long seqlenQ) {
    return new AttentionDesc()
        .batch(batch)
        .seqlenQ(seqlenQ)
        .numHeadsQ(4)
        .numHeadsKv(2)
        .headDim(8)
        .headDimV(6)
        .mask(Mask.CAUSAL);
  }

  /** What one token has of a tensor. */
  private enum Part {
    Q(4 * 8),
    K(2 * 8),
    V(2 * 6),
    OUT(4 * 6);

    final int size;

    Part(int size) {
      this.size = size;
    }

    Array of(DType dtype, List<Long> tokens) {
      Array whole = new Array(dtype, (long) size * tokens.size());
      Array token = new Array(dtype, size);
      for (int n = 0; n < tokens.size(); ++n) {
        token.fill(tokens.get(n), ordinal());
        for (int i = 0; i < size; ++i) {
          whole.set((long) n * size + i, token.get(i));
        }
      }
      return whole;
    }
  }

  /**
   * A rank's cache and, beside it, which tokens its sequences have. A token is a number, by which
   * there is what it has of each tensor.
   */
  private static final class Cached implements AutoCloseable {
    final KvCache cache;
    final KvCacheDesc shape;
    final Map<Long, List<Long>> tokens = new TreeMap<>();
    private final Context alone = new Context(new ContextConfig().numThreads(1));
    private long made;

    Cached(Context context, KvCacheDesc shape) {
      this.shape = shape;
      cache = new KvCache(context, shape);
    }

    long create() {
      long sequence = cache.createSequence();
      assertEquals(null, tokens.put(sequence, new ArrayList<>()));
      return sequence;
    }

    long fork(long sequence) {
      long forked = cache.fork(sequence);
      assertEquals(null, tokens.put(forked, new ArrayList<>(tokens.get(sequence))));
      return forked;
    }

    void truncate(long sequence, int length) {
      cache.truncate(sequence, length);
      tokens.get(sequence).subList(length, tokens.get(sequence).size()).clear();
    }

    void free(long sequence) {
      cache.free(sequence);
      tokens.remove(sequence);
    }

    /** Tokens to be appended, as many to each sequence. */
    AppendArgs args(long[] sequences, int count, List<Long> fresh) {
      return new AppendArgs()
          .numTokens(count)
          .sequences(sequences)
          .k(Part.K.of(shape.dtype(), fresh).tensor())
          .v(Part.V.of(shape.dtype(), fresh).tensor());
    }

    /** `lengths` new tokens for each sequence. */
    void append(long[] sequences, long... lengths) {
      int count = (int) Arrays.stream(lengths).max().orElse(0);
      List<Long> fresh = new ArrayList<>();
      for (int n = 0; n < sequences.length * count; ++n) {
        fresh.add(made++);
      }
      cache.append(args(sequences, count, fresh).lengths(lengths));
      for (int n = 0; n < sequences.length; ++n) {
        tokens.get(sequences[n]).addAll(fresh.subList(n * count, n * count + (int) lengths[n]));
        assertEquals(tokens.get(sequences[n]).size(), cache.length(sequences[n]));
      }
    }

    /** Decodes, holds it to what forward has, and says what came out. */
    String decode(AttentionDesc desc, long... sequences) {
      int rows = (int) desc.seqlenQ();
      List<Long> last = new ArrayList<>();
      for (long sequence : sequences) {
        List<Long> all = tokens.get(sequence);
        last.addAll(all.subList(all.size() - rows, all.size()));
      }
      Array out = new Array(shape.dtype(), last.size() * (long) Part.OUT.size);
      Array lse = Array.floats(last.size() * 4L);
      cache.decode(
          desc,
          new DecodeArgs()
              .sequences(sequences)
              .q(Part.Q.of(shape.dtype(), last).tensor())
              .out(out.tensor())
              .lse(lse.tensor()));
      for (int n = 0; n < sequences.length; ++n) {
        List<Long> all = tokens.get(sequences[n]);
        Array expected = new Array(shape.dtype(), rows * (long) Part.OUT.size);
        Array expectedLse = Array.floats(rows * 4L);
        alone.forward(
            new AttentionDesc(desc).batch(1).seqlenKv(all.size()).schedule(Schedule.AUTO),
            new ForwardArgs()
                .q(Part.Q.of(shape.dtype(), all.subList(all.size() - rows, all.size())).tensor())
                .k(Part.K.of(shape.dtype(), all).tensor())
                .v(Part.V.of(shape.dtype(), all).tensor())
                .out(expected.tensor())
                .lse(expectedLse.tensor()));
        float near = shape.dtype() == DType.FLOAT32 ? 1e-5f : 1f / 64;
        assertNear(expected, out, n * expected.count(), near);
        assertNear(expectedLse, lse, n * expectedLse.count(), 1e-4f);
      }
      return out.hash() + lse.hash();
    }

    private static void assertNear(Array expected, Array got, long from, float near) {
      for (long i = 0; i < expected.count(); ++i) {
        assertEquals(expected.get(i), got.get(from + i), near);
      }
    }

    /** All that a refused call could have changed. */
    String state() {
      StringBuilder state = new StringBuilder().append(cache.statistics());
      for (long sequence : tokens.keySet()) {
        state.append(' ').append(cache.length(sequence));
      }
      return state.toString();
    }

    @Override
    public void close() {
      cache.close();
      alone.close();
    }
  }

  private interface Work {
    void run(Cached cached, Context context, int rank) throws Exception;
  }

  private static void onRanks(int worldSize, KvCacheDesc shape, Work work) throws Exception {
    UniqueId id = UniqueId.create(Transport.LOCAL);
    Ranks.run(
        worldSize,
        rank -> {
          try (Context context = new Context(Ranks.config(id, worldSize, rank));
              Cached cached = new Cached(context, shape)) {
            work.run(cached, context, rank);
          }
        });
  }

  @Test
  void decodesWhatForwardComputes() throws Exception {
    for (DType dtype : List.of(DType.FLOAT32, DType.BFLOAT16)) {
      for (int worldSize = 1; worldSize <= 3; ++worldSize) {
        int ranks = worldSize;
        String[] decoded = new String[ranks];
        onRanks(
            ranks,
            shape(20).dtype(dtype),
            (cached, context, rank) -> {
              StringBuilder hashes = new StringBuilder();
              AttentionDesc chunk = desc(3, 4).dtype(dtype);
              AttentionDesc token = desc(3, 1).dtype(dtype).softcap(20).windowLeft(30);
              long[] all = {cached.create(), cached.create(), cached.create()};
              cached.append(all, 40, 4, 17); // prompts
              for (Schedule schedule : List.of(Schedule.RING, Schedule.PASS_Q, Schedule.AUTO)) {
                hashes.append(cached.decode(chunk.schedule(schedule), all));
                boolean isRing = schedule == Schedule.RING && ranks > 1;
                Schedule taken = isRing ? Schedule.RING : Schedule.PASS_Q;
                assertEquals(taken, context.statistics().schedule());
              }
              hashes.append(cached.decode(desc(1, 40).dtype(dtype), all[0])); // no key before it
              assertEquals(
                  ranks == 1 ? Schedule.PASS_Q : Schedule.RING, context.statistics().schedule());
              for (int n = 0; n < 30; ++n) {
                cached.append(all, 1, 1, n % 2);
                hashes.append(cached.decode(token, all[2], all[0], all[1]));
              }
              cached.decode(desc(2, 1).dtype(dtype), all[1], all[1]);
              decoded[rank] = hashes.toString();
              cached.alone.forward(
                  desc(1, 1), // what is no decoding has no schedule of it
                  new ForwardArgs()
                      .q(Array.floats(32).tensor())
                      .k(Array.floats(16).tensor())
                      .v(Array.floats(12).tensor())
                      .out(Array.floats(24).tensor()));
              assertEquals(Schedule.AUTO, cached.alone.statistics().schedule());
            });
        for (String hashes : decoded) {
          assertEquals(decoded[0], hashes);
        }
      }
    }
  }

  @Test
  void forksTruncatesAndFrees() throws Exception {
    onRanks(
        2,
        shape(10),
        (cached, context, rank) -> {
          KvCache cache = cached.cache;
          assertEquals(10 * PAGE * 2 * (8 + 6) * 4, cache.statistics().memory());
          long first = cached.create();
          cached.append(new long[] {first}, 3 * PAGE + 5);
          KvCacheStatistics before = cache.statistics();
          long second = cached.fork(first);
          assertEquals(before.usedPages(), cache.statistics().usedPages());
          assertEquals(2 * before.numTokens(), cache.statistics().numTokens());

          cached.append(new long[] {first, second}, 2, 1); // both go on in a page that they shared
          cached.append(new long[] {second}, 20);
          cached.decode(desc(2, 3), first, second);
          cached.truncate(first, PAGE + 1);
          cached.append(new long[] {first}, 1);
          cached.decode(desc(2, 2), second, first);

          long third = cached.fork(first);
          cached.free(first);
          cached.append(new long[] {third}, 3);
          cached.decode(desc(2, 2), third, second);
          long fourth = cached.create();
          assertNotEquals(first, fourth);
          cached.append(new long[] {fourth}, 0);
          assertEquals(0, cache.length(fourth));

          assertEquals(3, cache.statistics().numSequences());
          for (long sequence : List.copyOf(cached.tokens.keySet())) {
            cached.free(sequence);
          }
          KvCacheStatistics after = cache.statistics();
          assertEquals(0, after.numSequences() + after.numTokens() + after.usedPages());
          assertEquals(10, after.freePages());
          assertEquals(10, after.leastFreePages());
        });
  }

  @Test
  void survivesAnyOperations() throws Exception {
    long seed = System.nanoTime();
    try {
      onRanks(3, shape(12), (cached, context, rank) -> operate(cached, new Random(seed)));
    } catch (AssertionError | RingAttentionException e) {
      throw new AssertionError("seed " + seed + ": " + e.getMessage(), e);
    }
  }

  /** Operations that `random` draws, the same on every rank, and after each decoding from all. */
  private static void operate(Cached cached, Random random) {
    int refused = 0;
    for (int n = 0; n < 200; ++n) {
      List<Long> all = List.copyOf(cached.tokens.keySet());
      long any = all.isEmpty() ? -1 : all.get(random.nextInt(all.size()));
      int what = all.isEmpty() ? 0 : random.nextInt(8);
      String state = cached.state();
      try {
        switch (what) {
          case 0 -> cached.create();
          case 1 -> cached.fork(any);
          case 2 -> cached.free(any);
          case 3 -> cached.truncate(any, random.nextInt(cached.tokens.get(any).size() + 1));
          default -> cached.append(new long[] {any}, random.nextInt(60));
        }
      } catch (RingAttentionException e) {
        assertEquals(Status.OUT_OF_MEMORY, e.status(), e.getMessage());
        assertEquals(state, cached.state());
        ++refused;
      }
      long[] filled =
          cached.tokens.entrySet().stream()
              .filter(entry -> entry.getValue().size() > 1)
              .mapToLong(Map.Entry::getKey)
              .toArray();
      if (filled.length > 0) {
        cached.decode(desc(filled.length, 2), filled);
      }
    }
    assertTrue(refused < 150, refused + " of 200 were refused");
  }

  @Test
  void goesOnWithFewerRanks() throws Exception {
    UniqueId[] ids = {UniqueId.create(Transport.LOCAL), UniqueId.create(Transport.LOCAL)};
    int[] former = {0, 2}; // 1 is gone
    Ranks.run(
        3,
        rank -> {
          Context before = new Context(Ranks.config(ids[0], 3, rank));
          try (Cached cached = new Cached(before, shape(20))) {
            KvCache cache = cached.cache;
            long[] all = {cached.create(), cached.create(), cached.create()};
            cached.append(all, 5 * PAGE + 3, 3, 2 * PAGE);
            String decoded = cached.decode(desc(3, 3), all);
            before.close();
            refuses(Status.INVALID_STATE, "closed", () -> cached.append(all, 1, 1, 1));
            refuses(Status.INVALID_STATE, "closed", () -> cached.decode(desc(3, 3), all));
            assertEquals(2 * PAGE, cache.lostTokens(all[2], 0)); // none
            if (rank == 1) {
              return;
            }

            int now = rank / 2;
            try (Context context = new Context(Ranks.config(ids[1], 2, now))) {
              String state = cached.state();
              refuses("has 3 entries; must have 2", () -> cache.moveTo(context, 0, 1, 2));
              refuses("[1] is 3; must be 0 .. 2", () -> cache.moveTo(context, 0, 3));
              refuses("[1] is 0, as one before", () -> cache.moveTo(context, 0, 0));
              refuses("former_ranks[" + now + "]", () -> cache.moveTo(context, 2, 0));
              assertEquals(state, cached.state());
              assertThrows(NullPointerException.class, () -> cache.moveTo(context, (int[]) null));
              assertThrows(NullPointerException.class, () -> cache.moveTo(null, former));
              cache.moveTo(context, former);

              long lostPages = cache.statistics().lostPages();
              assertTrue(lostPages > 0);
              refuses(Status.INVALID_STATE, "lost tokens", () -> cached.decode(desc(3, 3), all));
              for (long sequence : all) {
                List<Long> tokens = cached.tokens.get(sequence);
                assertEquals(tokens.size(), cache.length(sequence));
                long end;
                for (long from = 0; ; from = end) {
                  long lost = cache.lostTokens(sequence, from);
                  if (lost == tokens.size()) {
                    break;
                  }
                  assertEquals(0, lost % PAGE);
                  end = Math.min(lost + PAGE, tokens.size());
                  List<Long> again = tokens.subList((int) lost, (int) end);
                  cache.append(
                      cached.args(new long[] {sequence}, again.size(), again).positions(lost));
                  --lostPages;
                }
              }
              assertEquals(0, lostPages);
              assertEquals(0, cache.statistics().lostPages());
              String again = cached.decode(desc(3, 3), all);
              assertFalse(decoded.isEmpty() || again.isEmpty());
              cached.append(all, 1, 1, 1);
              cached.decode(desc(3, 1), all);
              refuses("from is", () -> cache.lostTokens(all[1], 5));
            }
          } finally {
            before.close();
          }
        });
  }

  private static void refuses(String words, Runnable call) {
    refuses(Status.INVALID_ARGUMENT, words, call);
  }

  private static void refuses(Status status, String words, Runnable call) {
    RingAttentionException failure = assertThrows(RingAttentionException.class, call::run);
    assertEquals(status, failure.status(), failure.getMessage());
    assertTrue(failure.getMessage().contains(words), failure.getMessage());
  }

  @Test
  void refusesWhatDoesNotFit() throws Exception {
    onRanks(
        2,
        shape(3),
        (cached, context, rank) -> {
          KvCache cache = cached.cache;
          long[] all = {cached.create(), cached.create()};
          long freed = cached.create();
          cached.free(freed);
          cached.append(all, 20, 3);
          String decoded = cached.decode(desc(2, 2), all);
          String state = cached.state();

          refuses("sequence is " + freed, () -> cache.free(freed));
          for (long unknown : new long[] {freed, -1, Long.MIN_VALUE, Long.MAX_VALUE}) {
            for (Consumer<KvCache> use : uses(unknown)) {
              refuses("" + unknown, () -> use.accept(cache));
            }
          }
          refuses("length is 21; must be 0 .. 20", () -> cache.truncate(all[0], 21));
          refuses("length is -1", () -> cache.truncate(all[0], -1));
          refuses("from is 21; must be 0 .. 20", () -> cache.lostTokens(all[0], 21));

          List<Long> fresh = LongStream.range(0, 2 * 6).boxed().toList();
          LongFunction<AppendArgs> append = n -> cached.args(all, (int) n, fresh);
          refuses("num_tokens is -1", () -> cache.append(append.apply(6).numTokens(-1)));
          refuses("num_tokens is -1", () -> cache.append(new AppendArgs().sequences(all[0])));
          refuses("k.size is", () -> cache.append(append.apply(7)));
          refuses(
              "lengths has 3 entries; must have 2, num_sequences",
              () -> cache.append(append.apply(6).lengths(1, 2, 3)));
          refuses(
              "positions has 1 entries; must have 2, num_sequences",
              () -> cache.append(append.apply(6).positions(20)));
          for (long[] none : new long[][] {{}, null}) {
            refuses("num_sequences is 0", () -> cache.append(append.apply(6).sequences(none)));
            refuses(
                "num_sequences is 0",
                () -> cache.decode(desc(2, 2), new DecodeArgs().sequences(none)));
          }
          refuses("lengths[1] is 7", () -> cache.append(append.apply(6).lengths(1, 7)));
          refuses("positions[0] is 4", () -> cache.append(append.apply(6).positions(4, 3)));
          refuses("as one before", () -> cache.append(append.apply(6).sequences(all[0], all[0])));
          Tensor halves = new Array(DType.BFLOAT16, 500).tensor();
          refuses(
              "k holds BFLOAT16; cache.dtype is FLOAT32",
              () -> cache.append(append.apply(6).k(halves)));
          refuses("v.data is NULL", () -> cache.append(append.apply(6).v(null)));
          refuses("stream", () -> cache.append(append.apply(6).stream(8)));
          refuses(Status.OUT_OF_MEMORY, "pages", () -> cached.append(all, 16 * 4, 0));
          refuses(Status.OUT_OF_MEMORY, "pages", () -> cached.append(all, 16 * 2, 16 * 2));

          DecodeArgs decode =
              new DecodeArgs()
                  .sequences(all)
                  .q(Array.floats(2 * 4 * Part.Q.size).tensor())
                  .out(Array.floats(2 * 4 * Part.OUT.size).tensor());
          refuses("must have at least seqlen_q = 4", () -> cache.decode(desc(2, 4), decode));
          refuses("num_sequences is 2", () -> cache.decode(desc(1, 2), decode));
          refuses(
              "q holds BFLOAT16; desc.dtype is FLOAT32",
              () -> cache.decode(desc(2, 2), new DecodeArgs(decode).q(halves)));
          refuses(
              "dtype is",
              () ->
                  cache.decode(
                      desc(2, 2).dtype(DType.BFLOAT16),
                      new DecodeArgs(decode).q(halves).out(halves)));
          refuses("head_dim is 16", () -> cache.decode(desc(2, 2).headDim(16), decode));
          refuses("seqlen_kv is 20", () -> cache.decode(desc(2, 2).seqlenKv(20), decode));
          refuses("out is a read-only", () -> new DecodeArgs().out(readOnly()));
          refuses(
              "lse_size is 60",
              () ->
                  cache.decode(desc(2, 2), new DecodeArgs(decode).lse(Array.floats(15).tensor())));
          refuses(
              "lse has strides",
              () -> new DecodeArgs().lse(Array.floats(16).tensor().strides(8, 4, 1)));
          refuses("sinks", () -> cache.decode(desc(2, 2).numSinks(1), decode));

          refuses("num_pages is 0", () -> new KvCache(context, shape(0)));
          refuses("page_tokens is 8", () -> new KvCache(context, shape(3).pageTokens(8)));
          refuses("dtype", () -> new KvCache(context, shape(3).dtype(DType.SAME)));
          assertThrows(NullPointerException.class, () -> new KvCache(null, shape(3)));
          assertThrows(NullPointerException.class, () -> new KvCache(context, null));
          assertThrows(NullPointerException.class, () -> cache.append(null));
          assertThrows(NullPointerException.class, () -> cache.decode(desc(2, 2), null));
          assertThrows(NullPointerException.class, () -> cache.decode(null, decode));

          assertEquals(state, cached.state());
          assertEquals(decoded, cached.decode(desc(2, 2), all));
        });
  }

  private static Tensor readOnly() {
    ByteBuffer bytes = Array.floats(96).bytes.asReadOnlyBuffer();
    return Tensor.of(bytes.order(ByteOrder.nativeOrder()), DType.FLOAT32);
  }

  /** Each function that takes a sequence. */
  private static List<Consumer<KvCache>> uses(long sequence) {
    Tensor some = Array.floats(96).tensor();
    Tensor out = Array.floats(96).tensor();
    return List.of(
        cache -> cache.fork(sequence),
        cache -> cache.truncate(sequence, 0),
        cache -> cache.free(sequence),
        cache -> cache.length(sequence),
        cache -> cache.lostTokens(sequence, 0),
        cache -> cache.append(new AppendArgs().numTokens(1).sequences(sequence).k(some).v(some)),
        cache -> cache.decode(desc(1, 1), new DecodeArgs().sequences(sequence).q(some).out(out)));
  }

  @Test
  void saysWhereRanksDiffer() throws Exception {
    onRanks(
        2,
        shape(4),
        (cached, context, rank) -> {
          long sequence = cached.create();
          cached.append(new long[] {sequence}, 3 + rank);
          refuses(Status.MISMATCH, "", () -> cached.decode(desc(1, 1), sequence));
        });
  }

  @Test
  void closesOnce() {
    try (Context context = new Context(new ContextConfig())) {
      KvCache cache = new KvCache(context, shape(3));
      long sequence = cache.createSequence();
      cache.close();
      cache.close();
      for (Consumer<KvCache> use : uses(sequence)) {
        refuses(Status.INVALID_STATE, "the cache is closed", () -> use.accept(cache));
      }
      refuses(Status.INVALID_STATE, "the cache is closed", cache::createSequence);
      refuses(Status.INVALID_STATE, "the cache is closed", cache::statistics);
      refuses(Status.INVALID_STATE, "the cache is closed", () -> cache.moveTo(context, 0));
    }
  }

  /** Whoever closes waits; what waits for other ranks ends with the context. */
  @Test
  void closesDuringACall() throws Exception {
    CompletableFuture<Void> isOver = new CompletableFuture<>();
    onRanks(
        2,
        shape(4),
        (cached, context, rank) -> {
          long sequence = cached.create();
          cached.append(new long[] {sequence}, 3);
          cached.decode(desc(1, 1), sequence);
          if (rank == 1) {
            isOver.join(); // and does not come a second time
            return;
          }
          try {
            CompletableFuture<Void> call =
                CompletableFuture.runAsync(() -> cached.decode(desc(1, 2), sequence));
            Thread.sleep(50);
            CompletableFuture<Void> closing =
                CompletableFuture.runAsync(() -> cached.cache.close());
            Thread.sleep(50);
            assertFalse(call.isDone() || closing.isDone());
            context.close();
            ExecutionException failure = assertThrows(ExecutionException.class, call::get);
            assertEquals(Status.ABORTED, ((RingAttentionException) failure.getCause()).status());
            closing.get();
            refuses(Status.INVALID_STATE, "the cache is closed", cached.cache::statistics);
          } finally {
            isOver.complete(null);
          }
        });
  }

  /** Many threads that use one cache, of which some close it. */
  @Test
  void survivesAnyOrder() throws Exception {
    for (int n = 0; n < 100; ++n) {
      try (Context context = new Context(new ContextConfig().numThreads(1))) {
        KvCache cache = new KvCache(context, shape(30));
        Ranks.run(
            4,
            thread -> {
              try {
                for (int i = 0; i < 50; ++i) {
                  long sequence = cache.createSequence();
                  uses(sequence).get(5).accept(cache);
                  uses(sequence).get(6).accept(cache);
                  cache.free(sequence);
                  cache.statistics();
                }
                cache.close();
              } catch (RingAttentionException e) {
                assertEquals(Status.INVALID_STATE, e.status(), e.getMessage());
              }
            });
      }
    }
  }

  /** Nothing of a call is held by anybody but it, and caches are dropped. */
  @Test
  void survivesTheGarbageCollector() throws Exception {
    AtomicBoolean isOver = new AtomicBoolean();
    CompletableFuture<Void> collector =
        CompletableFuture.runAsync(
            () -> {
              while (!isOver.get()) {
                System.gc();
              }
            });
    try {
      for (int n = 0; n < 2; ++n) {
        UniqueId id = UniqueId.create(Transport.LOCAL);
        Ranks.run(
            2,
            rank -> {
              Cached cached = new Cached(new Context(Ranks.config(id, 2, rank)), shape(10));
              long sequence = cached.create();
              for (int i = 0; i < 3; ++i) {
                cached.append(new long[] {sequence}, 3);
                cached.decode(desc(1, 3), sequence);
              }
            });
      }
    } finally {
      isOver.set(true);
    }
    collector.get();
  }
}
