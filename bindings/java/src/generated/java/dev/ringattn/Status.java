// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

/** Outcome of a call. Values are stable; new ones are only added at the end. */
public enum Status {
  SUCCESS(0),
  /** A field is outside its documented range; nothing was done, but new Context uses up its id. */
  INVALID_ARGUMENT(1),
  /** A legal request that this build, machine or engine cannot serve. */
  NOT_SUPPORTED(2),
  /** Host or device memory could not be allocated. */
  OUT_OF_MEMORY(3),
  /**
   * The context failed or was aborted earlier, or is in use by another thread, or is of the process
   * that this one was forked from, or a stream is being captured before the call was once made
   * without that (Context.forward).
   */
  INVALID_STATE(4),
  /** A rank did not come within ContextConfig.timeoutMs; RingAttentionException.rank names it. */
  TIMEOUT(5),
  /**
   * Context.abort was called on this rank or, if RingAttentionException.rank says so, on another.
   */
  ABORTED(6),
  /** Another rank failed or left during the operation; RingAttentionException.rank names it. */
  PEER_LOST(7),
  /**
   * Ranks disagree on the problem or on the order of calls; every rank gets this, and
   * RingAttentionException.rank names the one that contradicts all others, if they agree. The
   * message has the first field that differs, with its value on two ranks; of a list, a digest.
   */
  MISMATCH(8),
  /** RingAttentionException.cudaError holds the cudaError_t. */
  CUDA_ERROR(9),
  /** RingAttentionException.ncclResult holds the ncclResult_t. */
  NCCL_ERROR(10),
  /** A defect of the library, or a self-test that found a wrong result. */
  INTERNAL_ERROR(11),
  /** What a newer library calls something that is not known here. */
  UNKNOWN(-1);

  private final int value;

  Status(int value) {
    this.value = value;
  }

  /** The value of the C constant. */
  public int value() {
    return value;
  }

  static Status of(int value) {
    for (Status constant : values()) {
      if (constant.value == value) {
        return constant;
      }
    }
    return UNKNOWN;
  }
}
