package dev.ringattn;

import java.nio.ByteBuffer;

/**
 * What a layer's forward pass keeps for its backward pass: {@link Context#mhaForward} writes it,
 * {@link Context#mhaBackward} reads it. One serves any number of such pairs of calls, one pair
 * after the other; what runs forward again before it ran backward needs one of its own.
 *
 * <p>With Checkpoint.INPUT it has no memory, and may be given to calls all the same.
 */
public final class Activations {
  private static final long ALIGNMENT = 64;

  private final Tensor memory; // null: none is needed
  private final long size;

  /**
   * For calls of `context` with `desc` and `mha`, as {@link Context#mhaRequirements} says. A buffer
   * has less than 2 GiB: where more is needed, give the calls an address. Errors: as
   * mhaRequirements.
   */
  public Activations(Context context, AttentionDesc desc, MhaDesc mha) {
    size = context.mhaRequirements(desc, mha).activations();
    long limit = Integer.MAX_VALUE / ALIGNMENT * ALIGNMENT - ALIGNMENT;
    RingAttentionException.require(
        size <= limit, () -> "activations takes " + size + " bytes; a buffer holds " + limit);
    long room = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + ALIGNMENT - 1;
    ByteBuffer buffer = ByteBuffer.allocateDirect((int) room).alignedSlice((int) ALIGNMENT);
    memory = size == 0 ? null : Tensor.bytes("activations", buffer.limit((int) size));
  }

  /** Bytes that are kept. */
  public long size() {
    return size;
  }

  Tensor memory() {
    return memory;
  }
}
