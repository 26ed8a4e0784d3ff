import dev.ringattn.KvCacheStatistics;
import java.io.ByteArrayOutputStream;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Iterator;
import java.util.List;
import java.util.Optional;
import java.util.Queue;
import java.util.SplittableRandom;
import java.util.function.Supplier;

/**
 * Goes on with many texts at once, byte by byte: continuous batching (Yu et al. 2022, "Orca"). One
 * thread does it in steps:
 *
 * <pre>
 *   who has left or has all its bytes gives its pages back
 *   who waits comes in, in order, while there are pages for its last byte too
 *   prompts are read on, a few hundred bytes of them, so that others need not wait long
 *   all others get a byte
 * </pre>
 *
 * <p>So nothing runs out of pages on the way. A failure ends those who were in, with its words; the
 * next ones get new ranks.
 *
 * <p>The bytes of a text are chosen by its request alone, not by what else goes on; but their
 * probabilities are summed in an order that follows from where pages lie, and agree but for
 * rounding.
 */
final class Generator {
  static final int LONGEST_PROMPT = 4096;
  static final int MOST_BYTES = 4096;
  static final int HOTTEST = 10;

  private static final int CHUNK = 128; // bytes of a prompt that are read at once
  private static final int CHUNKS = 4; // of a step

  /** `temperature`: 0 takes the likeliest byte; 1 each as often as the model says. */
  record Request(byte[] prompt, int maxBytes, double temperature, long seed) {}

  /** What has come since the last time, and if nothing comes behind it, why; else null. */
  record Part(byte[] bytes, String end) {}

  /** What goes on now; pages are those of each rank. */
  record State(int running, int waiting, long usedPages, long freePages) {}

  /** A text that grows. */
  static final class Stream {
    private final Request request;
    private final ByteArrayOutputStream fresh = new ByteArrayOutputStream(); // not yet taken
    private String end; // why there are no more
    private volatile boolean isCancelled;

    // Of the generator's thread alone.
    private long sequence;
    private int length; // bytes that are in the cache
    private int written;
    private byte last; // that was written; not in the cache

    private Stream(Request request) {
      this.request = request;
    }

    /** Waits for bytes or the end, but no longer than this. */
    synchronized Part take(long milliseconds) throws InterruptedException {
      if (fresh.size() == 0 && end == null) {
        wait(milliseconds);
      }
      Part part = new Part(fresh.toByteArray(), end);
      fresh.reset();
      return part;
    }

    /** Whoever read it has gone: its pages are free in the next step. */
    void cancel() {
      isCancelled = true;
    }

    private boolean hasRead() {
      return length >= request.prompt.length;
    }

    private boolean isDone() {
      return written == request.maxBytes;
    }

    /** Of each rank, with all that it may write. */
    private int pages() {
      return CachedAttention.pagesFor(request.prompt.length + request.maxBytes);
    }

    private synchronized void write(float[] logits, int row) {
      last = (byte) choose(logits, row, request, written++);
      fresh.write(last);
      notifyAll();
    }

    private synchronized void end(String reason) {
      end = reason;
      notifyAll();
    }
  }

  private final Model model;
  private final Supplier<CachedAttention> newAttention;
  private final int numPages; // of each rank
  private final int mostStreams;
  private final Queue<Stream> waiting = new ArrayDeque<>();
  private final List<Stream> running = new ArrayList<>(); // of the thread alone
  private final Thread thread = new Thread(this::work, "generator");
  private CachedAttention attention; // of the thread alone; null after a failure
  private int taken; // streams that wait or run
  private boolean isClosing;
  private volatile State state;

  /** `tokens`: of all streams together. `mostStreams` at once, those that wait included. */
  Generator(Model model, int tokens, int mostStreams) {
    this(
        model,
        tokens,
        mostStreams,
        () -> new CachedAttention(model, tokens, Math.max(mostStreams, CHUNK)));
  }

  Generator(Model model, int tokens, int mostStreams, Supplier<CachedAttention> newAttention) {
    this.model = model;
    this.mostStreams = mostStreams;
    this.newAttention = newAttention;
    numPages = CachedAttention.pagesFor(tokens);
    attention = newAttention.get();
    describe();
    thread.start();
  }

  Model model() {
    return model;
  }

  State state() {
    return state;
  }

  /** Whether there could ever be pages for it. */
  boolean fits(Request request) {
    return new Stream(request).pages() <= numPages;
  }

  /** A stream, which ends for sure; empty if there are too many, or if this closes. */
  synchronized Optional<Stream> start(Request request) {
    if (isClosing || taken == mostStreams) {
      return Optional.empty();
    }
    Stream stream = new Stream(request);
    ++taken;
    waiting.add(stream);
    notifyAll();
    return Optional.of(stream);
  }

  /** Ends all streams after the step that is on. */
  void close() throws InterruptedException {
    synchronized (this) {
      isClosing = true;
      notifyAll();
    }
    thread.join();
  }

  // ---------------------------------------------------------------- the thread

  private void work() {
    while (awaitWork()) {
      try {
        attention = attention == null ? newAttention.get() : attention;
        leave();
        enter();
        step();
      } catch (RuntimeException | Error e) {
        endAll("failed: " + e.getMessage());
        if (attention != null) {
          attention.close();
          attention = null;
        }
      }
      describe();
    }
    endAll("stopped");
    if (attention != null) {
      attention.close();
    }
  }

  private synchronized boolean awaitWork() {
    try {
      while (!isClosing && taken == 0) {
        wait();
      }
    } catch (InterruptedException e) {
      isClosing = true;
    }
    return !isClosing;
  }

  private synchronized void end(Stream stream, String reason) {
    --taken;
    stream.end(reason);
  }

  /** Those who wait go on, with new ranks, unless this closes or no ranks can be made. */
  private synchronized void endAll(String reason) {
    if (isClosing || running.isEmpty()) {
      running.addAll(waiting);
      waiting.clear();
    }
    running.forEach(stream -> end(stream, reason));
    running.clear();
  }

  private void leave() {
    for (Iterator<Stream> all = running.iterator(); all.hasNext(); ) {
      Stream stream = all.next();
      if (stream.isCancelled || stream.isDone()) {
        attention.free(stream.sequence);
        all.remove();
        end(stream, stream.isDone() ? "length" : "cancelled");
      }
    }
  }

  private synchronized void enter() {
    for (Iterator<Stream> all = waiting.iterator(); all.hasNext(); ) {
      Stream stream = all.next();
      if (stream.isCancelled) {
        all.remove();
        end(stream, "cancelled");
      }
    }
    int free = numPages - running.stream().mapToInt(Stream::pages).sum();
    while (!waiting.isEmpty() && waiting.element().pages() <= free) {
      Stream stream = waiting.remove();
      running.add(stream);
      free -= stream.pages();
      stream.sequence = attention.createSequence();
    }
  }

  private void step() {
    List<Stream> writing = running.stream().filter(Stream::hasRead).toList();
    int chunks = CHUNKS;
    for (Stream stream : running) {
      for (; !stream.hasRead() && chunks > 0; --chunks) {
        byte[] prompt = stream.request.prompt;
        int end = Math.min(stream.length + CHUNK, prompt.length);
        float[] logits = forward(List.of(stream), Arrays.copyOfRange(prompt, stream.length, end));
        if (stream.hasRead()) {
          stream.write(logits, 0);
        }
      }
    }
    if (!writing.isEmpty()) {
      byte[] last = new byte[writing.size()];
      for (int i = 0; i < last.length; ++i) {
        last[i] = writing.get(i).last;
      }
      float[] logits = forward(writing, last);
      for (int i = 0; i < last.length; ++i) {
        writing.get(i).write(logits, i);
      }
    }
  }

  /** Logits behind the last of new bytes of some streams, as many of each. */
  private float[] forward(List<Stream> streams, byte[] bytes) {
    int t = bytes.length / streams.size();
    int[] positions = new int[bytes.length];
    Arrays.setAll(positions, i -> streams.get(i / t).length + i % t);
    streams.forEach(stream -> stream.length += t);
    long[] sequences = streams.stream().mapToLong(stream -> stream.sequence).toArray();
    return model.forward(
        bytes,
        positions,
        t,
        (layer, q, k, v, out) -> attention.attend(layer, sequences, q, k, v, out));
  }

  private synchronized void describe() {
    KvCacheStatistics pages = attention == null ? null : attention.statistics();
    long used = pages == null ? 0 : pages.usedPages();
    state = new State(running.size(), waiting.size(), used, numPages - used);
  }

  // ---------------------------------------------------------------- bytes

  /**
   * Of each byte, of which the highest is taken as byte `index` of a text: logits, or with a
   * temperature logits / temperature and noise, which takes each as often as softmax says (Gumbel
   * 1954). Where two are as high as each other but for rounding, either may be taken.
   */
  static double[] scores(float[] logits, int row, Request request, int index) {
    SplittableRandom random = new SplittableRandom(request.seed ^ index * 0xD1342543DE82EF95L);
    double[] scores = new double[Model.BYTES];
    for (int b = 0; b < Model.BYTES; ++b) {
      double logit = logits[row * Model.BYTES + b];
      double noise = -Math.log(-Math.log(random.nextDouble()));
      scores[b] = request.temperature == 0 ? logit : logit / request.temperature + noise;
    }
    return scores;
  }

  static int choose(float[] logits, int row, Request request, int index) {
    double[] scores = scores(logits, row, request, index);
    int best = 0;
    for (int b = 1; b < Model.BYTES; ++b) {
      best = scores[b] > scores[best] ? b : best;
    }
    return best;
  }
}
