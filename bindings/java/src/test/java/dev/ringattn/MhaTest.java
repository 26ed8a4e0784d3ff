package dev.ringattn;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.function.LongFunction;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/**
 * Layers of multi-head attention, and sums over ranks. That a layer computes what it should is the
 * library's own tests' matter.
 */
@Timeout(120)
class MhaTest {
  static final int D_MODEL = 10;

  static AttentionDesc desc() {
    return new AttentionDesc()
        .batch(2)
        .seqlenQ(24)
        .numHeadsQ(4)
        .numHeadsKv(2)
        .headDim(8)
        .headDimV(6)
        .mask(Mask.CAUSAL)
        .sharding(Sharding.ZIGZAG);
  }

  static MhaDesc mha() {
    return new MhaDesc()
        .dModel(D_MODEL)
        .rotary(Rotary.HALVES)
        .hasQkvBias(true)
        .hasOutBias(true)
        .normalizeHeads(true);
  }

  /**
   * One rank's tensors of a layer. Tokens have numbers by their positions, and weights are the same
   * on every rank.
   */
  static final class Layer {
    final AttentionDesc desc = desc();
    final MhaDesc mha;
    final Context context;
    final long[] indices; // of its numbers in a whole [batch, tokens, dModel]
    final Array x;
    final Array dout;
    final Array out;
    final Array dx;
    final Array[] weights; // wQ, wK, wV, wO, bQ, bK, bV, bO, normQ, normK
    final Array[] gradients;
    final Activations activations;

    Layer(Context context, MhaDesc mha) {
      this.context = context;
      this.mha = mha;
      ContextInfo info = context.info();
      long[] positions =
          RingAttention.shardPositions(desc, info.worldSize(), info.rank(), Side.QUERY);
      indices = new long[(int) desc.batch() * positions.length * D_MODEL];
      for (int i = 0; i < indices.length; ++i) {
        int row = i / D_MODEL;
        long entry = row / positions.length;
        long position = positions[row % positions.length];
        indices[i] = (entry * desc.seqlenQ() + position) * D_MODEL + i % D_MODEL;
      }
      x = tokens(0);
      dout = tokens(1);
      out = tokens(2);
      dx = tokens(3);
      int q = 4 * 8;
      int k = 2 * 8;
      int v = 2 * 6;
      int attended = 4 * 6;
      int[] counts = {
        D_MODEL * q, D_MODEL * k, D_MODEL * v, attended * D_MODEL, q, k, v, D_MODEL, 8, 8
      };
      weights = new Array[counts.length];
      gradients = new Array[counts.length];
      for (int i = 0; i < counts.length; ++i) {
        weights[i] = Array.floats(counts[i]).fill(2, i);
        for (int n = 0; n < counts[i]; ++n) {
          weights[i].set(n, weights[i].get(n) / 2);
        }
        gradients[i] = Array.floats(counts[i]);
      }
      activations = new Activations(context, desc, mha);
    }

    private Array tokens(int tensor) {
      Array whole = Array.floats(desc.batch() * desc.seqlenQ() * D_MODEL).fill(1, tensor);
      Array shard = Array.floats(indices.length);
      for (int i = 0; i < indices.length; ++i) {
        shard.set(i, whole.get(indices[i]));
      }
      return shard;
    }

    MhaForwardArgs forwardArgs() {
      return new MhaForwardArgs()
          .x(x.tensor())
          .wQ(weights[0].tensor())
          .wK(weights[1].tensor())
          .wV(weights[2].tensor())
          .wO(weights[3].tensor())
          .bQ(weights[4].tensor())
          .bK(weights[5].tensor())
          .bV(weights[6].tensor())
          .bO(weights[7].tensor())
          .normQ(weights[8].tensor())
          .normK(weights[9].tensor())
          .out(out.tensor())
          .activations(activations);
    }

    MhaBackwardArgs backwardArgs() {
      return new MhaBackwardArgs(forwardArgs())
          .dout(dout.tensor())
          .dx(dx.tensor())
          .dwQ(gradients[0].tensor())
          .dwK(gradients[1].tensor())
          .dwV(gradients[2].tensor())
          .dwO(gradients[3].tensor())
          .dbQ(gradients[4].tensor())
          .dbK(gradients[5].tensor())
          .dbV(gradients[6].tensor())
          .dbO(gradients[7].tensor())
          .dnormQ(gradients[8].tensor())
          .dnormK(gradients[9].tensor())
          .reduce(true);
    }

    /** Makes both calls and says what came out. */
    String run() {
      context.mhaForward(desc, mha, forwardArgs());
      context.mhaBackward(desc, mha, backwardArgs());
      StringBuilder hashes = new StringBuilder(out.hash()).append(dx.hash());
      for (Array gradient : gradients) {
        hashes.append(gradient.hash());
      }
      return hashes.toString();
    }
  }

  private interface Work {
    void run(Context context, int rank) throws Exception;
  }

  private static void onRanks(int worldSize, Work work) throws Exception {
    UniqueId id = UniqueId.create(Transport.LOCAL);
    Ranks.run(
        worldSize,
        rank -> {
          try (Context context = new Context(Ranks.config(id, worldSize, rank))) {
            work.run(context, rank);
          }
        });
  }

  private static Layer[] layers(int worldSize) throws Exception {
    Layer[] layers = new Layer[worldSize];
    onRanks(
        worldSize,
        (context, rank) -> {
          layers[rank] = new Layer(context, mha());
          layers[rank].run();
        });
    return layers;
  }

  private static void assertNear(Array expected, Array got, LongFunction<Long> place) {
    float largest = 1;
    for (long i = 0; i < expected.count(); ++i) {
      largest = Math.max(largest, Math.abs(expected.get(i)));
    }
    for (long i = 0; i < got.count(); ++i) {
      assertEquals(expected.get(place.apply(i)), got.get(i), 1e-4f * largest);
    }
  }

  @Test
  void hasOnTwoRanksWhatItHasOnOne() throws Exception {
    Layer whole = layers(1)[0];
    Layer[] shards = layers(2);
    for (Layer shard : shards) {
      assertNear(whole.out, shard.out, i -> shard.indices[(int) i]);
      assertNear(whole.dx, shard.dx, i -> shard.indices[(int) i]);
      for (int n = 0; n < shard.gradients.length; ++n) {
        assertNear(whole.gradients[n], shard.gradients[n], i -> i);
        assertEquals(shards[0].gradients[n].hash(), shard.gradients[n].hash());
      }
    }
  }

  /**
   * What is kept, and what is computed again, changes nothing; neither does what activations held
   * before.
   */
  @Test
  void hasTheSameBitsWithEachCheckpoint() throws Exception {
    onRanks(
        2,
        (context, rank) -> {
          String first = null;
          for (Checkpoint checkpoint : Checkpoint.values()) {
            MhaDesc mha = mha().checkpoint(checkpoint);
            Layer layer = new Layer(context, mha);
            for (int n = 0; n < 2; ++n) {
              String hashes = layer.run();
              first = first == null ? hashes : first;
              assertEquals(first, hashes, checkpoint.name());
            }
            MhaRequirements needs = context.mhaRequirements(layer.desc, mha);
            assertEquals(needs.activations(), layer.activations.size());
            assertEquals(checkpoint == Checkpoint.INPUT, needs.activations() == 0);
            assertTrue(needs.forwardFlops() > 0 && needs.backwardWorkspace() > 0);
            assertTrue(context.statistics().projectionSeconds() > 0);
          }
        });
  }

  /** Two micro-batches, of which the second reduces, are twice one. */
  @Test
  void accumulatesGradients() throws Exception {
    Layer[] once = layers(2);
    onRanks(
        2,
        (context, rank) -> {
          Layer layer = new Layer(context, mha());
          for (boolean isLast : new boolean[] {false, true}) {
            context.mhaForward(layer.desc, layer.mha, layer.forwardArgs());
            context.mhaBackward(
                layer.desc, layer.mha, layer.backwardArgs().accumulate(isLast).reduce(isLast));
          }
          assertEquals(once[rank].dx.hash(), layer.dx.hash());
          for (int n = 0; n < layer.gradients.length; ++n) {
            Array twice = once[rank].gradients[n];
            for (long i = 0; i < twice.count(); ++i) {
              twice.set(i, 2 * twice.get(i));
            }
            assertNear(twice, layer.gradients[n], i -> i);
          }
        });
  }

  /** Of no gradient but one; and of a layer that has neither biases nor norms, in bfloat16. */
  @Test
  void leavesOutWhatIsNotWanted() {
    try (Context context = new Context(new ContextConfig())) {
      AttentionDesc desc = desc().dtype(DType.BFLOAT16);
      MhaDesc mha = new MhaDesc().dModel(D_MODEL);
      LongFunction<Tensor> tensor = n -> new Array(DType.BFLOAT16, n).fill(n, 0).tensor();
      MhaForwardArgs forward =
          new MhaForwardArgs()
              .x(tensor.apply(480))
              .wQ(tensor.apply(320))
              .wK(tensor.apply(160))
              .wV(tensor.apply(120))
              .wO(tensor.apply(240))
              .out(tensor.apply(480))
              .activations(new Activations(context, desc, mha));
      context.mhaForward(desc, mha, forward);
      Array dwV = Array.floats(120);
      String before = dwV.hash();
      context.mhaBackward(
          desc, mha, new MhaBackwardArgs(forward).dout(tensor.apply(480)).dwV(dwV.tensor()));
      assertNotEquals(before, dwV.hash());
    }
  }

  private static void refuses(String words, Runnable call) {
    RingAttentionException failure = assertThrows(RingAttentionException.class, call::run);
    assertEquals(Status.INVALID_ARGUMENT, failure.status());
    assertTrue(failure.getMessage().contains(words), failure.getMessage());
  }

  @Test
  void refusesWhatDoesNotFit() {
    Tensor halves = new Array(DType.BFLOAT16, 480).tensor();
    Tensor constant =
        Tensor.of(
            ByteBuffer.allocateDirect(64).asReadOnlyBuffer().order(ByteOrder.nativeOrder()),
            DType.FLOAT32);
    refuses("dw_k holds BFLOAT16; must be FLOAT32", () -> new MhaBackwardArgs().dwK(halves));
    refuses("dnorm_q is a read-only", () -> new MhaBackwardArgs().dnormQ(constant));
    refuses("out is a read-only", () -> new MhaForwardArgs().out(constant));
    try (Context context = new Context(new ContextConfig())) {
      Layer layer = new Layer(context, mha());
      AttentionDesc desc = layer.desc;
      refuses(
          "x holds BFLOAT16; desc.dtype is FLOAT32",
          () -> context.mhaForward(desc, mha(), layer.forwardArgs().x(halves)));
      refuses(
          "norm_q holds BFLOAT16; desc.dtype is FLOAT32",
          () -> context.mhaForward(desc, mha(), layer.forwardArgs().normQ(halves)));
      refuses(
          "dx holds BFLOAT16; desc.grad_dtype is FLOAT32",
          () -> context.mhaBackward(desc, mha(), layer.backwardArgs().dx(halves)));
      refuses("b_k", () -> context.mhaForward(desc, mha(), layer.forwardArgs().bK(null)));
      refuses(
          "b_q is set",
          () -> context.mhaForward(desc, mha().hasQkvBias(false), layer.forwardArgs()));
      refuses(
          "w_q.size is 1276",
          () ->
              context.mhaForward(desc, mha(), layer.forwardArgs().wQ(Array.floats(319).tensor())));
      refuses(
          "d_model is 1073741824",
          () -> context.mhaForward(desc, mha().dModel(1 << 30), layer.forwardArgs()));
      refuses(
          "activations is NULL",
          () -> context.mhaForward(desc, mha(), layer.forwardArgs().activations(null)));
      refuses(
          "activations is NULL",
          () -> context.mhaBackward(desc, mha(), layer.backwardArgs().activations(null)));
      Activations few = new Activations(context, desc().seqlenQ(2), mha());
      refuses(
          "activations_size is " + few.size(),
          () -> context.mhaForward(desc, mha(), layer.forwardArgs().activations(few)));
      refuses(
          "activations is set",
          () ->
              context.mhaBackward(desc, mha().checkpoint(Checkpoint.INPUT), layer.backwardArgs()));
      refuses("has_key_bias is 1", () -> new Activations(context, desc().hasKeyBias(true), mha()));
      refuses(
          "a buffer holds", () -> new Activations(context, desc().seqlenQ(1L << 30), mha()));
      layer.run();
    }
  }

  @Test
  void saysWhereLayersDiffer() throws Exception {
    onRanks(
        2,
        (context, rank) -> {
          Layer layer = new Layer(context, mha().rotaryBase(rank == 0 ? 10_000 : 500));
          RingAttentionException failure =
              assertThrows(RingAttentionException.class, () -> layer.run());
          assertEquals(Status.MISMATCH, failure.status());
          assertTrue(failure.getMessage().contains("rotary_base"), failure.getMessage());
        });
  }

  @Test
  void sumsOverRanks() throws Exception {
    for (int worldSize = 1; worldSize <= 2; ++worldSize) {
      int ranks = worldSize;
      onRanks(
          ranks,
          (context, rank) -> {
            Array data = Array.floats(1001).fill(rank, 0);
            Array[] all = new Array[ranks];
            for (int r = 0; r < ranks; ++r) {
              all[r] = Array.floats(1001).fill(r, 0);
            }
            context.allReduce(data.tensor());
            context.allReduce(Array.floats(0).tensor());
            for (int i = 0; i < 1001; ++i) {
              assertEquals(ranks == 1 ? all[0].get(i) : all[0].get(i) + all[1].get(i), data.get(i));
            }
          });
    }
    onRanks(
        2,
        (context, rank) -> {
          refuses(
              "data holds BFLOAT16",
              () -> context.allReduce(new Array(DType.BFLOAT16, 10).tensor()));
          RingAttentionException failure =
              assertThrows(
                  RingAttentionException.class,
                  () -> context.allReduce(Array.floats(10 + rank).tensor()));
          assertEquals(Status.MISMATCH, failure.status());
        });
  }
}
