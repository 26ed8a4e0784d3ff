package dev.ringattn;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.lang.module.ModuleFinder;
import java.lang.reflect.Method;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.charset.StandardCharsets;
import java.util.function.Supplier;
import org.junit.jupiter.api.Test;

/** Which memory a tensor takes, and what becomes of it. */
class TensorTest {
  private static void refuses(String words, Runnable call) {
    RingAttentionException failure = assertThrows(RingAttentionException.class, call::run);
    assertEquals(Status.INVALID_ARGUMENT, failure.status());
    assertTrue(failure.getMessage().contains(words), failure.getMessage());
  }

  private static ByteBuffer direct(int bytes) {
    return ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder());
  }

  @Test
  void refusesWhatCCannotUse() {
    ByteBuffer other = ByteBuffer.allocateDirect(64).order(ByteOrder.BIG_ENDIAN);
    refuses("heap", () -> Tensor.of(FloatBuffer.allocate(16)));
    refuses("heap", () -> Tensor.of(ByteBuffer.allocate(64), DType.BFLOAT16));
    refuses("BIG_ENDIAN", () -> Tensor.of(other, DType.FLOAT32));
    refuses("BIG_ENDIAN", () -> Tensor.of(other.asFloatBuffer()));
    ByteBuffer slice = direct(64).position(2).slice().order(ByteOrder.nativeOrder());
    refuses("multiple of 4", () -> Tensor.of(slice, DType.FLOAT32));
    refuses("multiple of 4", () -> Tensor.of(slice.asFloatBuffer()));
    refuses("multiple of 4", () -> Tensor.of(direct(64).position(2), DType.FLOAT32));
    refuses("multiple of 2", () -> Tensor.of(direct(64).position(1), DType.FLOAT16));
    refuses("FLOAT32", () -> Tensor.of(direct(64).asShortBuffer(), DType.FLOAT32));
    refuses("SAME", () -> Tensor.of(direct(64), DType.SAME));
    refuses("-1", () -> Tensor.at(4096, -1, DType.FLOAT32));
    assertThrows(NullPointerException.class, () -> Tensor.of(null));
  }

  @Test
  void refusesReadOnlyOutputs() {
    Tensor constant =
        Tensor.of(direct(64).asReadOnlyBuffer().order(ByteOrder.nativeOrder()), DType.FLOAT32);
    refuses("out is a read-only", () -> new ForwardArgs().out(constant));
    refuses("lse is a read-only", () -> new ForwardArgs().lse(constant));
    refuses("dq is a read-only", () -> new BackwardArgs().dq(constant));
    refuses("dk is a read-only", () -> new BackwardArgs().dk(constant.strides(1, 1, 1)));
    refuses("dv is a read-only", () -> new BackwardArgs().dv(constant));
    refuses("out is a read-only", () -> new MergeArgs().out(constant));
    refuses("lse is a read-only", () -> new MergeArgs().lse(constant));
    refuses(
        "workspace is a read-only",
        () -> new ForwardArgs().workspace(direct(64).asReadOnlyBuffer()));
    AttentionDesc desc = new AttentionDesc().seqlenQ(1).headDim(16);
    SequenceArgs args = new SequenceArgs().numHeads(1).dim(16);
    args.whole(Array.floats(16).tensor()).shard(constant);
    refuses("shard is a read-only", () -> RingAttention.splitSequence(desc, 1, 0, args));
    RingAttention.joinSequence(desc, 1, 0, args);
    args.shard(Array.floats(16).tensor()).whole(constant);
    refuses("whole is a read-only", () -> RingAttention.joinSequence(desc, 1, 0, args));
    RingAttention.splitSequence(desc, 1, 0, args);
    new ForwardArgs().q(constant).k(constant).v(constant);
    new BackwardArgs().q(constant).out(constant).dout(constant).lse(constant);
  }

  @Test
  void refusesAnotherType() {
    Small small = new Small(1);
    Array out = small.tensor(4);
    Tensor halves = new Array(DType.FLOAT16, 64 * 2 * 16).tensor();
    refuses("lse holds FLOAT16", () -> new ForwardArgs().lse(halves));
    refuses("lse has strides", () -> new BackwardArgs().lse(out.tensor().strides(1, 1, 1)));
    try (Context context = new Context(new ContextConfig())) {
      refuses(
          "k holds FLOAT16; desc.dtype is FLOAT32",
          () -> context.forward(small.desc, small.args(out).k(halves)));
      AttentionDesc desc = new AttentionDesc(small.desc).outDtype(DType.BFLOAT16);
      refuses(
          "out holds FLOAT32; desc.out_dtype is BFLOAT16",
          () -> context.forward(desc, small.args(out)));
    }
  }

  /** lse of no bytes is neither unchecked nor unwanted. */
  @Test
  void refusesWhatIsTooShort() {
    Small small = new Small(1);
    Array out = small.tensor(4);
    Array empty = Array.floats(0);
    try (Context context = new Context(new ContextConfig())) {
      refuses("lse_size", () -> context.forward(small.desc, small.args(out).lse(empty.tensor())));
      refuses("q.data", () -> context.forward(small.desc, small.args(out).q(empty.tensor())));
      FloatBuffer floats = Tensor.allocateFloats(64 * 2 * 16);
      small.args(out).q(Tensor.of(floats));
      refuses(
          "v.size is 8188",
          () -> context.forward(small.desc, small.args(out).v(Tensor.of(floats.position(1)))));
      floats.rewind().limit(100);
      refuses(
          "out.size is 400",
          () -> context.forward(small.desc, small.args(out).out(Tensor.of(floats))));
      refuses(
          "workspace_size",
          () ->
              context.forward(small.desc, small.args(out).workspace(direct(128).alignedSlice(64))));
    }
  }

  /** A call after the arena was closed, with arguments that C knew before. */
  static final class Arenas {
    private static Object call(String type, String method, Object object, Object... arguments)
        throws Exception {
      for (Method m : Class.forName(type).getMethods()) {
        if (m.getName().equals(method) && m.getParameterCount() == arguments.length) {
          return m.invoke(object, arguments);
        }
      }
      throw new NoSuchMethodException(type + "." + method);
    }

    private interface Use {
      void with(ForwardArgs args, ByteBuffer buffer);
    }

    private static void run(Context context, Use use) throws Exception {
      boolean isOld = Runtime.version().feature() == 17;
      String types = isOld ? "jdk.incubator.foreign." : "java.lang.foreign.";
      String arenas = types + (isOld ? "ResourceScope" : "Arena");
      Object arena = call(arenas, isOld ? "newSharedScope" : "ofShared", null);
      long bytes = 1 << 20;
      Object segment =
          isOld
              ? call(types + "MemorySegment", "allocateNative", null, bytes, 64L, arena)
              : call(types + "SegmentAllocator", "allocate", arena, bytes, 64L);
      Object buffer = call(types + "MemorySegment", "asByteBuffer", segment);

      Small small = new Small(1);
      ForwardArgs args = small.args(small.tensor(4));
      use.with(args, ((ByteBuffer) buffer).order(ByteOrder.nativeOrder()));
      context.forward(small.desc, args);
      call(arenas, "close", arena);
      assertThrows(IllegalStateException.class, () -> context.forward(small.desc, args));
    }

    public static void main(String[] arguments) throws Exception {
      try (Context context = new Context(new ContextConfig())) {
        run(context, (args, buffer) -> args.q(Tensor.of(buffer, DType.FLOAT32)));
        run(context, (args, buffer) -> args.out(Tensor.of(buffer.asFloatBuffer())));
        run(context, (args, buffer) -> args.lse(Tensor.of(buffer.asFloatBuffer().position(4))));
        run(context, (args, buffer) -> args.workspace(buffer));
      }
    }
  }

  @Test
  void outlivesNoArena() throws Exception {
    boolean isOld = ModuleFinder.ofSystem().find("jdk.incubator.foreign").isPresent();
    int version = Runtime.version().feature();
    assumeTrue(isOld && version == 17 || version >= 22, "this Java has no arenas");
    String module = isOld ? "jdk.incubator.foreign" : "java.base";
    Child.run(0, Arenas.class, "--add-modules", module, Child.libraries(Child.LIBRARIES));
  }

  /** From the position on, and no further: whatever view of the memory it is. */
  @Test
  void beginsAtThePosition() {
    Small small = new Small(1);
    int bytes = 64 * 2 * 16 * 4;
    try (Context context = new Context(new ContextConfig())) {
      Array expected = small.tensor(4);
      context.forward(small.desc, small.args(expected));
      ByteBuffer memory = direct(bytes + 64);
      for (Supplier<Tensor> view :
          java.util.List.<Supplier<Tensor>>of(
              () -> Tensor.of(memory.position(32).limit(32 + bytes), DType.FLOAT32),
              () -> Tensor.of(memory.clear().asFloatBuffer().position(8)),
              () ->
                  Tensor.of(
                      memory
                          .clear()
                          .position(16)
                          .slice()
                          .order(ByteOrder.nativeOrder())
                          .asFloatBuffer()
                          .position(4)))) {
        memory.clear().put("7".repeat(memory.capacity()).getBytes(StandardCharsets.US_ASCII));
        context.forward(small.desc, small.args(expected).out(view.get()));
        memory.clear();
        for (int i = 0; i < memory.capacity(); ++i) {
          boolean isOurs = 32 <= i && i < 32 + bytes;
          assertEquals(isOurs ? expected.bytes.get(i - 32) : '7', memory.get(i));
        }
      }
    }
  }

  /** Strides, and a repeated slice, against the same copied out. */
  @Test
  void hasStrides() {
    Small small = new Small(1);
    try (Context context = new Context(new ContextConfig())) {
      Array key = Array.floats(2 * 16).fill(5, 0);
      Array keys = Array.floats(64 * 2 * 16);
      for (int i = 0; i < keys.count(); ++i) {
        keys.set(i, key.get(i % 32));
      }
      Array expected = small.tensor(4);
      context.forward(small.desc, small.args(expected).k(keys.tensor()));
      Array out = small.tensor(4);
      long repeat = Stride.REPEAT.value();
      Tensor repeated = key.tensor().strides(repeat, repeat, 16);
      context.forward(small.desc, small.args(out).k(repeated));
      assertEquals(expected.hash(), out.hash());
    }
  }

  @Test
  void checksLists() {
    AttentionDesc desc = new AttentionDesc().seqlenQ(8).headDim(16).batch(2);
    refuses(
        "kv_lengths has 3 entries; must have 2, batch",
        () -> RingAttention.shardLength(desc.kvLengths(1, 2, 3), 1, 0, Side.QUERY));
    desc.kvLengths((long[]) null).documentOffsetsQ(0, 3, 8).documentOffsetsKv(0, 8);
    refuses(
        "document_offsets_kv has 2 entries; must have 3, num_documents + 1",
        () -> RingAttention.shardLength(desc, 1, 0, Side.QUERY));
    desc.documentOffsetsQ(new long[0]);
    refuses("num_documents", () -> RingAttention.shardLength(desc, 1, 0, Side.QUERY));
    long[] offsets = {0, 3, 8};
    desc.documentOffsetsQ(offsets).documentOffsetsKv((long[]) null);
    offsets[1] = 100;
    assertEquals(8, RingAttention.shardLength(desc, 1, 0, Side.QUERY));
    desc.documentOffsetsQ()[1] = 100;
    assertEquals(8, RingAttention.shardLength(desc, 1, 0, Side.QUERY));
    assertEquals(3, desc.documentOffsetsQ()[1]);
  }

  @Test
  void findsPositions() {
    AttentionDesc desc = new AttentionDesc().seqlenQ(10).headDim(16).sharding(Sharding.STRIPED);
    long[] positions = RingAttention.shardPositions(desc, 3, 1, Side.QUERY);
    assertEquals(
        java.util.List.of(1L, 4L, 7L), java.util.Arrays.stream(positions).boxed().toList());
    assertEquals(7, RingAttention.shardPosition(desc, 3, 1, Side.QUERY, 2));
    for (long count : new long[] {-1, 4, Long.MAX_VALUE}) {
      refuses("count", () -> RingAttention.shardPositions(desc, 3, 1, Side.QUERY, 0, count));
    }
    refuses("first", () -> RingAttention.shardPositions(desc, 3, 1, Side.QUERY, -1, 0));
    assertEquals(0, RingAttention.shardPositions(desc, 3, 1, Side.QUERY, 3, 0).length);
  }

  @Test
  void findsWhatDropoutKeeps() {
    AttentionDesc desc = new AttentionDesc().seqlenQ(1000).headDim(16).dropoutProbability(0.25f);
    boolean[] row = RingAttention.dropoutMask(desc, 0, 0, 7, 0, 1000);
    boolean[] end = RingAttention.dropoutMask(desc, 0, 0, 7, 990, 10);
    assertArrayEquals(end, java.util.Arrays.copyOfRange(row, 990, 1000));
    int kept = 0;
    for (boolean isKept : row) {
      kept += isKept ? 1 : 0;
    }
    assertEquals(750, kept, 100);
    for (int count : new int[] {-1, 11}) {
      refuses("count", () -> RingAttention.dropoutMask(desc, 0, 0, 7, 990, count));
    }
    assertEquals(0, RingAttention.dropoutMask(desc, 0, 0, 7, 1000, 0).length);
  }

  @Test
  void countsWhatListsAreOf() {
    refuses(
        "mask_slices has 7 entries; must have 5",
        () ->
            RingAttention.shardLength(
                new AttentionDesc().seqlenQ(9).headDim(4).maskSlices(0, 9, 0, 9, 0, 1, 2),
                1,
                0,
                Side.QUERY));
    refuses(
        "dilations has 1 entries; must have 2",
        () ->
            RingAttention.shardLength(
                new AttentionDesc().seqlenQ(9).headDim(4).segmentLengths(4, 9).dilations(1),
                1,
                0,
                Side.QUERY));
    long[] none = {};
    AttentionDesc empty = new AttentionDesc().seqlenQ(9).headDim(4).maskSlices(none).dilations(none);
    assertEquals(9, RingAttention.shardLength(empty, 1, 0, Side.QUERY));
  }
}
