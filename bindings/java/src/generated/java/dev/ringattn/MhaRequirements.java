// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaMhaRequirements;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;

/**
 * What one rank needs for one layer, in bytes.
 *
 * @param activations kept from Context.mhaForward to Context.mhaBackward, beside x; 0 with
 *     Checkpoint.INPUT
 * @param forwardWorkspace q, k and v, the output of attention and its lse, unless they are kept;
 *     room for each thread's blocks of products, on CUDA about 80 MiB for those and for cuBLAS; and
 *     MemoryRequirements.forwardWorkspace of attention
 * @param backwardWorkspace gradients of q, k, v and the output of attention; what is computed
 *     again; a part of the largest gradient of a weight, where gradients are summed over ranks; the
 *     same room for products; and the larger of the workspaces of attention that are needed
 * @param forwardFlops of products of matrices and of attention, of this rank
 * @param backwardFlops the same for Context.mhaBackward, what is computed again included
 */
public record MhaRequirements(
    long activations,
    long forwardWorkspace,
    long backwardWorkspace,
    double forwardFlops,
    double backwardFlops) {
  static Struct<RaMhaRequirements> struct() {
    return new Struct<>(
        RingAttnConstants.MHA_REQUIREMENTS_SIZE,
        RaMhaRequirements::new,
        RingAttn::raInitMhaRequirements);
  }

  static MhaRequirements of(Struct<RaMhaRequirements> struct) {
    RaMhaRequirements c = struct.c;
    MhaRequirements record =
        new MhaRequirements(
            c.getActivations(),
            c.getForwardWorkspace(),
            c.getBackwardWorkspace(),
            c.getForwardFlops(),
            c.getBackwardFlops());
    struct.keepAlive();
    return record;
  }
}
