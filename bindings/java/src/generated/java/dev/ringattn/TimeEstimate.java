// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaTimeEstimate;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;

/**
 * How long a rank's calls take; comparable with CallStatistics.
 *
 * @param forwardSeconds of Context.forward, from when all ranks have made the call until this one
 *     is done
 * @param forwardComputeSeconds of it, in block computations; the rest is waiting
 * @param backwardSeconds the same for Context.backward
 * @param backwardComputeSeconds the same for Context.backward
 */
public record TimeEstimate(
    double forwardSeconds,
    double forwardComputeSeconds,
    double backwardSeconds,
    double backwardComputeSeconds) {
  static Struct<RaTimeEstimate> struct() {
    return new Struct<>(
        RingAttnConstants.TIME_ESTIMATE_SIZE, RaTimeEstimate::new, RingAttn::raInitTimeEstimate);
  }

  static TimeEstimate of(Struct<RaTimeEstimate> struct) {
    RaTimeEstimate c = struct.c;
    TimeEstimate record =
        new TimeEstimate(
            c.getForwardSeconds(),
            c.getForwardComputeSeconds(),
            c.getBackwardSeconds(),
            c.getBackwardComputeSeconds());
    struct.keepAlive();
    return record;
  }
}
