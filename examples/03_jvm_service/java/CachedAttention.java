import dev.ringattn.AppendArgs;
import dev.ringattn.AttentionDesc;
import dev.ringattn.DecodeArgs;
import dev.ringattn.KvCache;
import dev.ringattn.KvCacheDesc;
import dev.ringattn.KvCacheStatistics;
import dev.ringattn.Mask;
import dev.ringattn.Tensor;
import java.nio.FloatBuffer;
import java.util.Arrays;

/**
 * Attention of a model's layers to what sequences had before, which four ranks keep: each rank has
 * a cache for each layer, and in it the pages of keys and values that fall to it. Keys never move:
 * each rank attends the new tokens to its own pages, and what comes of it is merged.
 *
 * <p>All caches are told the same in the same order, so a sequence has the same number in each. One
 * thread at a time.
 */
final class CachedAttention implements AutoCloseable {
  private static final int PAGE = 32; // tokens

  private final Model model;
  private final Ranks ranks = new Ranks();
  private final KvCache[][] caches = new KvCache[Ranks.COUNT][]; // of each rank, of each layer
  private final FloatBuffer q; // all [tokens, width]
  private final FloatBuffer k;
  private final FloatBuffer v;
  private final FloatBuffer[] outs = new FloatBuffer[Ranks.COUNT]; // all ranks get the same

  /** For sequences of `tokens` altogether, and at most `mostRows` new ones at a time. */
  CachedAttention(Model model, int tokens, int mostRows) {
    this.model = model;
    int elements = mostRows * model.width;
    q = Tensor.allocateFloats(elements);
    k = Tensor.allocateFloats(elements);
    v = Tensor.allocateFloats(elements);
    Arrays.setAll(outs, r -> Tensor.allocateFloats(elements));
    KvCacheDesc desc =
        new KvCacheDesc()
            .pageTokens(PAGE)
            .numPages(pagesFor(tokens))
            .numHeadsKv(model.heads)
            .headDim(model.headDim());
    try {
      ranks.onEveryRank(
          (r, context) -> {
            caches[r] = new KvCache[model.numLayers()];
            Arrays.setAll(caches[r], layer -> new KvCache(context, desc));
          });
    } catch (RuntimeException | Error e) {
      close();
      throw e;
    }
  }

  /** Of each rank, that a sequence of so many tokens takes at most: its pages go around. */
  static int pagesFor(int tokens) {
    int pages = (tokens + PAGE - 1) / PAGE;
    return (pages + Ranks.COUNT - 1) / Ranks.COUNT;
  }

  private interface Use {
    long of(KvCache cache);
  }

  private long inEveryCache(Use use) {
    long first = use.of(caches[0][0]);
    for (KvCache[] layers : caches) {
      for (KvCache cache : layers) {
        if (cache != caches[0][0] && use.of(cache) != first) {
          throw new IllegalStateException("caches differ");
        }
      }
    }
    return first;
  }

  long createSequence() {
    return inEveryCache(KvCache::createSequence);
  }

  void free(long sequence) {
    inEveryCache(
        cache -> {
          cache.free(sequence);
          return sequence;
        });
  }

  /**
   * Appends k and v to the sequences, as many rows to each, and attends q to all that they have.
   */
  void attend(int layer, long[] sequences, float[] q, float[] k, float[] v, float[] out) {
    int t = q.length / model.width / sequences.length;
    this.q.put(0, q);
    this.k.put(0, k);
    this.v.put(0, v);
    AppendArgs append =
        new AppendArgs()
            .sequences(sequences)
            .numTokens(t)
            .k(first(this.k, k.length))
            .v(first(this.v, v.length));
    AttentionDesc desc =
        new AttentionDesc()
            .batch(sequences.length)
            .seqlenQ(t)
            .numHeadsQ(model.heads)
            .headDim(model.headDim())
            .mask(Mask.CAUSAL)
            .windowLeft(model.window(layer) - 1); // 0 bytes, which are all of them: -1
    Tensor queries = first(this.q, q.length);
    ranks.onEveryRank(
        (r, context) -> {
          KvCache cache = caches[r][layer];
          cache.append(append);
          Tensor result = first(outs[r], out.length);
          cache.decode(desc, new DecodeArgs().sequences(sequences).q(queries).out(result));
        });
    outs[0].get(0, out);
  }

  private static Tensor first(FloatBuffer buffer, int count) {
    return Tensor.of(buffer.slice(0, count));
  }

  /** Of the first rank and layer, like which are all others. */
  KvCacheStatistics statistics() {
    return caches[0][0].statistics();
  }

  /** Also if a call has failed. */
  @Override
  public void close() {
    for (KvCache[] layers : caches) {
      for (KvCache cache : layers == null ? new KvCache[0] : layers) {
        if (cache != null) {
          cache.close();
        }
      }
    }
    ranks.close();
  }
}
