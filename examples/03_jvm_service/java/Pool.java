import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.function.Supplier;

/**
 * Groups of ranks, and a queue of what they are asked. A question is answered, or refused at once:
 * when as many wait as the queue holds, and when the pool closes. Those that it has taken it
 * answers before it is closed. A question that breaks its group gets the failure; the next one gets
 * a new group, or why there is none.
 */
final class Pool {
  private record Question(byte[] text, long context, CompletableFuture<FloatBuffer> answer) {}

  private static final Question LAST = new Question(null, 0, null);

  private final Supplier<RankGroup> newGroup;
  private final BlockingQueue<Question> queue;
  private final int longestQueue;
  private final List<Thread> workers = new ArrayList<>();
  private boolean isClosing;

  /** With so many groups that newGroup has made, all now or none. */
  Pool(Supplier<RankGroup> newGroup, int groups, int longestQueue) {
    this.newGroup = newGroup;
    queue = new ArrayBlockingQueue<>(longestQueue + groups); // room for each worker's LAST
    this.longestQueue = longestQueue;
    List<RankGroup> made = new ArrayList<>();
    try {
      while (made.size() < groups) {
        made.add(newGroup.get());
      }
    } catch (RuntimeException | Error e) {
      made.forEach(RankGroup::close);
      throw e;
    }
    for (RankGroup group : made) {
      workers.add(new Thread(() -> work(group), "group " + workers.size()));
    }
    workers.forEach(Thread::start);
  }

  /** What RankGroup.predict says, later; empty if the queue is full. */
  synchronized Optional<CompletableFuture<FloatBuffer>> ask(byte[] text, long context) {
    if (isClosing || queue.size() >= longestQueue) {
      return Optional.empty();
    }
    Question question = new Question(text, context, new CompletableFuture<>());
    queue.add(question);
    return Optional.of(question.answer);
  }

  private void work(RankGroup group) {
    try {
      for (Question question; (question = queue.take()) != LAST; ) {
        try {
          group = group == null ? newGroup.get() : group;
          question.answer.complete(group.predict(question.text, question.context));
        } catch (RuntimeException | Error e) { // a group that failed once is of no more use
          question.answer.completeExceptionally(e);
          if (group != null) {
            group.close();
            group = null;
          }
        }
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    } finally {
      if (group != null) {
        group.close();
      }
    }
  }

  void close() throws InterruptedException {
    synchronized (this) {
      if (!isClosing) {
        isClosing = true;
        workers.forEach(worker -> queue.add(LAST));
      }
    }
    for (Thread worker : workers) {
      worker.join();
    }
  }
}
