package dev.ringattn;

import static dev.ringattn.RingAttentionException.require;

import dev.ringattn.internal.RaTensor;
import dev.ringattn.internal.RingAttn;
import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.ShortBuffer;

/**
 * A tensor [batch, seq, head, dim] in memory of the caller's: what is between position and limit of
 * a direct buffer in native order, or memory at an address. Packed, unless {@link #strides} says
 * otherwise. Immutable; it keeps the buffer alive, and later changes of the buffer's position do
 * not matter.
 *
 * <p>Whether the memory is enough for a tensor is checked by the call that uses it.
 *
 * <p>The memory of a MemorySegment's buffer goes when its Arena (in Java 17, its ResourceScope) is
 * closed. A call that begins after that, or in a thread that may not read the buffer, as its Arena
 * is confined to another, throws what reading it would, as an IllegalStateException. During a call
 * nothing can keep the Arena open: whoever closes a shared one waits until the call has returned,
 * and on CUDA until the stream is done with it.
 */
public final class Tensor {
  private final Buffer memory; // null if it is no buffer's
  private final boolean isReadOnly;
  private final long address;
  private final long size;
  private final DType dtype; // null: bytes
  private final long batchStride;
  private final long seqStride;
  private final long headStride;

  private Tensor(
      Buffer memory,
      boolean isReadOnly,
      long address,
      long size,
      DType dtype,
      long batchStride,
      long seqStride,
      long headStride) {
    this.memory = memory;
    this.isReadOnly = isReadOnly;
    this.address = address;
    this.size = size;
    this.dtype = dtype;
    this.batchStride = batchStride;
    this.seqStride = seqStride;
    this.headStride = headStride;
  }

  /** Of FLOAT32. */
  public static Tensor of(FloatBuffer buffer) {
    return of(buffer, buffer.order(), Float.BYTES, DType.FLOAT32);
  }

  /** Of BFLOAT16 or FLOAT16, which {@link BFloat16} and {@link Float16} convert. */
  public static Tensor of(ShortBuffer buffer, DType dtype) {
    require(sizeOf(dtype) == Short.BYTES, () -> "shorts are no " + dtype);
    return of(buffer, buffer.order(), Short.BYTES, dtype);
  }

  /** Of any element type. */
  public static Tensor of(ByteBuffer buffer, DType dtype) {
    sizeOf(dtype);
    return of(buffer, buffer.order(), 1, dtype);
  }

  /**
   * Of `size` bytes from `address` on: device memory, or host memory of more than a buffer's 2 GiB,
   * such as a MemorySegment of newer Java. Nothing checks that they are there; they must be for as
   * long as calls use them.
   */
  public static Tensor at(long address, long size, DType dtype) {
    require(size >= 0, () -> "size is " + size + "; must be at least 0 bytes");
    return new Tensor(null, false, address, size, dtype, 0, 0, 0);
  }

  /** Zeros, in a direct buffer; at most 2^29 - 1, which is what a buffer holds. */
  public static FloatBuffer allocateFloats(long count) {
    long limit = Integer.MAX_VALUE / Float.BYTES;
    require(0 <= count && count <= limit, () -> "count is " + count + "; must be 0 .. " + limit);
    return ByteBuffer.allocateDirect((int) (count * Float.BYTES))
        .order(ByteOrder.nativeOrder())
        .asFloatBuffer();
  }

  /**
   * The same memory, with these distances in elements from one entry, token and head to the next:
   * all three 0 (Stride.PACKED), or none of a dimension with more than one entry. Stride.REPEAT
   * reads one slice again and again.
   */
  public Tensor strides(long batchStride, long seqStride, long headStride) {
    return new Tensor(memory, isReadOnly, address, size, dtype, batchStride, seqStride, headStride);
  }

  /** The type of its elements. */
  public DType dtype() {
    return dtype;
  }

  /** Bytes from its first element on. */
  public long size() {
    return size;
  }

  private static Tensor of(Buffer buffer, ByteOrder order, long unit, DType dtype) {
    require(buffer.isDirect(), () -> "the buffer is on the heap; must be direct");
    ByteOrder here = ByteOrder.nativeOrder();
    require(
        order == here,
        () ->
            "the buffer is " + order + "; must be " + here + ", by order(ByteOrder.nativeOrder())");
    long address = RingAttn.addressOf(buffer) + buffer.position() * unit;
    long alignment = dtype == null ? 1 : sizeOf(dtype);
    require(
        address % alignment == 0,
        () -> "the buffer begins at address " + address + "; must be a multiple of " + alignment);
    long size = buffer.remaining() * unit;
    return new Tensor(buffer.duplicate(), buffer.isReadOnly(), address, size, dtype, 0, 0, 0);
  }

  static Tensor bytes(String name, ByteBuffer buffer) {
    return buffer == null ? null : writable(name, of(buffer, ByteOrder.nativeOrder(), 1, null));
  }

  static long sizeOf(DType dtype) {
    require(dtype != DType.SAME, () -> "dtype is SAME, which is no type of elements");
    return dtype == DType.FLOAT32 ? Float.BYTES : Short.BYTES;
  }

  static Tensor writable(String name, Tensor tensor) {
    require(
        tensor == null || !tensor.isReadOnly, () -> name + " is a read-only buffer, and an output");
    return tensor;
  }

  static Tensor floats(String name, Tensor tensor) {
    require(
        tensor == null || tensor.dtype == DType.FLOAT32,
        () -> name + " holds " + tensor.dtype + "; must be FLOAT32");
    return tensor;
  }

  static Tensor packedFloats(String name, Tensor tensor, boolean isOutput) {
    floats(name, tensor);
    require(
        tensor == null || (tensor.batchStride | tensor.seqStride | tensor.headStride) == 0,
        () -> name + " has strides; must be packed");
    return isOutput ? writable(name, tensor) : tensor;
  }

  /** Refuses a tensor that has another element type than a description says in `field`. */
  static void requireType(String name, Tensor tensor, DType expected, String field) {
    RingAttentionException.require(
        tensor == null || expected == DType.SAME || tensor.dtype == expected,
        () -> name + " holds " + tensor.dtype + "; " + field + " is " + expected);
  }

  /** An output's type, which may be that of the inputs. */
  static DType orSame(DType dtype, DType same) {
    return dtype == DType.SAME ? same : dtype;
  }

  // ---------------------------------------------------------------- into C

  static void write(Tensor tensor, RaTensor c, Struct<?> struct) {
    if (tensor == null) {
      return;
    }
    struct.keep(tensor.memory);
    c.setData(tensor.size == 0 ? 0 : tensor.address); // a size of 0 would mean: not checked
    c.setBatchStride(tensor.batchStride);
    c.setSeqStride(tensor.seqStride);
    c.setHeadStride(tensor.headStride);
    c.setSize(tensor.size);
  }

  static long address(Tensor tensor, Struct<?> struct) {
    if (tensor == null) {
      return 0;
    }
    struct.keep(tensor.memory);
    return tensor.address;
  }

  /** Throws if this thread cannot read what `buffer` began with, as its Arena is closed. */
  static void touch(Buffer buffer) {
    if (!buffer.hasRemaining()) {
      return; // C reads nothing either
    }
    int first = buffer.position();
    if (buffer instanceof FloatBuffer floats) {
      floats.get(first);
    } else if (buffer instanceof ShortBuffer shorts) {
      shorts.get(first);
    } else {
      ((ByteBuffer) buffer).get(first);
    }
  }

  /** Bytes of the shortest; 1 instead of 0, which would mean: not checked. */
  static long shortest(Tensor... tensors) {
    long shortest = Long.MAX_VALUE;
    for (Tensor tensor : tensors) {
      shortest = tensor == null ? shortest : Math.min(shortest, Math.max(tensor.size, 1));
    }
    return shortest;
  }
}
