package dev.ringattn;

import dev.ringattn.internal.RaAttentionDesc;
import dev.ringattn.internal.RaBackwardArgs;
import dev.ringattn.internal.RaCallStatistics;
import dev.ringattn.internal.RaContextConfig;
import dev.ringattn.internal.RaContextInfo;
import dev.ringattn.internal.RaForwardArgs;
import dev.ringattn.internal.RaMemoryRequirements;
import dev.ringattn.internal.RaMhaBackwardArgs;
import dev.ringattn.internal.RaMhaDesc;
import dev.ringattn.internal.RaMhaForwardArgs;
import dev.ringattn.internal.RaMhaRequirements;
import dev.ringattn.internal.RaReduceArgs;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;
import java.lang.ref.Cleaner;
import java.lang.ref.Reference;
import java.nio.charset.StandardCharsets;
import java.util.Optional;
import java.util.function.LongFunction;

/**
 * One rank's membership in a group of ranks, with its threads, its engine and its memory.
 *
 * <p>Threads: {@link #forward}, {@link #backward}, {@link #mhaForward}, {@link #mhaBackward},
 * {@link #allReduce} and {@link #runSelfTest}, and append and decode of its {@link KvCache}s, are
 * for one thread at a time; a second one gets INVALID_STATE. All else may be called from any
 * thread, meanwhile too.
 *
 * <p>Collective means: every rank makes the same calls in the same order. Such a call blocks its
 * thread, so each rank of the local transport needs a thread of its own.
 *
 * <p>What nobody closed, the garbage collector closes; until then it holds memory and, for the
 * other ranks, is a rank that does not come.
 */
public final class Context implements AutoCloseable {
  static final Cleaner CLEANER = Cleaner.create();

  private final Handle handle;
  private final Cleaner.Cleanable cleanable;

  /**
   * Joins this rank to its group. Collective and blocking: returns when all ranks have joined, at
   * the latest after timeoutMs; with a worldSize of 1 at once.
   *
   * <p>Errors: INVALID_ARGUMENT, NOT_SUPPORTED (the message says what is missing), OUT_OF_MEMORY,
   * CUDA_ERROR, NCCL_ERROR, TIMEOUT (naming the first absent rank), MISMATCH (ranks disagree on the
   * worldSize, or one came twice), PEER_LOST. They use up the id: all ranks begin again with a new
   * one.
   */
  public Context(ContextConfig config) {
    Struct<RaContextConfig> c = config.made();
    handle = new Handle(RingAttn.raCreateContext(c.c));
    c.keepAlive();
    cleanable = CLEANER.register(this, handle);
  }

  /**
   * Attends this rank's queries to the keys and values of all ranks. Collective.
   *
   * <p>On the CPU it returns when out and lse are complete. On CUDA it enqueues its work on the
   * stream of `args` and returns; the tensors belong to the call until that is over.
   *
   * <p>Errors: INVALID_ARGUMENT and NOT_SUPPORTED, found before anything is sent: the other ranks
   * wait, and the call may be repeated with better arguments. INVALID_STATE. After OUT_OF_MEMORY,
   * TIMEOUT, PEER_LOST, MISMATCH, ABORTED, CUDA_ERROR, NCCL_ERROR and INTERNAL_ERROR the context is
   * of no more use and says INVALID_STATE.
   */
  public void forward(AttentionDesc desc, ForwardArgs args) {
    args.requireTypes(desc);
    Struct<RaAttentionDesc> d = desc.made();
    Struct<RaForwardArgs> a = args.made();
    collective(context -> RingAttn.raForward(context, d.c, a.c));
    d.keepAlive();
    a.keepAlive();
  }

  /**
   * Gradients of {@link #forward} with respect to this rank's q, k and v, given the gradient of
   * out. Collective; blocking and errors as forward.
   */
  public void backward(AttentionDesc desc, BackwardArgs args) {
    args.requireTypes(desc);
    Struct<RaAttentionDesc> d = desc.made();
    Struct<RaBackwardArgs> a = args.made();
    collective(context -> RingAttn.raBackward(context, d.c, a.c));
    d.keepAlive();
    a.keepAlive();
  }

  /**
   * Multi-head attention of this rank's tokens over those of all ranks, from the tokens themselves:
   * projects x, attends as {@link #forward} does, projects what comes out. Collective, with an
   * equal `desc` and `mha` and the same weights on every rank.
   *
   * <p>The keys are the tokens of x: seqlenKv is seqlenQ, and keyBias and sinks are not part of a
   * layer. What lies between is stored in desc.dtype; products are summed in fp32. Results are
   * bitwise equal from run to run and for any number of threads. Products are oneDNN's, or on CUDA
   * cuBLAS's, which is loaded when a layer is first asked for.
   *
   * <p>Blocking and errors as forward; NOT_SUPPORTED also where that is not found.
   */
  public void mhaForward(AttentionDesc desc, MhaDesc mha, MhaForwardArgs args) {
    args.requireTypes(desc);
    Struct<RaAttentionDesc> d = desc.made();
    Struct<RaMhaDesc> m = mha.made();
    Struct<RaMhaForwardArgs> a = args.made();
    collective(context -> RingAttn.raMhaForward(context, d.c, m.c, a.c));
    d.keepAlive();
    m.keepAlive();
    a.keepAlive();
  }

  /**
   * Gradients of {@link #mhaForward} with respect to x and the weights, as far as there are tensors
   * for them, given the gradient of out. Those of weights are FLOAT32. Collective; blocking and
   * errors as mhaForward.
   *
   * <p>Deterministic, sums over ranks included: these are made in an order of ranks that depends on
   * nothing but the world size, and are the same bits on every rank.
   */
  public void mhaBackward(AttentionDesc desc, MhaDesc mha, MhaBackwardArgs args) {
    args.requireTypes(desc);
    Struct<RaAttentionDesc> d = desc.made();
    Struct<RaMhaDesc> m = mha.made();
    Struct<RaMhaBackwardArgs> a = args.made();
    collective(context -> RingAttn.raMhaBackward(context, d.c, m.c, a.c));
    d.keepAlive();
    m.keepAlive();
    a.keepAlive();
  }

  /**
   * Each number of `data`, packed FLOAT32, becomes the sum of those in its place on all ranks: for
   * what a model has beside attention, whose gradients are summed over ranks like those of a layer.
   * Deterministic, and the same bits on every rank. Collective, with as many numbers on every rank;
   * blocking and errors as {@link #forward}, and on errors `data` holds what has been summed so
   * far. CPU backend.
   */
  public void allReduce(Tensor data) {
    Tensor.packedFloats("data", data, true);
    Struct<RaReduceArgs> a =
        new Struct<>(
            RingAttnConstants.REDUCE_ARGS_SIZE, RaReduceArgs::new, RingAttn::raInitReduceArgs);
    a.c.setData(Tensor.address(data, a));
    a.c.setDataSize(Tensor.shortest(data));
    a.c.setCount(data.size() / Float.BYTES);
    a.usable();
    collective(context -> RingAttn.raAllReduce(context, a.c));
    a.keepAlive();
  }

  /**
   * Says which engine runs `desc` forward and backward, and on CUDA why another does not. Local.
   * Errors: NOT_SUPPORTED with the reason, INVALID_ARGUMENT with the field, its value and the
   * limit.
   */
  public String checkSupport(AttentionDesc desc) {
    Struct<RaAttentionDesc> d = desc.made();
    byte[] engine = get(context -> RingAttn.raCheckSupport(context, d.c));
    d.keepAlive();
    return new String(engine, StandardCharsets.UTF_8);
  }

  /**
   * What this rank needs for `desc`, and what its calls will do. Local. Errors: as checkSupport.
   */
  public MemoryRequirements memoryRequirements(AttentionDesc desc) {
    Struct<RaAttentionDesc> d = desc.made();
    Struct<RaMemoryRequirements> requirements = MemoryRequirements.struct();
    local(context -> RingAttn.raGetMemoryRequirements(context, d.c, requirements.c));
    d.keepAlive();
    return MemoryRequirements.of(requirements);
  }

  /**
   * What this rank needs for a layer, in bytes. Local. Errors: as {@link #mhaForward} of `desc` and
   * `mha`.
   */
  public MhaRequirements mhaRequirements(AttentionDesc desc, MhaDesc mha) {
    Struct<RaAttentionDesc> d = desc.made();
    Struct<RaMhaDesc> m = mha.made();
    Struct<RaMhaRequirements> requirements = MhaRequirements.struct();
    local(context -> RingAttn.raGetMhaRequirements(context, d.c, m.c, requirements.c));
    d.keepAlive();
    m.keepAlive();
    return MhaRequirements.of(requirements);
  }

  /**
   * What the last completed {@link #forward}, {@link #backward}, {@link #mhaForward}, {@link
   * #mhaBackward}, {@link #allReduce} or {@link KvCache#decode} did; all 0 before the first.
   */
  public CallStatistics statistics() {
    Struct<RaCallStatistics> statistics = CallStatistics.struct();
    local(context -> RingAttn.raGetCallStatistics(context, statistics.c));
    return CallStatistics.of(statistics);
  }

  /** What this context is, with everything that its config left to the library. */
  public ContextInfo info() {
    Struct<RaContextInfo> info = ContextInfo.struct();
    local(context -> RingAttn.raGetContextInfo(context, info.c));
    return ContextInfo.of(info);
  }

  /**
   * What has broken the group, if anything is known to have; asks nobody and never blocks. That a
   * rank has closed its context, or does not come, is known only when another has waited for it.
   */
  public Optional<RingAttentionException> asyncError() {
    return get(
        context -> {
          try {
            RingAttn.raGetAsyncError(context);
            return Optional.empty();
          } catch (RingAttentionException failure) {
            return Optional.of(failure);
          }
        });
  }

  /**
   * Ends the call in progress, on this rank with ABORTED and on all others with ABORTED naming this
   * rank, and returns without waiting for that. From then on the contexts of all ranks say
   * INVALID_STATE until closed.
   */
  public void abort() {
    local(RingAttn::raAbortContext);
  }

  /**
   * Runs `numProblems` (1 .. 1000000) small random problems, drawn from `seed`, and checks each
   * against fp64 and its gradients against finite differences. Collective, with equal arguments.
   * Errors: INTERNAL_ERROR with the first problem that is wrong, or any of {@link #forward}.
   */
  public void runSelfTest(long numProblems, long seed) {
    collective(context -> RingAttn.raRunSelfTest(context, numProblems, seed));
  }

  /**
   * Leaves the group and frees everything; once, after which it does nothing. Does not wait for
   * other ranks, which get PEER_LOST if they were waiting for this one. From any thread: a
   * collective call in progress is aborted, any other is waited for.
   */
  @Override
  public void close() {
    cleanable.clean();
    handle.run(); // another thread may have begun to close, but not be done
  }

  private <R> R call(boolean isCollective, LongFunction<R> function) {
    long context = handle.enter(isCollective);
    try {
      return function.apply(context);
    } finally {
      handle.leave(isCollective);
      Reference.reachabilityFence(this); // else the cleaner may close it during the call
    }
  }

  interface Procedure extends LongFunction<Void> {
    void run(long context);

    @Override
    default Void apply(long context) {
      run(context);
      return null;
    }
  }

  void collective(Procedure procedure) {
    call(true, procedure);
  }

  void local(Procedure procedure) {
    call(false, procedure);
  }

  <R> R get(LongFunction<R> function) {
    return call(false, function);
  }

  /**
   * The C context, of which it is known how many threads are in it, so that none is when it goes,
   * and how many of those wait for other ranks, so that it need not break the group for the rest.
   */
  private static final class Handle implements Runnable {
    private final long context;
    private int calls;
    private int collectives; // of the calls
    private boolean isClosing;
    private boolean isClosed;

    Handle(long context) {
      this.context = context;
    }

    synchronized long enter(boolean isCollective) {
      if (isClosing) {
        throw new RingAttentionException(Status.INVALID_STATE, "the context is closed");
      }
      ++calls;
      collectives += isCollective ? 1 : 0;
      return context;
    }

    synchronized void leave(boolean isCollective) {
      collectives -= isCollective ? 1 : 0;
      if (--calls == 0 && isClosing) {
        notifyAll();
      }
    }

    /** Closes. Several threads may do so at once; all return when it is done. */
    @Override
    public synchronized void run() {
      isClosing = true;
      if (collectives > 0) {
        RingAttn.raAbortContext(context);
      }
      boolean isInterrupted = false;
      while (calls > 0) {
        try {
          wait();
        } catch (InterruptedException e) {
          isInterrupted = true;
        }
      }
      if (!isClosed) {
        isClosed = true;
        RingAttn.raDestroyContext(context);
      }
      if (isInterrupted) {
        Thread.currentThread().interrupt();
      }
    }
  }
}
