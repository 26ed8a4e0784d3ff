import dev.ringattn.RingAttentionException;
import dev.ringattn.Sharding;
import java.io.IOException;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/**
 * One untrained attention head reads a book, on ranks that each hold a part of it.
 *
 * <pre>
 * InductionHead.java   what the head looks at, and its output computed directly
 * Ranks.java           the same output computed by libringattn: every call of the library
 * LongContext.java     how well the head guesses the next byte; the table; the JSON file
 * </pre>
 *
 * <p>The last 2,048 bytes of what is read are guessed, each from the `context` bytes before it, for
 * longer and longer contexts. Every context is computed by one rank and by `--ranks` ranks, which
 * are compared with each other and with double precision.
 */
final class LongContext {
  private static final Map<String, Sharding> SHARDINGS =
      Map.of(
          "contiguous", Sharding.CONTIGUOUS,
          "zigzag", Sharding.ZIGZAG,
          "striped", Sharding.STRIPED);

  private static final String HELP =
      """
      One untrained attention head reads a book, on several ranks.
      Usage: LongContext [OPTIONS] [text]

        text                The book: a text file [build/demo/bible.txt]
        --length INT        Bytes of it to read; 0: all [131072]
        --ranks INT         Ranks that share them, 1 to 4096 [4]
        --sharding TEXT     Which bytes a rank owns: contiguous, zigzag or striped [zigzag]
        --output TEXT       Folder for context.json [build/demo]
      """;

  private String text = "build/demo/bible.txt";
  private String output = "build/demo";
  private String sharding = "zigzag";
  private long length = 131072;
  private int ranks = 4;

  /** One context length. Memory is in bytes. */
  private record Row(
      long context,
      double accuracy, // share of the bytes that were the head's first guess
      double bitsPerByte, // 7 for a uniform guess among 128
      double seconds, // of the attention call on all ranks
      long memoryPerRank, // tensors and workspace
      long memoryOneRank, // the same where one rank does it all
      double maxDifferenceOneRank,
      double maxDifferenceFp64) { // on 64 of the scored bytes

    double tokensPerSecond() {
      return Ranks.SCORED / seconds;
    }

    String toJson() {
      return String.format(
          """
          {
            "accuracy": %s,
            "bits_per_byte": %s,
            "context": %d,
            "max_difference_fp64": %s,
            "max_difference_one_rank": %s,
            "memory_one_rank": %d,
            "memory_per_rank": %d,
            "seconds": %s,
            "tokens_per_second": %s
          }""",
          accuracy,
          bitsPerByte,
          context,
          maxDifferenceFp64,
          maxDifferenceOneRank,
          memoryOneRank,
          memoryPerRank,
          seconds,
          tokensPerSecond());
    }
  }

  public static void main(String[] arguments) {
    Locale.setDefault(Locale.ROOT);
    try {
      LongContext program = new LongContext();
      if (program.parse(arguments)) {
        program.run();
      }
    } catch (IllegalArgumentException | IOException | RingAttentionException e) {
      System.err.println(e.getMessage());
      System.exit(1);
    }
  }

  /** False if the program was only asked what it can do. */
  private boolean parse(String[] arguments) {
    for (int i = 0; i < arguments.length; ++i) {
      String option = arguments[i];
      if (option.equals("--help") || option.equals("-h")) {
        System.out.print(HELP);
        return false;
      } else if (!option.startsWith("--")) {
        text = option;
        continue;
      }
      int equals = option.indexOf('=');
      if (equals < 0 && i + 1 == arguments.length) {
        throw new IllegalArgumentException(option + " needs a value");
      }
      String value = equals < 0 ? arguments[++i] : option.substring(equals + 1);
      switch (equals < 0 ? option : option.substring(0, equals)) {
        case "--length" -> length = number(option, value, Integer.MAX_VALUE, 0);
        case "--ranks" -> ranks = (int) number(option, value, 4096, 1);
        case "--sharding" -> sharding = value;
        case "--output" -> output = value;
        default -> throw new IllegalArgumentException("there is no " + option + "; see --help");
      }
    }
    if (!SHARDINGS.containsKey(sharding)) {
      throw new IllegalArgumentException("--sharding is " + sharding + "; see --help");
    }
    return true;
  }

  private static long number(String option, String value, long most, long least) {
    try {
      long number = Long.parseLong(value);
      if (least <= number && number <= most) {
        return number;
      }
    } catch (NumberFormatException e) {
      // as one that is out of range
    }
    throw new IllegalArgumentException(
        option + " is " + value + "; must be " + least + " to " + most);
  }

  /** The whole file; bytes outside the alphabet become its last letter. */
  static byte[] readText(String path) throws IOException {
    byte[] text;
    try {
      text = Files.readAllBytes(Path.of(path));
    } catch (IOException e) {
      throw new IOException("cannot read " + path, e);
    }
    int outside = 0;
    for (int i = 0; i < text.length; ++i) {
      if (text[i] < 0) { // 128 and above: bytes have signs here
        text[i] = InductionHead.ALPHABET - 1;
        ++outside;
      }
    }
    if (outside > 0) {
      System.err.printf(
          "note: %d bytes of %s are not ASCII and count as one and the same letter%n",
          outside, path);
    }
    return text;
  }

  /** 1 Ki, 4 Ki, 16 Ki ... up to half the length, and the whole length. */
  private static List<Long> getContexts(long length) {
    List<Long> contexts = new ArrayList<>();
    for (long context = 1024; context <= length / 2; context *= 4) {
      contexts.add(context);
    }
    contexts.add(length);
    return contexts;
  }

  // ---------------------------------------------------------------- scores

  private static double getMaxDifference(FloatBuffer a, FloatBuffer b) {
    double largest = 0;
    for (int i = 0; i < a.capacity(); ++i) {
      largest = Math.max(largest, Math.abs((double) a.get(i) - b.get(i)));
    }
    return largest;
  }

  /** On every 32nd row. */
  private static double getMaxDifferenceFp64(
      byte[] text, long length, long context, FloatBuffer out) {
    int step = Ranks.SCORED / 64;
    long[] targets = new long[64];
    for (int r = 0; r < targets.length; ++r) {
      targets[r] = Ranks.getTarget(length, (long) r * step);
    }
    double[][] expected = InductionHead.attendDirectly(text, targets, context);
    double largest = 0;
    for (int r = 0; r < expected.length; ++r) {
      for (int b = 0; b < InductionHead.ALPHABET; ++b) {
        double ours = out.get(r * step * InductionHead.ALPHABET + b);
        largest = Math.max(largest, Math.abs(ours - expected[r][b]));
      }
    }
    return largest;
  }

  /** Accuracy and bits per byte, with 2 % of the uniform distribution mixed in. */
  private static double[] score(byte[] text, long length, FloatBuffer out) {
    double accuracy = 0;
    double bits = 0;
    for (int i = 0; i < Ranks.SCORED; ++i) {
      int row = i * InductionHead.ALPHABET;
      int truth = text[(int) Ranks.getTarget(length, i)];
      int guess = 0;
      for (int b = 1; b < InductionHead.ALPHABET; ++b) {
        guess = out.get(row + b) > out.get(row + guess) ? b : guess;
      }
      double probability = 0.98 * out.get(row + truth) + 0.02 / InductionHead.ALPHABET;
      accuracy += (guess == truth ? 1.0 : 0.0) / Ranks.SCORED;
      bits -= Math.log(probability) / Math.log(2) / Ranks.SCORED;
    }
    return new double[] {accuracy, bits};
  }

  // ---------------------------------------------------------------- output

  /** A bar on stderr, drawn anew for each step; without a terminal, a line per step. */
  private static final class Progress {
    private final boolean isTerminal = System.console() != null;
    private final long total;
    private long done;

    Progress(long total) {
      this.total = total;
    }

    void begin(String step) {
      if (!isTerminal) {
        System.err.println(step + " ...");
        return;
      }
      int width = 40;
      int full = (int) (width * done / total);
      String bar = "#".repeat(full) + ".".repeat(width - full);
      System.err.printf("\r\033[K[%s] %3d %%  %s", bar, 100 * done / total, step);
    }

    /** Wipes the bar, so that other output can follow. */
    void end(long amount) {
      done += amount;
      if (isTerminal) {
        System.err.print("\r\033[K");
      }
    }
  }

  private static String formatMemory(long bytes) {
    return String.format("%.1f MiB", bytes / (double) (1 << 20));
  }

  /** As 1.2e-06. */
  private static String formatSmall(double value) {
    return String.format("%.1e", value);
  }

  private static void printColumns(Object... columns) {
    System.out.printf("%9s  %8s  %9s  %8s  %8s  %11s  %11s  %11s  %10s\n", columns);
  }

  private void printHeading(long length) {
    System.out.printf(
        "One untrained attention head reads %,d bytes of %s and guesses the last %,d.\n",
        length, text, Ranks.SCORED);
    System.out.printf("ranks: %d, sharding: %s\n\n", ranks, sharding);
    printColumns(
        "", "guessed", "bits per", "", "", "memory", "memory with", "difference", "difference");
    printColumns(
        "context",
        "right",
        "byte",
        "seconds",
        "tokens/s",
        "per rank",
        "one rank",
        "to one rank",
        "to fp64");
  }

  private static void printRow(Row row) {
    printColumns(
        String.format("%,d", row.context),
        String.format("%.1f %%", 100 * row.accuracy),
        String.format("%.2f", row.bitsPerByte),
        String.format("%.2f", row.seconds),
        String.format("%.0f", row.tokensPerSecond()),
        formatMemory(row.memoryPerRank),
        formatMemory(row.memoryOneRank),
        formatSmall(row.maxDifferenceOneRank),
        formatSmall(row.maxDifferenceFp64));
  }

  private static String quote(String text) {
    return '"' + text.replace("\\", "\\\\").replace("\"", "\\\"") + '"';
  }

  // ---------------------------------------------------------------- the demo

  private void run() throws IOException {
    byte[] bytes = readText(text);
    long read = length == 0 ? bytes.length - 1 : length; // the last byte is guessed, not read
    if (read < Ranks.SCORED || read >= bytes.length) {
      throw new IllegalArgumentException(
          String.format(
              "--length is %d; %s has %d bytes, which allows %d to %d",
              read, text, bytes.length, Ranks.SCORED, bytes.length - 1));
    }
    Sharding sharding = SHARDINGS.get(this.sharding);
    List<Long> contexts = getContexts(read);
    Progress progress = new Progress(2 * contexts.stream().mapToLong(Long::longValue).sum());

    // One rank goes first and is gone when the others come: its tensors are garbage by then.
    List<FloatBuffer> alone = new ArrayList<>();
    List<Long> memoryOneRank = new ArrayList<>();
    progress.begin("one rank: preparing");
    try (Ranks one = new Ranks(bytes, read, 1, sharding)) {
      for (long context : contexts) {
        progress.begin("one rank: context " + context);
        alone.add(one.forward(context));
        memoryOneRank.add(one.getMemory(context));
        progress.end(context);
      }
    }

    printHeading(read);
    progress.begin(ranks + " ranks: preparing");
    List<Row> rows = new ArrayList<>();
    try (Ranks all = new Ranks(bytes, read, ranks, sharding)) {
      for (long context : contexts) {
        progress.begin(ranks + " ranks: context " + context);
        long start = System.nanoTime();
        FloatBuffer out = all.forward(context);
        double seconds = (System.nanoTime() - start) / 1e9;
        double[] scores = score(bytes, read, out);
        Row row =
            new Row(
                context,
                scores[0],
                scores[1],
                seconds,
                all.getMemory(context),
                memoryOneRank.get(rows.size()),
                getMaxDifference(out, alone.get(rows.size())),
                getMaxDifferenceFp64(bytes, read, context, out));
        rows.add(row);
        progress.end(context);
        printRow(row);
      }
    }

    System.out.printf("\nmemory per rank at %,d bytes\n", read);
    List<String> memory = new ArrayList<>();
    for (int worldSize : new int[] {1, 2, 4, 8, 16}) {
      long needed = Ranks.estimateMemory(read, worldSize, sharding);
      memory.add(String.format("    {\"bytes\": %d, \"world_size\": %d}", needed, worldSize));
      String name = worldSize == 1 ? "rank " : "ranks";
      System.out.printf("%4d %s  %11s\n", worldSize, name, formatMemory(needed));
    }

    Files.createDirectories(Path.of(output));
    Path path = Path.of(output, "context.json");
    Files.writeString(path, toJson(read, rows, memory));
    System.out.printf("\nwrote %s\n", path);
  }

  private String toJson(long read, List<Row> rows, List<String> memory) {
    return String.join(
        "\n",
        "{",
        "  \"length\": " + read + ",",
        "  \"memory\": [",
        String.join(",\n", memory),
        "  ],",
        "  \"ranks\": " + ranks + ",",
        "  \"rows\": [",
        String.join(
            ",\n", rows.stream().map(row -> row.toJson().indent(4).stripTrailing()).toList()),
        "  ],",
        "  \"scored\": " + Ranks.SCORED + ",",
        "  \"sharding\": " + quote(sharding) + ",",
        "  \"text\": " + quote(text),
        "}",
        "");
  }
}
