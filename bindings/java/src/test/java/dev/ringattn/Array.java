package dev.ringattn;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/** Numbers of one type in direct memory. */
final class Array {
  final DType dtype;
  final ByteBuffer bytes;

  Array(DType dtype, long count) {
    this.dtype = dtype;
    bytes =
        ByteBuffer.allocateDirect(Math.toIntExact(Tensor.sizeOf(dtype) * count))
            .order(ByteOrder.nativeOrder());
  }

  static Array floats(long count) {
    return new Array(DType.FLOAT32, count);
  }

  Tensor tensor() {
    return Tensor.of(bytes, dtype);
  }

  long count() {
    return bytes.capacity() / Tensor.sizeOf(dtype);
  }

  float get(long index) {
    int i = (int) index;
    return switch (dtype) {
      case BFLOAT16 -> BFloat16.toFloat(bytes.getShort(2 * i));
      case FLOAT16 -> Float16.toFloat(bytes.getShort(2 * i));
      default -> bytes.getFloat(4 * i);
    };
  }

  void set(long index, float value) {
    int i = (int) index;
    switch (dtype) {
      case BFLOAT16 -> bytes.putShort(2 * i, BFloat16.fromFloat(value));
      case FLOAT16 -> bytes.putShort(2 * i, Float16.fromFloat(value));
      default -> bytes.putFloat(4 * i, value);
    }
  }

  /** Numbers of tensor t by the conformance suite's rule. */
  Array fill(long seed, int t) {
    for (long i = 0; i < count(); ++i) {
      set(i, (mix(((seed * 16 + t) << 32) + i) >>> 57) / 64f - 1);
    }
    return this;
  }

  /** FNV-1a of all bytes. */
  String hash() {
    long hash = 0xCBF29CE484222325L;
    for (int i = 0; i < bytes.capacity(); ++i) {
      hash = (hash ^ bytes.get(i) & 0xFF) * 0x100000001B3L;
    }
    return String.format("%016x", hash);
  }

  private static long mix(long x) {
    long z = x + 0x9E3779B97F4A7C15L;
    z = (z ^ z >>> 30) * 0xBF58476D1CE4E5B9L;
    z = (z ^ z >>> 27) * 0x94D049BB133111EBL;
    return z ^ z >>> 31;
  }
}
