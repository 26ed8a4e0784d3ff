package dev.ringattn;

import java.nio.charset.StandardCharsets;
import java.util.function.Supplier;

/** Why a call failed. Messages name the field, by its C name, its value and the limit. */
public final class RingAttentionException extends RuntimeException {
  private static final long serialVersionUID = 1;

  private final Status status;
  private final int rank;
  private final int cudaError;
  private final int ncclResult;

  RingAttentionException(Status status, String message) {
    super(status + ": " + message);
    this.status = status;
    rank = -1;
    cudaError = 0;
    ncclResult = 0;
  }

  /** Called by JNI (bindings/swig/java.i). */
  private RingAttentionException(
      int status, int rank, int cudaError, int ncclResult, byte[] message) {
    super(Status.of(status) + ": " + new String(message, StandardCharsets.UTF_8));
    this.status = Status.of(status);
    this.rank = rank;
    this.cudaError = cudaError;
    this.ncclResult = ncclResult;
  }

  static void require(boolean condition, Supplier<String> otherwise) {
    if (!condition) {
      throw new RingAttentionException(Status.INVALID_ARGUMENT, otherwise.get());
    }
  }

  /** What went wrong, for programs. */
  public Status status() {
    return status;
  }

  /** The rank that broke the group, the same on every rank; -1 where no single one did. */
  public int rank() {
    return rank;
  }

  /** The cudaError_t; 0 if none. */
  public int cudaError() {
    return cudaError;
  }

  /** The ncclResult_t; 0 if none. */
  public int ncclResult() {
    return ncclResult;
  }
}
