package dev.ringattn;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTimeoutPreemptively;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.time.Duration;
import java.util.List;
import java.util.Random;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.function.Consumer;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** A context's life: whatever is done to it, in whatever thread, is a result or an exception. */
@Timeout(120)
class ContextTest {
  private static Status status(Runnable call) {
    return assertThrows(RingAttentionException.class, call::run).status();
  }

  private static final List<Consumer<Context>> USES =
      List.of(
          context -> new Small(1).forward(context),
          context -> context.backward(new Small(1).desc, new BackwardArgs()),
          context -> context.checkSupport(new Small(1).desc),
          context -> context.memoryRequirements(new Small(1).desc),
          context -> context.runSelfTest(1, 1),
          context -> new Activations(context, MhaTest.desc(), MhaTest.mha()),
          context -> context.mhaForward(MhaTest.desc(), MhaTest.mha(), new MhaForwardArgs()),
          context -> context.mhaBackward(MhaTest.desc(), MhaTest.mha(), new MhaBackwardArgs()),
          context -> context.mhaRequirements(MhaTest.desc(), MhaTest.mha()),
          context -> context.allReduce(Array.floats(3).tensor()),
          context -> new KvCache(context, KvCacheTest.shape(2)).close(),
          Context::statistics,
          Context::info,
          Context::asyncError,
          Context::abort);

  @Test
  void closesOnce() {
    Context context = new Context(new ContextConfig());
    context.close();
    context.close();
    for (Consumer<Context> use : USES) {
      assertEquals(Status.INVALID_STATE, status(() -> use.accept(context)));
    }
    context.close();
  }

  @Test
  void saysWhatItIs() {
    Small small = new Small(1);
    try (Context context = new Context(new ContextConfig().numThreads(1))) {
      ContextInfo info = context.info();
      assertEquals(1, info.worldSize());
      assertEquals(Backend.CPU, info.backend());
      assertEquals(1, info.numThreads());
      assertEquals(300000, info.timeoutMs());
      assertTrue(
          List.of(RingAttention.capabilities().engines().split(",")).contains(info.engine()));
      assertTrue(context.checkSupport(small.desc).contains(info.engine()));
      assertEquals(0, context.statistics().steps());
      small.forward(context);
      MemoryRequirements memory = context.memoryRequirements(small.desc);
      assertEquals(memory.forwardSteps(), context.statistics().steps());
      assertEquals(Schedule.RING, memory.forwardSchedule());
      assertEquals(
          memory, RingAttention.estimateMemory(new ContextConfig().numThreads(1), small.desc));
      TimeEstimate time =
          RingAttention.estimateTime(
              new ContextConfig(),
              small.desc,
              new MachineRates().forwardFlops(1e9).backwardFlops(1e8));
      assertEquals(memory.forwardFlops() / 1e9, time.forwardSeconds());
      assertEquals(memory.backwardFlops() / 1e8, time.backwardSeconds());
      assertTrue(context.asyncError().isEmpty());
      context.runSelfTest(3, 1);
    }
  }

  /** What is missing is for C to refuse. */
  @Test
  void refusesEmptyArguments() {
    try (Context context = new Context(new ContextConfig())) {
      AttentionDesc desc = new Small(1).desc;
      assertEquals(Status.INVALID_ARGUMENT, status(() -> context.forward(desc, new ForwardArgs())));
      assertEquals(
          Status.INVALID_ARGUMENT, status(() -> context.backward(desc, new BackwardArgs())));
      assertThrows(NullPointerException.class, () -> context.forward(null, new ForwardArgs()));
      assertThrows(NullPointerException.class, () -> context.forward(desc, null));
      assertThrows(NullPointerException.class, () -> context.checkSupport(null));
      assertEquals(
          Status.INVALID_ARGUMENT,
          status(() -> context.mhaForward(desc, MhaTest.mha(), new MhaForwardArgs())));
      assertEquals(
          Status.INVALID_ARGUMENT,
          status(() -> context.mhaBackward(desc, MhaTest.mha(), new MhaBackwardArgs())));
      assertThrows(
          NullPointerException.class, () -> context.mhaForward(desc, null, new MhaForwardArgs()));
      assertThrows(NullPointerException.class, () -> context.allReduce(null));
    }
    assertThrows(NullPointerException.class, () -> new Context(null));
    assertEquals(
        Status.INVALID_ARGUMENT, status(() -> RingAttention.mergeAttention(new MergeArgs())));
  }

  @Test
  void namesTheRankThatAborted() throws Exception {
    Context[] contexts = pair();
    contexts[1].abort();
    for (Context context : contexts) {
      assertEquals(Status.INVALID_STATE, status(() -> new Small(2).forward(context)));
      RingAttentionException failure = context.asyncError().orElseThrow();
      assertEquals(Status.ABORTED, failure.status());
      assertEquals(1, failure.rank());
      context.close();
    }
  }

  /** A call that waits for a rank that does not come. */
  private static CompletableFuture<String> waiting(Context context) throws Exception {
    CompletableFuture<String> call =
        CompletableFuture.supplyAsync(() -> new Small(2).forward(context));
    Thread.sleep(50);
    assertFalse(call.isDone());
    return call;
  }

  private static Status statusOf(CompletableFuture<String> call) {
    ExecutionException failure = assertThrows(ExecutionException.class, call::get);
    return ((RingAttentionException) failure.getCause()).status();
  }

  private static Context[] pair() throws Exception {
    UniqueId id = UniqueId.create(Transport.LOCAL);
    Context[] contexts = new Context[2];
    Ranks.run(2, rank -> contexts[rank] = new Context(Ranks.config(id, 2, rank)));
    return contexts;
  }

  @Test
  void closesDuringACall() throws Exception {
    Context[] contexts = pair();
    CompletableFuture<String> call = waiting(contexts[0]);
    contexts[0].close();
    assertEquals(Status.ABORTED, statusOf(call));
    assertThrows(RingAttentionException.class, () -> new Small(2).forward(contexts[1]));
    contexts[1].close();
  }

  /** A rank that is done may go, whoever watches it, while another computes. */
  @Test
  void closesDuringLocalCalls() throws Exception {
    int tokens = 4096;
    AttentionDesc desc =
        new AttentionDesc()
            .seqlenQ(tokens)
            .headDim(64)
            .mask(Mask.CAUSAL)
            .sharding(Sharding.CONTIGUOUS);
    Tensor in = Array.floats(tokens / 2 * 64).fill(1, 0).tensor();
    for (int n = 0; n < 20; ++n) {
      Context[] contexts = pair();
      AtomicBoolean isClosed = new AtomicBoolean();
      Ranks.run(
          4,
          thread -> {
            if (thread < 2) {
              Tensor out = Array.floats(tokens / 2 * 64).tensor();
              contexts[thread].forward(desc, new ForwardArgs().q(in).k(in).v(in).out(out));
              contexts[thread].close();
              isClosed.set(true);
            } else {
              while (!isClosed.get()) {
                try {
                  contexts[0].info();
                } catch (RingAttentionException e) {
                  assertEquals(Status.INVALID_STATE, e.status());
                }
              }
            }
          });
    }
  }

  @Test
  void refusesASecondCallMeanwhile() throws Exception {
    Context[] contexts = pair();
    CompletableFuture<String> call = waiting(contexts[0]);
    assertEquals(Status.INVALID_STATE, status(() -> new Small(2).forward(contexts[0])));
    assertEquals(2, contexts[0].info().worldSize());
    assertTrue(contexts[0].asyncError().isEmpty());
    new Small(2).forward(contexts[1]);
    call.get();
    contexts[0].close();
    contexts[1].close();
  }

  /** Many threads that use and close one context, at times drawn at random. */
  @Test
  void survivesAnyOrder() throws Exception {
    long seed = System.nanoTime();
    Random random = new Random(seed);
    for (int n = 0; n < 100; ++n) {
      Context context = new Context(new ContextConfig().numThreads(1));
      int threads = 4;
      int closer = random.nextInt(threads);
      long[] pause = random.longs(threads, 0, 300_000).toArray();
      Ranks.run(
          threads,
          thread -> {
            for (long end = System.nanoTime() + pause[thread]; System.nanoTime() < end; ) {}
            if (thread == closer || thread == 0) {
              context.close();
            } else {
              for (Consumer<Context> use : USES) {
                try {
                  use.accept(context);
                } catch (RingAttentionException e) {
                  assertTrue(e.status() != Status.INTERNAL_ERROR, e + ", seed " + seed);
                }
              }
            }
          });
      context.close();
    }
  }

  /** The other rank learns that it is gone, long before its time-out. */
  @Test
  void isFreedWhenDropped() throws Exception {
    Context[] contexts = pair();
    CompletableFuture<String> call = waiting(contexts[0]);
    contexts[1] = null;
    while (!call.isDone()) {
      System.gc();
      Thread.sleep(10);
    }
    assertEquals(Status.PEER_LOST, statusOf(call));
    contexts[0].close();
  }

  /** Descriptions, arguments and buffers that nobody holds any more but the call. */
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
    UniqueId id = UniqueId.create(Transport.LOCAL);
    try {
      Ranks.run(
          2,
          rank -> {
            try (Context context = new Context(Ranks.config(id, 2, rank))) {
              String first = new Small(2).forward(context);
              for (int n = 0; n < 100; ++n) {
                assertEquals(first, new Small(2).forward(context));
              }
            }
          });
    } finally {
      isOver.set(true);
    }
    collector.get();
  }

  /** A call keeps what it began with, whatever is set meanwhile. */
  @Test
  void takesArgumentsAsTheyAre() throws Exception {
    Context[] contexts = pair();
    Small small = new Small(2);
    small.desc.documentOffsetsQ(0, 10, 64);
    Array out = small.tensor(4);
    ForwardArgs args = small.args(out);
    CompletableFuture<Void> call =
        CompletableFuture.runAsync(() -> contexts[0].forward(small.desc, args));
    Thread.sleep(50);
    AttentionDesc other = new AttentionDesc(small.desc);
    small.desc.documentOffsetsQ((long[]) null).seqlenQ(1L << 40);
    args.q(null).k(null).v(null).out(null).lse(null);
    System.gc();
    Small theirs = new Small(2);
    contexts[1].forward(other, theirs.args(theirs.tensor(4)));
    call.get();
    contexts[0].close();
    contexts[1].close();
  }

  @Test
  void waitsForRanksNoLongerThanTheyMayTake() {
    UniqueId id = UniqueId.create(Transport.LOCAL);
    ContextConfig config = Ranks.config(id, 2, 0).timeoutMs(50);
    RingAttentionException failure =
        assertTimeoutPreemptively(
            Duration.ofSeconds(20),
            () -> assertThrows(RingAttentionException.class, () -> new Context(config)));
    assertEquals(Status.TIMEOUT, failure.status());
    assertEquals(1, failure.rank());
  }

  @Test
  void logs() {
    List<String> lines = new java.util.concurrent.CopyOnWriteArrayList<>();
    RingAttention.setLogCallback((level, message) -> lines.add(level + message), LogLevel.DEBUG);
    try (Context context = new Context(new ContextConfig().numThreads(2))) {
      new Small(1).forward(context);
    } finally {
      RingAttention.setLogCallback(null, LogLevel.DEBUG);
    }
    int count = lines.size();
    assertTrue(count > 0);
    new Context(new ContextConfig()).close();
    assertEquals(count, lines.size());
  }
}
