import dev.ringattn.AttentionDesc;
import dev.ringattn.Context;
import dev.ringattn.ContextConfig;
import dev.ringattn.ForwardArgs;
import dev.ringattn.Tensor;
import java.util.Arrays;

/**
 * What a call costs from Java: forward of 64 tokens on one rank, everything reused. Prints a line of
 * JSON.
 *
 * <pre>
 * java -Ddev.ringattn.library.path=... -cp CLASSES Calls.java [--rounds N]
 * </pre>
 */
final class Calls {
  private static final int TOKENS = 64;
  private static final int HEAD_DIM = 64;
  private static final int CALLS = 2000;

  private static Tensor zeros(long count) {
    return Tensor.of(Tensor.allocateFloats(count));
  }

  public static void main(String[] arguments) {
    int rounds = arguments.length == 2 && arguments[0].equals("--rounds") ? Integer.parseInt(arguments[1]) : 15;
    AttentionDesc desc = new AttentionDesc().seqlenQ(TOKENS).headDim(HEAD_DIM);
    ForwardArgs args =
        new ForwardArgs()
            .q(zeros(TOKENS * HEAD_DIM))
            .k(zeros(TOKENS * HEAD_DIM))
            .v(zeros(TOKENS * HEAD_DIM))
            .out(zeros(TOKENS * HEAD_DIM))
            .lse(zeros(TOKENS));
    double[] times = new double[rounds];
    try (Context context = new Context(new ContextConfig().numThreads(1))) {
      for (int call = 0; call < 10 * CALLS; ++call) { // until all of it is compiled
        context.forward(desc, args);
      }
      for (int round = 0; round < rounds; ++round) {
        long start = System.nanoTime();
        for (int call = 0; call < CALLS; ++call) {
          context.forward(desc, args);
        }
        times[round] = (System.nanoTime() - start) / (double) CALLS;
      }
    }
    Arrays.sort(times);
    System.out.printf("{\"language\":\"java\",\"ns_per_call\":%.1f}%n", times[rounds / 2]);
  }
}
