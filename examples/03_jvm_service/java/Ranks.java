import dev.ringattn.Context;
import dev.ringattn.ContextConfig;
import dev.ringattn.Transport;
import dev.ringattn.UniqueId;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicReference;

/** Four ranks in this process, each a context and, while they work, a thread. */
final class Ranks implements AutoCloseable {
  static final int COUNT = 4;

  /** What one rank does. */
  interface Work {
    void run(int rank, Context context);
  }

  private final Context[] contexts = new Context[COUNT];
  private final ExecutorService threads = Executors.newFixedThreadPool(COUNT);

  Ranks() {
    UniqueId id = UniqueId.create(Transport.LOCAL);
    try {
      onEveryRank(
          (r, none) -> {
            ContextConfig config = new ContextConfig().rank(r).worldSize(COUNT).uniqueId(id);
            contexts[r] = new Context(config.timeoutMs(30_000));
          });
    } catch (RuntimeException | Error e) {
      close();
      throw e;
    }
  }

  /**
   * Returns when all have done it. A collective call returns when all ranks have made it, so each
   * makes it in a thread of its own. If one fails, the others need not wait for it until their
   * time-out: they are let go, and the ranks are of no more use.
   */
  void onEveryRank(Work work) {
    List<Future<?>> calls = new ArrayList<>();
    AtomicReference<Throwable> first = new AtomicReference<>(); // what the others say comes of it
    for (int r = 0; r < COUNT; ++r) {
      int rank = r;
      calls.add(
          threads.submit(
              () -> {
                try {
                  work.run(rank, contexts[rank]);
                } catch (RuntimeException | Error e) {
                  first.compareAndSet(null, e);
                  if (contexts[rank] != null) {
                    contexts[rank].abort();
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
    if (first.get() != null) {
      throw new IllegalStateException(first.get());
    }
  }

  /** Also of ranks that failed, or that never came to be. */
  @Override
  public void close() {
    threads.shutdown();
    for (Context context : contexts) {
      if (context != null) {
        context.close();
      }
    }
  }
}
