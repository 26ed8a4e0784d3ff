import dev.ringattn.AttentionDesc;
import dev.ringattn.Context;
import dev.ringattn.ContextConfig;
import dev.ringattn.ForwardArgs;
import dev.ringattn.Tensor;
import java.nio.FloatBuffer;
import java.util.Arrays;

/**
 * What a call costs from Java: forward of 64 tokens on one rank, everything reused. Prints a line
 * of JSON with the median and the mean of their times.
 *
 * <pre>
 * java -Ddev.ringattn.libraries=... -cp CLASSES Calls.java [--calls N]
 * </pre>
 */
final class Calls {
  private static final int TOKENS = 64;
  private static final int HEAD_DIM = 64;
  private static final int FIRST = 20_000; // until all of it is compiled; not counted

  private static Tensor tensor(int period) {
    FloatBuffer numbers = Tensor.allocateFloats(TOKENS * HEAD_DIM);
    for (int i = 0; i < TOKENS * HEAD_DIM; ++i) {
      numbers.put(i, (float) (i % period) / period);
    }
    return Tensor.of(numbers);
  }

  public static void main(String[] arguments) {
    boolean isGiven = arguments.length == 2 && arguments[0].equals("--calls");
    int calls = isGiven ? Integer.parseInt(arguments[1]) : 30_000;
    AttentionDesc desc = new AttentionDesc().seqlenQ(TOKENS).headDim(HEAD_DIM);
    ForwardArgs args =
        new ForwardArgs()
            .q(tensor(7))
            .k(tensor(5))
            .v(tensor(3))
            .out(tensor(1))
            .lse(Tensor.of(Tensor.allocateFloats(TOKENS)));
    double[] times = new double[calls];
    try (Context context = new Context(new ContextConfig().numThreads(1))) {
      for (int call = -FIRST; call < calls; ++call) {
        long start = System.nanoTime();
        context.forward(desc, args);
        if (call >= 0) {
          times[call] = System.nanoTime() - start;
        }
      }
    }
    double mean = Arrays.stream(times).average().orElseThrow();
    Arrays.sort(times);
    System.out.printf(
        "{\"language\": \"java\", \"median_ns\": %.1f, \"mean_ns\": %.1f}%n", times[calls / 2], mean);
  }
}
