package dev.ringattn;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/** Ranks that are threads. */
final class Ranks {
  interface Work {
    void run(int rank) throws Exception;
  }

  private Ranks() {}

  /**
   * Runs `work` for each rank; throws what the first of them threw that failed, when all are done.
   */
  static void run(int worldSize, Work work) throws Exception {
    ExecutorService threads = Executors.newFixedThreadPool(worldSize);
    List<Future<?>> ranks = new ArrayList<>();
    for (int r = 0; r < worldSize; ++r) {
      int rank = r;
      ranks.add(
          threads.submit(
              () -> {
                work.run(rank);
                return null;
              }));
    }
    threads.shutdown();
    Throwable first = null;
    for (Future<?> rank : ranks) {
      try {
        rank.get();
      } catch (ExecutionException e) {
        first = first == null ? e.getCause() : first;
      }
    }
    if (first instanceof Error error) {
      throw error;
    } else if (first != null) {
      throw (Exception) first;
    }
  }

  static ContextConfig config(UniqueId id, int worldSize, int rank) {
    return new ContextConfig().uniqueId(id).worldSize(worldSize).rank(rank).numThreads(1);
  }
}
