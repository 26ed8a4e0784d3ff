// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaContextInfo;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;

/**
 * What a context is, with everything that its config left to the library.
 *
 * @param rank rank
 * @param worldSize world size
 * @param backend Backend
 * @param transport Transport
 * @param device CUDA device ordinal; 0 on the CPU backend
 * @param numThreads CPU threads that calls of this rank may use, the calling one included
 * @param timeoutMs longest wait for another rank
 * @param engine its name, as in Capabilities.engines. Types and sizes that the engine has no
 *     instructions for are computed with those of the engines behind it in that list. On CUDA
 *     "cudnn" if that may run, with "portable" behind it
 */
public record ContextInfo(
    int rank,
    int worldSize,
    Backend backend,
    Transport transport,
    int device,
    int numThreads,
    long timeoutMs,
    String engine) {
  static Struct<RaContextInfo> struct() {
    return new Struct<>(
        RingAttnConstants.CONTEXT_INFO_SIZE, RaContextInfo::new, RingAttn::raInitContextInfo);
  }

  static ContextInfo of(Struct<RaContextInfo> struct) {
    RaContextInfo c = struct.c;
    ContextInfo record =
        new ContextInfo(
            c.getRank(),
            c.getWorldSize(),
            Backend.of(c.getBackend()),
            Transport.of(c.getTransport()),
            c.getDevice(),
            c.getNumThreads(),
            c.getTimeoutMs(),
            c.getEngine());
    struct.keepAlive();
    return record;
  }
}
