// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaCallStatistics;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;

/**
 * What the last call of Context.forward, Context.backward, Context.mhaForward, Context.mhaBackward,
 * Context.allReduce or KvCache.decode on a context did; comparable field by field with
 * MemoryRequirements. On CUDA times are those of enqueuing.
 *
 * @param steps block computations that were carried out
 * @param hops messages that this rank sent
 * @param hopBytes bytes of those messages
 * @param totalSeconds wall time of the call
 * @param computeSeconds of it, in block computations, and the communication that is hidden among
 *     them
 * @param waitSeconds of it, waiting for other ranks: until all make the call, and for communication
 *     that was not hidden
 * @param projectionSeconds of it, in what a layer of multi-head attention does beside attention
 * @param schedule Schedule of KvCache.decode: Schedule.PASS_Q or Schedule.RING; Schedule.AUTO after
 *     other calls
 */
public record CallStatistics(
    long steps,
    long hops,
    long hopBytes,
    double totalSeconds,
    double computeSeconds,
    double waitSeconds,
    double projectionSeconds,
    Schedule schedule) {
  static Struct<RaCallStatistics> struct() {
    return new Struct<>(
        RingAttnConstants.CALL_STATISTICS_SIZE,
        RaCallStatistics::new,
        RingAttn::raInitCallStatistics);
  }

  static CallStatistics of(Struct<RaCallStatistics> struct) {
    RaCallStatistics c = struct.c;
    CallStatistics record =
        new CallStatistics(
            c.getSteps(),
            c.getHops(),
            c.getHopBytes(),
            c.getTotalSeconds(),
            c.getComputeSeconds(),
            c.getWaitSeconds(),
            c.getProjectionSeconds(),
            Schedule.of(c.getSchedule()));
    struct.keepAlive();
    return record;
  }
}
