import dev.ringattn.AttentionDesc;
import dev.ringattn.BackwardArgs;
import dev.ringattn.Context;
import dev.ringattn.ContextConfig;
import dev.ringattn.ForwardArgs;
import dev.ringattn.Mask;
import dev.ringattn.RingAttention;
import dev.ringattn.RingAttentionException;
import dev.ringattn.Sharding;
import dev.ringattn.Side;
import dev.ringattn.Tensor;
import dev.ringattn.Transport;
import dev.ringattn.UniqueId;
import java.io.IOException;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Locale;

/**
 * One rank, which is this process: forward and backward of a causal sequence that many processes
 * share, on one machine or several.
 *
 * <p>All that they need of each other is the text that `--make-id` prints. ../run.sh starts some,
 * and hands it on in a file.
 */
final class MultiProcess {
  private static final int HEADS = 4;
  private static final int HEADS_KV = 2;
  private static final int DIM = 64;

  private final ContextConfig config = new ContextConfig().transport(Transport.ZEROMQ);
  private String bind;
  private boolean makesId;
  private long tokens = 1024;
  private int repeats = 1;

  /** What a rank has computed: out, dq, dk and dv of its tokens, [tokens, heads, DIM] each. */
  private record Results(FloatBuffer[] of, long[] positions, double milliseconds) {}

  private MultiProcess(String[] arguments) throws IOException {
    for (int i = 0; i < arguments.length; ++i) {
      if (arguments[i].equals("--make-id")) {
        makesId = true;
        continue;
      }
      if (i + 1 == arguments.length) {
        throw new IllegalArgumentException(arguments[i] + " needs a value");
      }
      String value = arguments[i + 1];
      switch (arguments[i++]) {
        case "--rank" -> config.rank(Integer.parseInt(value));
        case "--world-size" -> config.worldSize(Integer.parseInt(value));
        case "--id" -> config.uniqueId(new UniqueId(value));
        case "--id-file" -> config.uniqueId(new UniqueId(Files.readString(Path.of(value)).strip()));
        case "--bind" -> bind = value;
        case "--timeout" -> config.timeoutMs(Long.parseLong(value));
        case "--tokens" -> tokens = Long.parseLong(value);
        case "--repeats" -> repeats = Integer.parseInt(value);
        default -> throw new IllegalArgumentException("no option " + arguments[i - 1]);
      }
    }
    config.bindAddress(bind);
  }

  private String name() {
    return "rank " + config.rank() + " of " + config.worldSize();
  }

  /** Each element of an input is a function of its token's position. */
  private static Tensor makeInput(int tensor, int heads, long[] positions) {
    FloatBuffer elements = Tensor.allocateFloats((long) positions.length * heads * DIM);
    for (long position : positions) {
      for (int i = 0; i < heads * DIM; ++i) {
        elements.put((float) Math.sin(0.7 * (tensor + 1) * (position + 1) + i));
      }
    }
    return Tensor.of(elements.rewind());
  }

  /** Collective: forward and backward, so many times, of the tokens that are this rank's. */
  private Results compute(Context context, int worldSize, int rank, int repeats) {
    AttentionDesc desc =
        new AttentionDesc()
            .seqlenQ(tokens)
            .numHeadsQ(HEADS)
            .numHeadsKv(HEADS_KV)
            .headDim(DIM)
            .mask(Mask.CAUSAL)
            .sharding(Sharding.ZIGZAG); // equal work for all ranks under this mask
    long[] positions = RingAttention.shardPositions(desc, worldSize, rank, Side.QUERY);
    FloatBuffer[] results = new FloatBuffer[4];
    for (int i = 0; i < 4; ++i) {
      int heads = i < 2 ? HEADS : HEADS_KV;
      results[i] = Tensor.allocateFloats((long) positions.length * heads * DIM);
    }
    Tensor q = makeInput(0, HEADS, positions);
    Tensor k = makeInput(1, HEADS_KV, positions);
    Tensor v = makeInput(2, HEADS_KV, positions);
    Tensor out = Tensor.of(results[0]);
    Tensor lse = Tensor.of(Tensor.allocateFloats((long) positions.length * HEADS));
    ForwardArgs forward = new ForwardArgs().q(q).k(k).v(v).out(out).lse(lse);
    BackwardArgs backward =
        new BackwardArgs()
            .q(q)
            .k(k)
            .v(v)
            .out(out)
            .lse(lse)
            .dout(makeInput(3, HEADS, positions))
            .dq(Tensor.of(results[1]))
            .dk(Tensor.of(results[2]))
            .dv(Tensor.of(results[3]));
    long begin = System.nanoTime();
    for (int i = 0; i < repeats; ++i) {
      context.forward(desc, forward);
      context.backward(desc, backward);
    }
    return new Results(results, positions, 1e-6 * (System.nanoTime() - begin) / repeats);
  }

  /** Largest difference of this rank's tokens, as a part of the largest number of a tensor. */
  private static double compare(Results own, Results whole) {
    double worst = 0;
    for (int t = 0; t < 4; ++t) {
      int width = whole.of[t].capacity() / whole.positions.length;
      double largest = 0;
      for (int i = 0; i < whole.of[t].capacity(); ++i) {
        largest = Math.max(largest, Math.abs(whole.of[t].get(i)));
      }
      for (int i = 0; i < own.of[t].capacity(); ++i) {
        float expected = whole.of[t].get((int) own.positions[i / width] * width + i % width);
        worst = Math.max(worst, Math.abs(own.of[t].get(i) - expected) / largest); // NaN if it is
      }
    }
    return worst;
  }

  private void run() {
    int rank = config.rank();
    int worldSize = config.worldSize();
    Results expected;
    try (Context alone = new Context(new ContextConfig())) {
      expected = compute(alone, 1, 0, 1);
    }
    try (Context context = new Context(config)) { // made when all ranks have come
      long process = ProcessHandle.current().pid();
      System.out.println(name() + " is process " + process);
      Results found = compute(context, worldSize, rank, repeats);
      double difference = compare(found, expected);
      String figures =
          String.format(
              Locale.ROOT,
              "%d of %d tokens, forward and backward in %.1f ms, difference to one rank %.1e",
              found.positions.length,
              tokens,
              found.milliseconds,
              difference);
      System.out.println(name() + ": " + figures); // at once, among those of other processes
      if (!(difference <= 1e-5)) {
        throw new IllegalStateException("that is too much; at most 1e-05");
      }
    }
  }

  public static void main(String[] arguments) throws IOException {
    MultiProcess program = new MultiProcess(arguments);
    if (program.makesId) {
      System.out.println(UniqueId.create(Transport.ZEROMQ, program.bind).text());
      return;
    }
    try {
      program.run();
    } catch (RingAttentionException | IllegalStateException e) {
      System.err.println(program.name() + ": " + e.getMessage());
      System.exit(1);
    }
  }
}
