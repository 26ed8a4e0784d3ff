// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaMemoryRequirements;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;

/**
 * What one rank needs for one problem, in bytes, and what its calls will do. A rank's memory during
 * a forward call is forwardTensors + forwardWorkspace, and the same with backward_. Not counted are
 * the context itself, its threads, its transport, which over ZeroMQ has up to 4 MiB each way of
 * messages under way with each rank that it exchanges chunks with, and short lists of what is to be
 * computed: about 500 bytes for each document, the same for each mask slice and, for the heads of
 * each phase, each segment of a branch, where all that a rank has side by side, or that stripes
 * divide alike, are as one; with 100 for each of their ranks, and 100 for each chunk of each rank.
 *
 * <p>Mask slices and dilated attention are computed in layers, one after the other: a layer has the
 * slices that share no rows, of the heads that keep the same positions in a branch. Steps, hops,
 * bytes, pairs and flops are those of all layers together, a workspace is that of the layer that
 * needs most, and what all of them share.
 *
 * @param forwardTensors q, k, v, out and lse, packed; and where the description has them, keyBias
 *     and sinks
 * @param backwardTensors q, k, v, out, lse, dout, dq, dk and dv, packed; and where the description
 *     has them, keyBias, sinks and dsinks
 * @param forwardWorkspace tiles of each thread and, unless worldSize is 1, two chunks in flight,
 *     max and sum of each row, and the output in fp32 where outDtype is another; where cuDNN may
 *     run, what it needs and, unless worldSize is 1, one block's output in fp32.
 *     Schedule.ALL_GATHER: the same for one part, but its own chunk and those of the r ranks whose
 *     keys it sees, 1 + r. A chunk has its keys' keyBias with it; sinks take a number for each
 *     query head. With mask slices or branches: tiles and chunks of one layer, and unless that
 *     keeps all rows in all heads, its rows of q, packed, and their output, max and sum in fp32;
 *     and shared by all layers, max and sum of each row, and the output in fp32 where outDtype is
 *     another
 * @param backwardWorkspace tiles of each thread, delta of each row, dq in fp32 where gradDtype is
 *     another, two chunks in flight and four of gradients in fp32; if worldSize is 1, one and one.
 *     Schedule.ALL_GATHER: the same for one part, but 1 + r chunks, and 1 + r + s of gradients,
 *     where s other ranks see its keys. With mask slices or branches: tiles, chunks and their
 *     gradients of one layer, and unless that keeps all rows in all heads, its rows of q and dout,
 *     packed, and their lse, delta and dq in fp32; and shared by all layers, delta, and dq, dk and
 *     dv in fp32 where gradDtype is another. DilationGradient.CONSTANT_WEIGHTS: or that of a
 *     branch's forward pass, if it is more, and in any case a branch's output, max and sum in fp32
 * @param lse lse alone, part of the tensors
 * @param context sizeof the context, without what it points to
 * @param forwardChunks chunks that a K/V shard is cut into: numChunks or the library's choice, but
 *     no more than the longest shard has tokens, and 1 if worldSize is 1
 * @param backwardChunks the same for Context.backward, also if worldSize is 1
 * @param forwardSteps block computations of this rank that see at least one key
 * @param backwardSteps the same for Context.backward
 * @param forwardHops messages that this rank sends
 * @param backwardHops the same for Context.backward, gradients included
 * @param forwardHopBytes bytes of those messages
 * @param backwardHopBytes the same for Context.backward
 * @param visiblePairs (query, key) pairs that this rank's rows see, summed over batch and query
 *     heads
 * @param forwardFlops 2 (headDim + headDimV) per visible pair
 * @param backwardFlops 2 (3 headDim + 2 headDimV) per visible pair
 * @param forwardSchedule Schedule of Context.forward: desc.schedule, or what Schedule.AUTO stands
 *     for; RING if worldSize is 1
 * @param backwardSchedule Schedule of Context.backward, in the same way
 * @param forwardParts parts of the problem that are computed one after the other; 1 with
 *     Schedule.RING, but of each layer
 * @param backwardParts the same for Context.backward
 */
public record MemoryRequirements(
    long forwardTensors,
    long backwardTensors,
    long forwardWorkspace,
    long backwardWorkspace,
    long lse,
    long context,
    long forwardChunks,
    long backwardChunks,
    long forwardSteps,
    long backwardSteps,
    long forwardHops,
    long backwardHops,
    long forwardHopBytes,
    long backwardHopBytes,
    double visiblePairs,
    double forwardFlops,
    double backwardFlops,
    Schedule forwardSchedule,
    Schedule backwardSchedule,
    long forwardParts,
    long backwardParts) {
  static Struct<RaMemoryRequirements> struct() {
    return new Struct<>(
        RingAttnConstants.MEMORY_REQUIREMENTS_SIZE,
        RaMemoryRequirements::new,
        RingAttn::raInitMemoryRequirements);
  }

  static MemoryRequirements of(Struct<RaMemoryRequirements> struct) {
    RaMemoryRequirements c = struct.c;
    MemoryRequirements record =
        new MemoryRequirements(
            c.getForwardTensors(),
            c.getBackwardTensors(),
            c.getForwardWorkspace(),
            c.getBackwardWorkspace(),
            c.getLse(),
            c.getContext(),
            c.getForwardChunks(),
            c.getBackwardChunks(),
            c.getForwardSteps(),
            c.getBackwardSteps(),
            c.getForwardHops(),
            c.getBackwardHops(),
            c.getForwardHopBytes(),
            c.getBackwardHopBytes(),
            c.getVisiblePairs(),
            c.getForwardFlops(),
            c.getBackwardFlops(),
            Schedule.of(c.getForwardSchedule()),
            Schedule.of(c.getBackwardSchedule()),
            c.getForwardParts(),
            c.getBackwardParts());
    struct.keepAlive();
    return record;
  }
}
