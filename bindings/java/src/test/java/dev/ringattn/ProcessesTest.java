package dev.ringattn;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.util.Optional;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicLong;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * A ring of four over ZeroMQ: three ranks of one JVM, and one of another, which is killed or
 * stopped while threads here catch NullPointerExceptions.
 */
@Timeout(300)
class ProcessesTest {
  private static final int WORLD_SIZE = 4;

  private static Context join(UniqueId id, int worldSize, int rank) {
    return new Context(
        Ranks.config(id, worldSize, rank).transport(Transport.ZEROMQ).timeoutMs(60_000));
  }

  /** Makes calls, forward and then of one kind only, until one fails. */
  private static RingAttentionException work(Context context, boolean backward, Runnable begun) {
    Small small = new Small(WORLD_SIZE);
    try {
      small.forward(context);
      begun.run();
      while (true) {
        if (backward) {
          small.backward(context);
        } else {
          small.forward(context);
        }
      }
    } catch (RingAttentionException e) {
      return e;
    }
  }

  /** The other JVM. It reads its orders, says that it is at work, and ends with the first. */
  static final class Fellow {
    public static void main(String[] arguments) throws IOException {
      BufferedReader orders = new BufferedReader(new InputStreamReader(System.in));
      int rank = Integer.parseInt(orders.readLine());
      boolean backward = Boolean.parseBoolean(orders.readLine());
      UniqueId id = new UniqueId(orders.readLine());
      Thread end =
          new Thread(
              () -> {
                try {
                  orders.readLine();
                } catch (IOException e) {
                  // it is over all the same
                }
                Runtime.getRuntime().halt(1);
              });
      end.setDaemon(true);
      end.start();
      try (Context context = join(id, WORLD_SIZE, rank)) {
        System.out.println(work(context, backward, () -> System.out.println("works")));
      }
    }
  }

  /** Finds null by a signal, once the compiler has seen that there is none. */
  static final class Nulls implements Runnable {
    final AtomicBoolean isOver = new AtomicBoolean();
    final AtomicLong caught = new AtomicLong();

    private static int first(int[] array) {
      return array[0];
    }

    @Override
    public void run() {
      int[] some = {1};
      int sum = 0;
      for (int n = 0; n < 100_000; ++n) {
        sum += first(some);
      }
      while (!isOver.get()) {
        try {
          sum += first(null);
        } catch (NullPointerException e) {
          caught.addAndGet(sum == 0 ? 0 : 1);
        }
      }
    }
  }

  /** The JVM under test; prints what is wrong. */
  static final class Host {
    private static final int VICTIM = Integer.getInteger("victim");
    private static final boolean BACKWARD = Boolean.getBoolean("backward");

    public static void main(String[] arguments) throws Exception {
      UniqueId id = UniqueId.create(Transport.ZEROMQ);
      Process fellow =
          Child.start(
              System.getProperty("java.class.path"),
              Fellow.class,
              Child.libraries(Child.LIBRARIES));
      try {
        watch(id, fellow);
      } finally {
        fellow.destroyForcibly();
      }
      String[] hashes = new String[2];
      UniqueId[] ids = {UniqueId.create(Transport.LOCAL), UniqueId.create(Transport.ZEROMQ)};
      Ranks.run(
          2,
          rank -> {
            try (Context threads = new Context(Ranks.config(ids[0], 2, rank));
                Context ring = join(ids[1], 2, rank)) {
              hashes[rank] = new Small(2).forward(threads) + " " + new Small(2).forward(ring);
            }
          });
      for (String hash : hashes) {
        if (!hash.split(" ")[0].equals(hash.split(" ")[1])) {
          System.out.println("results of threads and of a ring over ZeroMQ differ: " + hash);
        }
      }
      System.out.println("done");
    }

    /** Ends the JVM, and with it whoever waits for what has failed. */
    private static void giveUp(String why) {
      System.out.println(why);
      Runtime.getRuntime().halt(1);
    }

    private static void watch(UniqueId id, Process fellow) throws Exception {
      fellow
          .getOutputStream()
          .write((VICTIM + "\n" + BACKWARD + "\n" + id.text() + "\n").getBytes());
      fellow.getOutputStream().flush();
      Nulls nulls = new Nulls();
      Thread catching = new Thread(nulls);
      catching.setDaemon(true);
      catching.start();
      CountDownLatch begun = new CountDownLatch(WORLD_SIZE - 1);
      Thread striking =
          new Thread(
              () -> {
                try {
                  BufferedReader says =
                      new BufferedReader(new InputStreamReader(fellow.getInputStream()));
                  String line = says.readLine();
                  if (!"works".equals(line)) {
                    giveUp("the other JVM says " + line);
                  }
                  begun.await();
                  long before = nulls.caught.get();
                  while (nulls.caught.get() < before + 10_000) { // while the ring runs
                    Thread.sleep(1);
                  }
                  String signal = System.getProperty("signal");
                  new ProcessBuilder("sh", "-c", "kill -" + signal + " " + fellow.pid()).start();
                } catch (IOException | InterruptedException e) {
                  System.out.println(e);
                }
              });
      striking.setDaemon(true); // what it waits for may not come
      striking.start();
      Ranks.run(
          WORLD_SIZE,
          rank -> {
            if (rank == VICTIM) {
              return;
            }
            try (Context context = join(id, WORLD_SIZE, rank)) {
              RingAttentionException failure = work(context, BACKWARD, begun::countDown);
              Optional<RingAttentionException> reason = context.asyncError();
              if (failure.rank() != VICTIM
                  || reason.isEmpty()
                  || reason.get().status() != Status.PEER_LOST
                  || reason.get().rank() != VICTIM) {
                System.out.println("rank " + rank + ": " + failure + "; " + reason);
              }
            } catch (RuntimeException e) {
              giveUp("rank " + rank + ": " + e);
            }
          });
      if (begun.getCount() > 0) {
        giveUp("not all ranks made a call before one failed");
      }
      striking.join();
      nulls.isOver.set(true);
      catching.join();
    }
  }

  /** C1 finds every null by a signal; of all tiers together it is most. */
  @ParameterizedTest
  @CsvSource({
    "0, KILL, false, -XX:TieredStopAtLevel=1",
    "1, STOP, true, -XX:TieredStopAtLevel=1",
    "2, KILL, true, -XX:+TieredCompilation",
    "0, STOP, false, -XX:+TieredCompilation"
  })
  void outlivesItsPeer(int victim, String signal, boolean backward, String compiler)
      throws Exception {
    assumeTrue(RingAttention.capabilities().hasZeromq());
    String output =
        Child.run(
            0,
            Host.class,
            "-Dvictim=" + victim,
            "-Dsignal=" + signal,
            "-Dbackward=" + backward,
            compiler,
            Child.libraries(Child.LIBRARIES));
    assertEquals("done", output.strip());
  }
}
