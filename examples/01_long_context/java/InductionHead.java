import java.util.Arrays;

/**
 * The head itself: what its queries, keys and values are, and its output computed directly, in
 * double precision. Nothing here uses the library.
 *
 * <p>An induction head looks for earlier places that were preceded by the same bytes as this one,
 * and copies what came next there. It needs no training: with a token per byte,
 *
 * <pre>
 * key s    says what came before byte s: a unit vector along the sum over i = 1 .. 12 of
 *          0.85^i sign(i, byte s - i), where sign(i, b) is a fixed random vector of +-1
 * value s  is byte s, one-hot
 * query t  is the same vector as key t
 * </pre>
 *
 * <p>Random vectors of 128 signs are almost orthogonal, so the dot product of query t and key s is
 * about the weighted share of preceding bytes in which t and s agree. The softmax sharpens that,
 * and the output is a distribution over the next byte.
 */
final class InductionHead {
  static final int DIM = 128; // of queries and keys
  static final int ALPHABET = 128; // of values and of the output: one dimension per ASCII character
  static final float SOFTMAX_SCALE = 32;

  private static final int REACH = 12; // preceding bytes that a query or key describes
  private static final float DECAY = 0.85f; // weight of one more byte of distance
  private static final float[][][] SIGNS = makeWeightedSigns();

  private InductionHead() {}

  /** [i][b]: the random vector of byte b at distance i + 1, times its weight. */
  private static float[][][] makeWeightedSigns() {
    MersenneTwister random = new MersenneTwister(1); // the head of the C++ program
    float[][][] signs = new float[REACH][ALPHABET][DIM];
    float weight = 1;
    for (float[][] distance : signs) {
      weight *= DECAY;
      for (float[] vector : distance) {
        for (int d = 0; d < DIM; ++d) {
          vector[d] = (random.next() & 1) != 0 ? weight : -weight;
        }
      }
    }
    return signs;
  }

  /** Query and key of byte t: the bytes before it, as a unit vector. Zero at the text's start. */
  static float[] makeFeature(byte[] text, long t) {
    float[] sum = new float[DIM];
    for (int i = 0; i < REACH && i < t; ++i) {
      float[] signs = SIGNS[i][text[(int) (t - 1 - i)]];
      for (int d = 0; d < DIM; ++d) {
        sum[d] += signs[d];
      }
    }
    float square = 0;
    for (float x : sum) {
      square += x * x;
    }
    if (square > 0) {
      float norm = (float) Math.sqrt(square);
      for (int d = 0; d < DIM; ++d) {
        sum[d] /= norm;
      }
    }
    return sum;
  }

  /**
   * The head's output for bytes `targets`, each of which sees the `context` bytes before it, from
   * the definition: no blocks, no running maximum, no ranks.
   */
  static double[][] attendDirectly(byte[] text, long[] targets, long context) {
    float[][] queries = new float[targets.length][];
    for (int row = 0; row < targets.length; ++row) {
      queries[row] = makeFeature(text, targets[row]);
    }
    double[][] out = new double[targets.length][ALPHABET];
    double[] sum = new double[targets.length];
    long first = Arrays.stream(targets).min().orElseThrow();
    long last = Arrays.stream(targets).max().orElseThrow();
    for (long s = Math.max(0, first - context); s < last; ++s) {
      float[] key = makeFeature(text, s);
      for (int row = 0; row < targets.length; ++row) {
        if (s >= targets[row] || s < targets[row] - context) {
          continue;
        }
        double dot = 0;
        for (int d = 0; d < DIM; ++d) {
          dot += (double) queries[row][d] * key[d];
        }
        // Unit vectors: no score exceeds the scale, which is subtracted instead of the row's
        // maximum.
        double weight = Math.exp(SOFTMAX_SCALE * (dot - 1));
        out[row][text[(int) s]] += weight;
        sum[row] += weight;
      }
    }
    for (int row = 0; row < targets.length; ++row) {
      for (int b = 0; b < ALPHABET; ++b) {
        out[row][b] /= sum[row];
      }
    }
    return out;
  }

  /** Random 32-bit numbers, MT19937 of Matsumoto and Nishimura 1998: C++'s std::mt19937. */
  private static final class MersenneTwister {
    private static final int N = 624;
    private static final int M = 397;

    private final int[] state = new int[N];
    private int index = N;

    MersenneTwister(int seed) {
      state[0] = seed;
      for (int i = 1; i < N; ++i) {
        state[i] = 1812433253 * (state[i - 1] ^ state[i - 1] >>> 30) + i;
      }
    }

    int next() {
      if (index == N) {
        for (int i = 0; i < N; ++i) {
          int y = state[i] & 0x80000000 | state[(i + 1) % N] & 0x7FFFFFFF;
          state[i] = state[(i + M) % N] ^ y >>> 1 ^ (y & 1) * 0x9908B0DF;
        }
        index = 0;
      }
      int y = state[index++];
      y ^= y >>> 11;
      y ^= y << 7 & 0x9D2C5680;
      y ^= y << 15 & 0xEFC60000;
      return y ^ y >>> 18;
    }
  }
}
