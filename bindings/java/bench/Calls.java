import dev.ringattn.AttentionDesc;
import dev.ringattn.Context;
import dev.ringattn.ContextConfig;
import dev.ringattn.ForwardArgs;
import dev.ringattn.Tensor;
import java.nio.FloatBuffer;
import java.util.Arrays;

/**
 * What a call costs from Java: forward of 64 tokens on one rank, everything reused. Prints a line
 * of JSON.
 *
 * <pre>
 * java -Ddev.ringattn.libraries=... -cp CLASSES Calls.java [--rounds N]
 * </pre>
 */
final class Calls {
  private static final int TOKENS = 64;
  private static final int HEAD_DIM = 64;
  private static final int CALLS = 2000;

  private static Tensor tensor(int period) {
    FloatBuffer numbers = Tensor.allocateFloats(TOKENS * HEAD_DIM);
    for (int i = 0; i < TOKENS * HEAD_DIM; ++i) {
      numbers.put(i, (float) (i % period) / period);
    }
    return Tensor.of(numbers);
  }

  public static void main(String[] arguments) {
    boolean isGiven = arguments.length == 2 && arguments[0].equals("--rounds");
    int rounds = isGiven ? Integer.parseInt(arguments[1]) : 21;
    AttentionDesc desc = new AttentionDesc().seqlenQ(TOKENS).headDim(HEAD_DIM);
    ForwardArgs args =
        new ForwardArgs()
            .q(tensor(7))
            .k(tensor(5))
            .v(tensor(3))
            .out(tensor(1))
            .lse(Tensor.of(Tensor.allocateFloats(TOKENS)));
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
    System.out.printf("{\"language\": \"java\", \"ns_per_call\": %.1f}%n", times[rounds / 2]);
  }
}
