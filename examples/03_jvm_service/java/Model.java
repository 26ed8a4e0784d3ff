import java.io.BufferedInputStream;
import java.io.DataInputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Map;
import java.util.stream.IntStream;

/**
 * The language model of example 06, forwards: all of it but attention, which whoever calls brings.
 *
 * <pre>
 *   x = sqrt(width) embedding[byte]
 *   each layer:  h = norm(x),  q, k, v = turned(h wQ), turned(h wK), h wV
 *                x += attention(q, k, v) wO
 *                h = norm(x),  x += (silu(h wGate) * (h wUp)) wDown
 *   logits = norm(x) embedding^T, of which byte comes next
 * </pre>
 *
 * <p>A token is a row of `width` elements, rows lie one behind the other, and each is computed by
 * itself, always in the same order: what comes of it does not depend on the rows beside it.
 */
final class Model {
  static final int BYTES = 256;

  /** The keys that came before, and the new ones. */
  interface Attention {
    /** `out`: what each row of q has of all keys that it sees in this layer; all [rows, width]. */
    void attend(int layer, float[] q, float[] k, float[] v, float[] out);
  }

  private static final class Layer {
    float[] norm1;
    float[] wQ;
    float[] wK;
    float[] wV;
    float[] wO;
    float[] norm2;
    float[] wGate;
    float[] wUp;
    float[] wDown;
  }

  private static final int ROWS =
      8; // that are computed together: they use a weight while it is near

  final int context; // of its training
  final int width;
  final int heads;
  final int window; // bytes that all layers but the last look back; 0: all
  private final int inner; // elements inside of an MLP
  private final float[] embedding; // [BYTES, width]
  private final float[] head; // [width, BYTES]: its transposed
  private final Layer[] layers;
  private final float[] norm;
  private final double[] frequencies; // of each pair of a head's elements that is turned

  /** Reads what example 06 has written: a line of JSON, and behind it the weights. */
  Model(Path checkpoint) throws IOException {
    try (DataInputStream file =
        new DataInputStream(new BufferedInputStream(Files.newInputStream(checkpoint)))) {
      Map<?, ?> shape;
      try {
        Map<?, ?> record = (Map<?, ?>) Json.read(line(file));
        shape = (Map<?, ?>) ((Map<?, ?>) record.get("settings")).get("shape");
        context = number(shape, "context");
        width = number(shape, "d_model");
        heads = number(shape, "heads");
        window = number(shape, "window");
        inner = number(shape, "d_ff");
        layers = new Layer[number(shape, "layers")];
      } catch (IllegalArgumentException | ClassCastException | NullPointerException e) {
        throw new IOException(checkpoint + " is no checkpoint of example 06", e);
      }
      try {
        embedding = floats(file, BYTES * width);
        for (int l = 0; l < layers.length; ++l) {
          Layer layer = layers[l] = new Layer();
          layer.norm1 = floats(file, width);
          layer.wQ = floats(file, width * width);
          layer.wK = floats(file, width * width);
          layer.wV = floats(file, width * width);
          layer.wO = floats(file, width * width);
          layer.norm2 = floats(file, width);
          layer.wGate = floats(file, width * inner);
          layer.wUp = floats(file, width * inner);
          layer.wDown = floats(file, inner * width);
        }
        norm = floats(file, width);
      } catch (EOFException e) {
        throw new IOException(checkpoint + " ends before its last weight", e);
      }
    }
    head = new float[width * BYTES];
    for (int b = 0; b < BYTES; ++b) {
      for (int j = 0; j < width; ++j) {
        head[j * BYTES + b] = embedding[b * width + j];
      }
    }
    frequencies = new double[headDim() / 2];
    for (int i = 0; i < frequencies.length; ++i) {
      frequencies[i] = Math.pow(10000, -2.0 * i / headDim());
    }
  }

  private static String line(InputStream file) throws IOException {
    StringBuilder line = new StringBuilder();
    for (int b; (b = file.read()) != '\n'; ) {
      if (b < 0 || line.length() > 1 << 24) {
        throw new IllegalArgumentException("no line");
      }
      line.append((char) b);
    }
    return line.toString();
  }

  private static int number(Map<?, ?> shape, String name) {
    return ((Double) shape.get(name)).intValue();
  }

  private static float[] floats(DataInputStream file, int count) throws IOException {
    byte[] bytes = new byte[count * Float.BYTES];
    file.readFully(bytes);
    float[] floats = new float[count];
    ByteBuffer.wrap(bytes).order(ByteOrder.nativeOrder()).asFloatBuffer().get(floats);
    return floats;
  }

  int numLayers() {
    return layers.length;
  }

  int headDim() {
    return width / heads;
  }

  /** Bytes that a layer looks back, the one that it is at among them; 0: all. */
  int window(int layer) {
    return layer + 1 < layers.length ? window : 0;
  }

  int numWeights() {
    return (BYTES + 1 + layers.length * (2 + 4 * width + 3 * inner)) * width;
  }

  /**
   * Logits of the byte behind each `every`-th of these bytes: [bytes.length / every, BYTES]. Byte i
   * stands at positions[i] of whatever sequence it belongs to, which is attention's affair.
   */
  float[] forward(byte[] bytes, int[] positions, int every, Attention attention) {
    int n = bytes.length;
    float[] x = new float[n * width];
    float[] attended = new float[n * width];
    float scale = (float) Math.sqrt(width);
    for (int i = 0; i < n * width; ++i) {
      x[i] = scale * embedding[(bytes[i / width] & 0xFF) * width + i % width];
    }
    float[] turns = turns(positions);
    for (int l = 0; l < layers.length; ++l) {
      Layer layer = layers[l];
      float[] q = new float[n * width];
      float[] k = new float[n * width];
      float[] v = new float[n * width];
      inBlocks(
          n,
          (begin, end) -> {
            float[] h = normalize(x, layer.norm1, begin, end);
            multiply(h, layer.wQ, end - begin, width, q, begin);
            multiply(h, layer.wK, end - begin, width, k, begin);
            multiply(h, layer.wV, end - begin, width, v, begin);
            turn(q, turns, begin, end);
            turn(k, turns, begin, end);
          });
      attention.attend(l, q, k, v, attended);
      inBlocks(
          n,
          (begin, end) -> {
            int rows = end - begin;
            float[] part = Arrays.copyOfRange(attended, begin * width, end * width);
            multiply(part, layer.wO, rows, width, x, begin);
            float[] h = normalize(x, layer.norm2, begin, end);
            float[] gate = new float[rows * inner];
            float[] up = new float[rows * inner];
            multiply(h, layer.wGate, rows, inner, gate, 0);
            multiply(h, layer.wUp, rows, inner, up, 0);
            for (int i = 0; i < gate.length; ++i) {
              gate[i] *= up[i] / (1 + (float) Math.exp(-gate[i]));
            }
            multiply(gate, layer.wDown, rows, width, x, begin);
          });
    }
    float[] logits = new float[n / every * BYTES];
    inBlocks(
        n / every,
        (begin, end) -> {
          float[] last = new float[(end - begin) * width];
          for (int row = begin; row < end; ++row) {
            int from = ((row + 1) * every - 1) * width;
            System.arraycopy(x, from, last, (row - begin) * width, width);
          }
          float[] h = normalize(last, norm, 0, end - begin);
          multiply(h, head, end - begin, BYTES, logits, begin);
        });
    return logits;
  }

  // ---------------------------------------------------------------- rows

  private interface Block {
    void run(int begin, int end);
  }

  /** On all cores. */
  private static void inBlocks(int rows, Block block) {
    IntStream.range(0, (rows + ROWS - 1) / ROWS)
        .parallel()
        .forEach(b -> block.run(b * ROWS, Math.min((b + 1) * ROWS, rows)));
  }

  /** RMSNorm of rows begin .. end - 1 of x. */
  private float[] normalize(float[] x, float[] weight, int begin, int end) {
    float[] to = Arrays.copyOfRange(x, begin * width, end * width);
    for (int row = 0; row < to.length; row += width) {
      float squares = 0;
      for (int j = 0; j < width; ++j) {
        squares += to[row + j] * to[row + j];
      }
      float scale = (float) (1 / Math.sqrt(squares / width + 1e-6));
      for (int j = 0; j < width; ++j) {
        to[row + j] *= scale * weight[j];
      }
    }
    return to;
  }

  /** Adds a w to the rows of `to` from `first` on: a [rows, inputs], w [inputs, outputs]. */
  private static void multiply(float[] a, float[] w, int rows, int outputs, float[] to, int first) {
    int inputs = w.length / outputs;
    for (int i = 0; i < inputs; ++i) {
      for (int row = 0; row < rows; ++row) {
        add(a[row * inputs + i], w, i * outputs, to, (first + row) * outputs, outputs);
      }
    }
  }

  private static void add(float factor, float[] w, int from, float[] to, int at, int count) {
    for (int j = 0; j < count; ++j) {
      to[at + j] += factor * w[from + j];
    }
  }

  /**
   * Cosine and sine of the angle by which each pair of a head's elements is turned at a position.
   */
  private float[] turns(int[] positions) {
    float[] turns = new float[positions.length * headDim()];
    for (int i = 0; i < turns.length / 2; ++i) {
      double angle = positions[i / frequencies.length] * frequencies[i % frequencies.length];
      turns[2 * i] = (float) Math.cos(angle);
      turns[2 * i + 1] = (float) Math.sin(angle);
    }
    return turns;
  }

  /** Rotary positions (Su et al. 2021), where element i is turned with i + headDim / 2. */
  private void turn(float[] x, float[] turns, int begin, int end) {
    int pairs = frequencies.length;
    for (int row = begin; row < end; ++row) {
      for (int at = row * width; at < (row + 1) * width; at += 2 * pairs) {
        for (int i = 0; i < pairs; ++i) {
          float cos = turns[2 * (row * pairs + i)];
          float sin = turns[2 * (row * pairs + i) + 1];
          float a = x[at + i];
          float b = x[at + pairs + i];
          x[at + i] = a * cos - b * sin;
          x[at + pairs + i] = a * sin + b * cos;
        }
      }
    }
  }
}
