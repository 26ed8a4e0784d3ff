// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaCapabilities;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;

/**
 * What this build can do on this machine.
 *
 * @param version RingAttention.version()
 * @param hasCuda 1 if Backend.CUDA can be used here
 * @param hasZeromq 1 if Transport.ZEROMQ can be used here
 * @param hasNccl 1 if Transport.NCCL can be used here
 * @param hardwareThreads logical processors that the process may use
 * @param numDevices CUDA devices
 * @param maxHeadDim largest headDim and headDimV
 * @param engines engine names that ContextConfig.engine takes here on CPUs, fastest first, comma-
 *     separated
 */
public record Capabilities(
    int version,
    boolean hasCuda,
    boolean hasZeromq,
    boolean hasNccl,
    int hardwareThreads,
    int numDevices,
    long maxHeadDim,
    String engines) {
  static Struct<RaCapabilities> struct() {
    return new Struct<>(
        RingAttnConstants.CAPABILITIES_SIZE, RaCapabilities::new, RingAttn::raInitCapabilities);
  }

  static Capabilities of(Struct<RaCapabilities> struct) {
    RaCapabilities c = struct.c;
    Capabilities record =
        new Capabilities(
            c.getVersion(),
            c.getHasCuda() != 0,
            c.getHasZeromq() != 0,
            c.getHasNccl() != 0,
            c.getHardwareThreads(),
            c.getNumDevices(),
            c.getMaxHeadDim(),
            c.getEngines());
    struct.keepAlive();
    return record;
  }
}
