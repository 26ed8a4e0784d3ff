import java.nio.FloatBuffer;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/** Whatever fails in a pool, each question is answered, and the next one may succeed. */
final class PoolTest {
  /** More than rank 0 has memory for, which breaks the group: the others do not wait for it. */
  private static final byte[] TOO_LONG = new byte[Ranks.COUNT * RankGroup.LONGEST_TEXT + 1];

  private static boolean isAnswered(Pool pool, byte[] text) throws Exception {
    Optional<CompletableFuture<FloatBuffer>> answer = pool.ask(text, text.length + 1);
    try {
      return answer.orElseThrow().get(30, TimeUnit.SECONDS) != null;
    } catch (ExecutionException e) {
      return false;
    }
  }

  private static void require(boolean condition, String what) {
    if (!condition) {
      throw new AssertionError(what);
    }
  }

  public static void main(String[] arguments) throws Exception {
    Thread.setDefaultUncaughtExceptionHandler(
        (thread, failure) -> {
          failure.printStackTrace();
          System.exit(1); // even if a worker hangs
        });
    RankGroup.Book book = new RankGroup.Book(new byte[100]);
    byte[] text = new byte[8];
    AtomicInteger made = new AtomicInteger();
    Pool pool =
        new Pool(
            () -> {
              int n = made.incrementAndGet();
              if (n == 2 || n == 3) {
                throw new IllegalStateException("no group now");
              }
              return new RankGroup(book);
            },
            1,
            4);
    require(isAnswered(pool, text), "a question");
    require(!isAnswered(pool, TOO_LONG), "one that breaks the group");
    require(!isAnswered(pool, text) && !isAnswered(pool, text), "without a group");
    require(made.get() == 3, "one attempt for each question, not " + made);
    require(isAnswered(pool, text), "with a new group");
    pool.close();

    made.set(0);
    try {
      new Pool(
          () -> {
            if (made.incrementAndGet() == 2) {
              throw new IllegalStateException("no second group");
            }
            return new RankGroup(book);
          },
          2,
          4);
      require(false, "a pool of one group instead of two");
    } catch (IllegalStateException e) {
      long end = System.nanoTime() + 10_000_000_000L; // ranks' threads need a moment to end
      while (Thread.activeCount() > 1 && System.nanoTime() < end) {
        Thread.sleep(1);
      }
      require(Thread.activeCount() == 1, "threads are left of what could not be made");
    }
  }
}
