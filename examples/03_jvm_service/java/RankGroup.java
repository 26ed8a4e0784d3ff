import dev.ringattn.AttentionDesc;
import dev.ringattn.ForwardArgs;
import dev.ringattn.Mask;
import dev.ringattn.MaskAlignment;
import dev.ringattn.MergeArgs;
import dev.ringattn.RingAttention;
import dev.ringattn.SequenceArgs;
import dev.ringattn.Side;
import dev.ringattn.Tensor;
import java.nio.FloatBuffer;
import java.util.Arrays;

/**
 * Four ranks that know a book, and say how any text might go on behind it.
 *
 * <p>The book's keys and values are made once. For a text of n bytes behind a book of L there are n
 * queries, one for each byte that comes after one of the text's; row r looks for byte L + r + 1,
 * and sees the `context` bytes before it:
 *
 * <pre>
 * of the book   all from j = L + r + 1 - context on. Bottom-right, query r faces key r + L - n, so
 *               windowLeft is context - n - 1
 * of the text   bytes 0 .. r: a causal mask
 * </pre>
 *
 * <p>Each is a call of all ranks; mergeAttention makes one distribution of the two results.
 */
final class RankGroup implements AutoCloseable {
  static final int LONGEST_TEXT = 1024;

  /** A text, and every rank's part of its keys and values: for any number of groups. */
  static final class Book {
    final byte[] text;
    private final FloatBuffer[] keys = new FloatBuffer[Ranks.COUNT];
    private final FloatBuffer[] values = new FloatBuffer[Ranks.COUNT];

    Book(byte[] text) {
      this.text = text;
      AttentionDesc desc = describe(1).seqlenKv(text.length);
      for (int r = 0; r < Ranks.COUNT; ++r) {
        long[] positions = RingAttention.shardPositions(desc, Ranks.COUNT, r, Side.KEY_VALUE);
        keys[r] = Tensor.allocateFloats((long) positions.length * InductionHead.DIM);
        values[r] = Tensor.allocateFloats((long) positions.length * InductionHead.ALPHABET);
        fillKeys(text, 0, positions, keys[r], values[r]);
      }
    }

    /** The last bytes of the book, which the first keys of a text describe, and the text. */
    private byte[] before(byte[] text) {
      int tail = Math.min(this.text.length, LONGEST_TEXT);
      byte[] both = new byte[tail + text.length];
      System.arraycopy(this.text, this.text.length - tail, both, 0, tail);
      System.arraycopy(text, 0, both, tail, text.length);
      return both;
    }
  }

  /** Of one rank, for the longest text. */
  private static final class Memory {
    final FloatBuffer q = Tensor.allocateFloats(LONGEST_TEXT * InductionHead.DIM);
    final FloatBuffer k = Tensor.allocateFloats(LONGEST_TEXT * InductionHead.DIM);
    final FloatBuffer v = Tensor.allocateFloats(LONGEST_TEXT * InductionHead.ALPHABET);
    final FloatBuffer[] outs = {newOut(), newOut()}; // of the book, of the text
    final FloatBuffer[] lses = {newLse(), newLse()};

    private static FloatBuffer newOut() {
      return Tensor.allocateFloats(LONGEST_TEXT * InductionHead.ALPHABET);
    }

    private static FloatBuffer newLse() {
      return Tensor.allocateFloats(LONGEST_TEXT);
    }
  }

  private final Book book;
  private final Memory[] memories = new Memory[Ranks.COUNT];
  private final Ranks ranks;

  RankGroup(Book book) {
    this.book = book;
    Arrays.setAll(memories, r -> new Memory());
    ranks = new Ranks();
  }

  private static AttentionDesc describe(int rows) {
    return new AttentionDesc()
        .seqlenQ(rows)
        .headDim(InductionHead.DIM)
        .headDimV(InductionHead.ALPHABET)
        .softmaxScale(InductionHead.SOFTMAX_SCALE);
  }

  /** The shortest and the longest context that can be asked for, in bytes. */
  static long leastContext(byte[] text) {
    return text.length + 1;
  }

  static long mostContext(Book book, byte[] text) {
    return book.text.length + text.length;
  }

  /** [text.length, ALPHABET]: for each byte of `text` the distribution of the one behind it. */
  FloatBuffer predict(byte[] text, long context) {
    int n = text.length;
    AttentionDesc ofBook =
        describe(n)
            .seqlenKv(book.text.length)
            .maskAlignment(MaskAlignment.BOTTOM_RIGHT)
            .windowLeft(context - n - 1);
    AttentionDesc ofText = describe(n).mask(Mask.CAUSAL);
    byte[] both = book.before(text);
    int begin = both.length - n;
    FloatBuffer whole = Tensor.allocateFloats((long) n * InductionHead.ALPHABET);

    ranks.onEveryRank(
        (r, own) -> {
          Memory memory = memories[r];
          long[] rows = RingAttention.shardPositions(ofText, Ranks.COUNT, r, Side.QUERY);
          for (int i = 0; i < rows.length; ++i) {
            float[] query = InductionHead.makeFeature(both, begin + rows[i] + 1);
            memory.q.put(i * InductionHead.DIM, query);
          }
          long[] keys = RingAttention.shardPositions(ofText, Ranks.COUNT, r, Side.KEY_VALUE);
          fillKeys(both, begin, keys, memory.k, memory.v);

          Tensor q = first(memory.q, rows.length * InductionHead.DIM);
          Tensor[] outs = new Tensor[2];
          Tensor[] lses = new Tensor[2];
          for (int part = 0; part < 2; ++part) {
            outs[part] = first(memory.outs[part], rows.length * InductionHead.ALPHABET);
            lses[part] = first(memory.lses[part], rows.length);
          }
          own.forward(
              ofBook,
              new ForwardArgs()
                  .q(q)
                  .k(Tensor.of(book.keys[r]))
                  .v(Tensor.of(book.values[r]))
                  .out(outs[0])
                  .lse(lses[0]));
          own.forward(
              ofText,
              new ForwardArgs()
                  .q(q)
                  .k(first(memory.k, keys.length * InductionHead.DIM))
                  .v(first(memory.v, keys.length * InductionHead.ALPHABET))
                  .out(outs[1])
                  .lse(lses[1]));
          RingAttention.mergeAttention(
              new MergeArgs()
                  .seqlen(rows.length)
                  .headDimV(InductionHead.ALPHABET)
                  .outA(outs[0])
                  .lseA(lses[0])
                  .outB(outs[1])
                  .lseB(lses[1])
                  .out(outs[0])
                  .lse(lses[0]));
          RingAttention.joinSequence(
              ofText,
              Ranks.COUNT,
              r,
              new SequenceArgs()
                  .numHeads(1)
                  .dim(InductionHead.ALPHABET)
                  .shard(outs[0])
                  .whole(Tensor.of(whole)));
        });
    return whole;
  }

  /** The keys and values of bytes begin + positions[i]. */
  private static void fillKeys(
      byte[] text, int begin, long[] positions, FloatBuffer keys, FloatBuffer values) {
    float[] value = new float[InductionHead.ALPHABET];
    for (int i = 0; i < positions.length; ++i) {
      long s = begin + positions[i];
      keys.put(i * InductionHead.DIM, InductionHead.makeFeature(text, s));
      value[text[(int) s]] = 1;
      values.put(i * InductionHead.ALPHABET, value);
      value[text[(int) s]] = 0;
    }
  }

  private static Tensor first(FloatBuffer buffer, int count) {
    return Tensor.of(buffer.slice(0, count));
  }

  /** Also of a group that failed. */
  @Override
  public void close() {
    ranks.close();
  }
}
