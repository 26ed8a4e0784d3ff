import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * The model, its cache and what writes texts with them, without HTTP; all is compared with plain
 * attention to a whole text.
 *
 * <pre>
 * java -cp ... GeneratorTest CHECKPOINT TEXT
 * </pre>
 *
 * <p>TEXT is what the checkpoint was trained on.
 */
final class GeneratorTest {
  private static final double TOLERANCE = 1e-3; // of a logit: what rounding may do, and much more

  private static final int LONGEST = 150; // rows of a sequence that are read at once

  private final Model model;
  private final Map<?, ?> record; // of its training
  private final byte[] text;
  private final Random random;

  private GeneratorTest(Path checkpoint, Path text, long seed) throws IOException {
    model = new Model(checkpoint);
    byte[] bytes = Files.readAllBytes(checkpoint);
    String file = new String(bytes, StandardCharsets.ISO_8859_1);
    record = (Map<?, ?>) Json.read(file.substring(0, file.indexOf('\n')));
    this.text = Files.readAllBytes(text);
    random = new Random(seed);
  }

  static void require(boolean condition, String otherwise) {
    if (!condition) {
      throw new IllegalStateException(otherwise);
    }
  }

  // ---------------------------------------------------------------- without a cache

  /** Of a whole text to itself. */
  private static void attend(Model model, int layer, float[] q, float[] k, float[] v, float[] out) {
    int dim = model.headDim();
    int n = q.length / model.width;
    int window = model.window(layer) == 0 ? n : model.window(layer);
    double[] weights = new double[n];
    for (int i = 0; i < n; ++i) {
      for (int at = 0; at < model.width; at += dim) {
        int first = Math.max(0, i - window + 1);
        double sum = 0;
        for (int j = first; j <= i; ++j) {
          double product = 0;
          for (int e = at; e < at + dim; ++e) {
            product += (double) q[i * model.width + e] * k[j * model.width + e];
          }
          weights[j] = Math.exp(product / Math.sqrt(dim));
          sum += weights[j];
        }
        for (int e = at; e < at + dim; ++e) {
          double value = 0;
          for (int j = first; j <= i; ++j) {
            value += weights[j] * v[j * model.width + e];
          }
          out[i * model.width + e] = (float) (value / sum);
        }
      }
    }
  }

  /** Behind each byte of a text. */
  private static float[] logits(Model model, byte[] text) {
    int[] positions = new int[text.length];
    Arrays.setAll(positions, i -> i);
    return model.forward(
        text, positions, 1, (layer, q, k, v, out) -> attend(model, layer, q, k, v, out));
  }

  /** What a request brings, without a cache. */
  static byte[] writeDirectly(Model model, Generator.Request request) {
    byte[] whole = request.prompt();
    int n = whole.length;
    for (int i = 0; i < request.maxBytes(); ++i) {
      float[] logits = logits(model, whole);
      byte next = (byte) Generator.choose(logits, n + i - 1, request, i);
      whole = Arrays.copyOf(whole, n + i + 1);
      whole[n + i] = next;
    }
    return Arrays.copyOfRange(whole, n, whole.length);
  }

  /**
   * That each byte is one which the request's own numbers choose: the highest, but for rounding.
   */
  static void requireRight(Model model, Generator.Request request, byte[] written) {
    int n = request.prompt().length;
    byte[] whole = Arrays.copyOf(request.prompt(), n + written.length);
    System.arraycopy(written, 0, whole, n, written.length);
    float[] logits = logits(model, whole);
    double tolerance = TOLERANCE / Math.max(request.temperature(), TOLERANCE);
    tolerance = request.temperature() == 0 ? TOLERANCE : tolerance;
    for (int i = 0; i < written.length; ++i) {
      double[] scores = Generator.scores(logits, n - 1 + i, request, i);
      double best = Arrays.stream(scores).max().orElseThrow();
      double score = scores[written[i] & 0xFF];
      require(
          score >= best - tolerance,
          "byte " + i + " is " + written[i] + " with " + score + "; another one has " + best);
    }
  }

  /** As the program in C++ that trained the model has measured it. */
  private void measures() {
    Map<?, ?> settings = (Map<?, ?>) record.get("settings");
    int held = ((Double) settings.get("held_out")).intValue();
    List<?> measured = (List<?>) record.get("validation");
    double expected = (Double) ((List<?>) measured.get(measured.size() - 1)).get(1);
    double bits = 0;
    for (int begin = text.length - held - 1; begin + 1 < text.length; begin += model.context) {
      byte[] sequence = Arrays.copyOfRange(text, begin, begin + model.context);
      float[] logits = logits(model, sequence);
      for (int i = 0; i < sequence.length; ++i) {
        float[] row = Arrays.copyOfRange(logits, i * Model.BYTES, (i + 1) * Model.BYTES);
        double sum = 0;
        for (float logit : row) {
          sum += Math.exp(logit);
        }
        bits += (Math.log(sum) - row[text[begin + i + 1] & 0xFF]) / Math.log(2) / held;
      }
    }
    System.out.printf("bits per byte: %.6f; trained to %.6f%n", bits, expected);
    require(Math.abs(bits - expected) < 1e-3 * expected, "the model is another one");
  }

  /** Files that are no checkpoints, or not whole. */
  private static void refuses(Path checkpoint, Path text) throws IOException {
    byte[] whole = Files.readAllBytes(checkpoint);
    Path part = Files.createTempFile("checkpoint", null);
    try {
      Files.write(part, Arrays.copyOf(whole, whole.length / 4));
      for (Path path : List.of(text, part)) {
        try {
          new Model(path);
          require(false, "there is a model in " + path);
        } catch (IOException e) {
          String words = path == text ? "no checkpoint" : "ends before";
          require(e.getMessage().contains(words), e.getMessage());
        }
      }
    } finally {
      Files.delete(part);
    }
  }

  // ---------------------------------------------------------------- with a cache

  private byte[] piece(int length) {
    int begin = random.nextInt(text.length - length);
    return Arrays.copyOfRange(text, begin, begin + length);
  }

  /** Sequences that are read in pieces of any length, several at once where these are as long. */
  private void caches() {
    byte[][] texts = new byte[5][];
    Arrays.setAll(texts, s -> piece(1 + random.nextInt(400)));
    float[][] expected = new float[texts.length][];
    Arrays.setAll(expected, s -> logits(model, texts[s]));
    double largest = 0;
    try (CachedAttention attention = new CachedAttention(model, 5000, 5 * LONGEST)) {
      long[] sequences = new long[texts.length];
      Arrays.setAll(sequences, s -> attention.createSequence());
      int[] lengths = new int[texts.length];
      while (true) {
        int t = 1 + random.nextInt(random.nextInt(4) == 0 ? LONGEST : 20);
        int[] some = random.ints(0, texts.length).distinct().limit(texts.length).toArray();
        some = Arrays.stream(some).filter(s -> lengths[s] + t <= texts[s].length).toArray();
        some = Arrays.copyOf(some, Math.min(some.length, 1 + random.nextInt(texts.length)));
        boolean isAll = true;
        for (int s = 0; s < texts.length; ++s) {
          isAll = isAll && lengths[s] == texts[s].length;
        }
        if (isAll) {
          break;
        }
        if (some.length == 0) {
          continue;
        }
        byte[] bytes = new byte[some.length * t];
        int[] positions = new int[bytes.length];
        for (int i = 0; i < bytes.length; ++i) {
          positions[i] = lengths[some[i / t]] + i % t;
          bytes[i] = texts[some[i / t]][positions[i]];
        }
        long[] asked = Arrays.stream(some).mapToLong(s -> sequences[s]).toArray();
        float[] logits =
            model.forward(
                bytes,
                positions,
                1,
                (layer, q, k, v, out) -> attention.attend(layer, asked, q, k, v, out));
        for (int i = 0; i < logits.length; ++i) {
          int row = i / Model.BYTES;
          float wanted = expected[some[row / t]][positions[row] * Model.BYTES + i % Model.BYTES];
          largest = Math.max(largest, Math.abs(logits[i] - wanted));
        }
        Arrays.stream(some).forEach(s -> lengths[s] += t);
      }
      require(attention.statistics().numSequences() == texts.length, "sequences are missing");
      Arrays.stream(sequences).forEach(attention::free);
      require(attention.statistics().usedPages() == 0, "pages are left");
    }
    System.out.printf("logits with a cache differ by %.1e at most%n", largest);
    require(largest < TOLERANCE, "the cache changes the model");
  }

  // ---------------------------------------------------------------- texts

  private Generator.Request request(int longestPrompt, int mostBytes) {
    return new Generator.Request(
        piece(1 + random.nextInt(longestPrompt)),
        1 + random.nextInt(mostBytes),
        random.nextInt(3) * 0.5,
        random.nextInt(1000));
  }

  /** Each byte as often as softmax of logits / temperature says. */
  private void chooses() {
    float[] logits = new float[Model.BYTES];
    Arrays.fill(logits, -100);
    double sum = 0;
    double[] weights = new double[4];
    for (int b = 0; b < weights.length; ++b) {
      logits[b] = random.nextFloat();
      weights[b] = Math.exp(logits[b] / 0.7);
      sum += weights[b];
    }
    int draws = 20_000;
    int[] counts = new int[Model.BYTES];
    Generator.Request request = new Generator.Request(new byte[1], 1, 0.7, random.nextInt());
    for (int index = 0; index < draws; ++index) {
      ++counts[Generator.choose(logits, 0, request, index)];
    }
    for (int b = 0; b < weights.length; ++b) {
      double p = weights[b] / sum;
      double deviation = Math.sqrt(p * (1 - p) * draws);
      require(
          Math.abs(counts[b] - p * draws) < 6 * deviation,
          "byte " + b + " was chosen " + counts[b] + " times, not " + p * draws);
    }
  }

  private static byte[] readAll(Generator.Stream stream, String end) throws Exception {
    byte[] all = {};
    Generator.Part part;
    do {
      part = stream.take(60_000);
      require(part.bytes().length > 0 || part.end() != null, "nothing comes");
      int n = all.length;
      all = Arrays.copyOf(all, n + part.bytes().length);
      System.arraycopy(part.bytes(), 0, all, n, part.bytes().length);
    } while (part.end() == null);
    require(part.end().startsWith(end), "ended: " + part.end());
    return all;
  }

  private static void awaitIdle(Generator generator) throws Exception {
    Generator.State idle = null;
    for (int n = 0; n < 200; ++n) {
      idle = generator.state();
      if (idle.running() == 0 && idle.waiting() == 0 && idle.usedPages() == 0) {
        return;
      }
      Thread.sleep(50);
    }
    require(false, "never idle: " + idle);
  }

  private static void awaitRunning(Generator generator) throws Exception {
    for (int n = 0; generator.state().usedPages() == 0; ++n) {
      require(n < 1000, "never at work");
      Thread.sleep(5);
    }
  }

  /** More than there are pages for at once, of which some are left by who asked for them. */
  private void writes() throws Exception {
    Generator generator = new Generator(model, 1024, 40);
    List<Generator.Request> requests = new ArrayList<>();
    List<Generator.Stream> streams = new ArrayList<>();
    for (int n = 0; n < 40; ++n) {
      requests.add(request(n % 5 == 0 ? 300 : 20, 40));
      streams.add(generator.start(requests.get(n)).orElseThrow());
    }
    require(generator.start(requests.get(0)).isEmpty(), "41 of 40 streams");
    for (int n = 0; n < 40; ++n) {
      if (n % 4 == 3) {
        streams.get(n).cancel();
      }
    }
    for (int n = 0; n < 40; ++n) {
      Generator.Request request = requests.get(n);
      byte[] written = readAll(streams.get(n), n % 4 == 3 ? "" : "length");
      require(n % 4 == 3 || written.length == request.maxBytes(), written.length + " bytes");
      requireRight(model, request, written);
    }
    awaitIdle(generator);
    require(!generator.fits(new Generator.Request(new byte[1000], 100, 0, 0)), "it does not fit");
    require(generator.fits(new Generator.Request(new byte[924], 100, 0, 0)), "it fits");

    Generator.Request endless = new Generator.Request(piece(5), 1000, 1, 0);
    Generator.Stream stream = generator.start(endless).orElseThrow();
    awaitRunning(generator);
    stream.cancel();
    readAll(stream, "cancelled");
    awaitIdle(generator);
    stream = generator.start(endless).orElseThrow();
    awaitRunning(generator);
    generator.close();
    requireRight(model, endless, readAll(stream, "stopped"));
    require(generator.start(endless).isEmpty(), "it is closed");
  }

  /** Ranks that break end the texts they are at; the next one has new ranks. */
  private void recovers() throws Exception {
    AtomicInteger made = new AtomicInteger();
    Generator generator =
        new Generator(
            model,
            1024,
            4,
            () -> {
              require(made.incrementAndGet() != 2, "no ranks now");
              return new CachedAttention(model, 1024, made.get() == 1 ? 1 : 200);
            });
    Generator.Request one = new Generator.Request(piece(1), 20, 0, 0);
    Generator.Request two = new Generator.Request(piece(2), 20, 0, 0); // 2 rows at once
    requireRight(model, one, readAll(generator.start(one).orElseThrow(), "length"));
    readAll(generator.start(two).orElseThrow(), "failed");
    readAll(generator.start(two).orElseThrow(), "failed: no ranks now");
    requireRight(model, two, readAll(generator.start(two).orElseThrow(), "length"));
    require(made.get() == 3, "ranks were made " + made + " times");
    generator.close();
  }

  public static void main(String[] arguments) throws Exception {
    long seed = System.nanoTime();
    System.out.println("seed " + seed);
    GeneratorTest test = new GeneratorTest(Path.of(arguments[0]), Path.of(arguments[1]), seed);
    boolean isGood = false;
    try {
      refuses(Path.of(arguments[0]), Path.of(arguments[1]));
      test.measures();
      test.caches();
      test.chooses();
      test.writes();
      test.recovers();
      isGood = true;
    } catch (IllegalStateException e) {
      e.printStackTrace();
    }
    System.exit(isGood ? 0 : 1); // whatever threads do
  }
}
