package dev.ringattn;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.atomic.AtomicBoolean;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** A JVM is as before, with the library in it. */
@Timeout(300)
class HostTest {
  private static List<String> status(String... names) throws IOException {
    return Files.readAllLines(Path.of("/proc/self/status")).stream()
        .filter(line -> List.of(names).contains(line.split(":")[0]))
        .toList();
  }

  // ---------------------------------------------------------------- signals

  /** Prints what it finds wrong. */
  static final class Signals {
    private static List<String> before;

    static void compare(String when) throws IOException {
      List<String> now = status("SigBlk", "SigIgn", "SigCgt");
      if (!before.equals(now)) {
        System.out.println(when + ": " + before + " became " + now);
      }
    }

    public static void main(String[] arguments) throws Exception {
      before = status("SigBlk", "SigIgn", "SigCgt");
      RingAttention.version();
      compare("after load");
      UniqueId id = UniqueId.create(Transport.LOCAL);
      Ranks.run(
          2,
          rank -> {
            try (Context context =
                new Context(
                    new ContextConfig().uniqueId(id).worldSize(2).rank(rank).numThreads(2))) {
              compare("with a context");
              new Small(2).forward(context);
              compare("after a call");
            }
          });
      compare("after close");
    }
  }

  @Test
  void leavesSignalsAlone() throws Exception {
    assertEquals("", Child.run(0, Signals.class, Child.libraries(Child.LIBRARIES)));
  }

  /** JNI itself has nothing to say against what is done. */
  @Test
  void passesTheChecksOfJni() throws Exception {
    String output = Child.run(0, JniUse.class, "-Xcheck:jni", Child.libraries(Child.LIBRARIES));
    assertEquals("done", output.strip());
  }

  static final class JniUse {
    public static void main(String[] arguments) throws Exception {
      RingAttention.setLogCallback((level, message) -> {}, LogLevel.DEBUG);
      try (Context context = new Context(new ContextConfig().numThreads(2))) {
        new Small(1).forward(context);
        context.checkSupport(new Small(1).desc);
        context.info();
        try (KvCache cache = new KvCache(context, KvCacheTest.shape(2))) {
          cache.fork(cache.createSequence());
          cache.moveTo(context, 0);
        }
        try {
          context.forward(new AttentionDesc(), new ForwardArgs());
        } catch (RingAttentionException e) {
          RingAttention.shardPositions(new Small(2).desc, 2, 0, Side.QUERY);
        }
      }
      RingAttention.setLogCallback(null, LogLevel.DEBUG);
      System.out.println("done");
    }
  }

  /** The JVM finds null by a signal that it handles. */
  @Test
  void catchesNullDuringCalls() throws Exception {
    AtomicBoolean isOver = new AtomicBoolean();
    UniqueId id = UniqueId.create(Transport.LOCAL);
    Ranks.run(
        3,
        rank -> {
          if (rank == 2) {
            try {
              int caught = 0;
              for (int n = 0; n < 100_000; ++n) {
                caught += isNull(n % 2 == 0 ? null : new int[1]) ? 1 : 0;
              }
              assertEquals(50_000, caught);
            } finally {
              isOver.set(true);
            }
            return;
          }
          try (Context context = new Context(Ranks.config(id, 2, rank))) {
            String first = new Small(2).forward(context);
            while (agree(context, isOver)) {
              assertEquals(first, new Small(2).forward(context));
            }
          }
        });
  }

  /** Rank 0 says whether there is another call, by the length of the next one. */
  private static boolean agree(Context context, AtomicBoolean isOver) {
    Array out = Array.floats(16);
    Array q = Array.floats(16);
    boolean isFirst = context.info().rank() == 0;
    Array v = Array.floats(16);
    v.set(0, isFirst && isOver.get() ? 1 : 0);
    AttentionDesc desc = new AttentionDesc().seqlenQ(2).headDim(16);
    ForwardArgs args =
        new ForwardArgs().q(q.tensor()).k(q.tensor()).v(v.tensor()).out(out.tensor());
    context.forward(desc, args);
    return out.get(0) == 0;
  }

  private static boolean isNull(int[] array) {
    try {
      return array[0] != 0;
    } catch (NullPointerException e) {
      return true;
    }
  }

  // ---------------------------------------------------------------- memory

  /** Prints by how many KiB 10,000 contexts make the process grow. */
  static final class Growth {
    private static long resident() throws Exception {
      for (int n = 0; n < 3; ++n) {
        System.gc();
        Thread.sleep(50);
      }
      return Long.parseLong(status("VmRSS").get(0).replaceAll("\\D", ""));
    }

    private static void use(int contexts) {
      Small small = new Small(1);
      ForwardArgs args = small.args(small.tensor(4));
      for (int n = 0; n < contexts; ++n) {
        Context context = new Context(new ContextConfig().numThreads(1));
        context.forward(small.desc, args);
        if (n % 10 > 0) {
          context.close(); // the others are the garbage collector's, which does not know their size
        } else if (n % 1000 == 0) {
          System.gc();
        }
      }
    }

    public static void main(String[] arguments) throws Exception {
      use(10_000);
      long least =
          Long.MAX_VALUE; // a leak shows each time, where the JVM or malloc grows only once
      for (int n = 0; n < 3; ++n) {
        long before = resident();
        use(10_000);
        least = Math.min(least, resident() - before);
      }
      System.out.println(least);
    }
  }

  @Test
  void doesNotGrow() throws Exception {
    String output =
        Child.run(
            0,
            Growth.class,
            "-Xms32m",
            "-Xmx32m",
            "-XX:+AlwaysPreTouch",
            "-XX:+UseSerialGC",
            Child.libraries(Child.LIBRARIES));
    long kib = Long.parseLong(output.strip());
    assertTrue(kib <= 2048, "10,000 contexts took " + kib + " KiB");
  }
}
