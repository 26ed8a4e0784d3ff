// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaContextConfig;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;
import java.util.Objects;

/**
 * What new Context needs to know.
 *
 * <p>Several threads may give it to calls at the same time; only one may change it, and meanwhile
 * no other use it.
 */
public final class ContextConfig {
  private static final Struct<RaContextConfig> DEFAULTS = struct();

  private int rank;
  private int worldSize;
  private Backend backend;
  private Transport transport;
  private int device;
  private int numThreads;
  private long timeoutMs;
  private UniqueId uniqueId;
  private String bindAddress;
  private String engine;
  private long ncclComm;
  private int numSms;
  private Encryption encryption;
  private String tracePath;

  /** As C reads it: made of the fields above when first asked for, and null after a change. */
  private volatile Struct<RaContextConfig> made;

  /** With the library's defaults. */
  public ContextConfig() {
    RaContextConfig c = DEFAULTS.c;
    rank = c.getRank();
    worldSize = c.getWorldSize();
    backend = Backend.of(c.getBackend());
    transport = Transport.of(c.getTransport());
    device = c.getDevice();
    numThreads = c.getNumThreads();
    timeoutMs = c.getTimeoutMs();
    ncclComm = c.getNcclComm();
    numSms = c.getNumSms();
    encryption = Encryption.of(c.getEncryption());
  }

  /** With what the other one has now. */
  public ContextConfig(ContextConfig other) {
    rank = other.rank;
    worldSize = other.worldSize;
    backend = other.backend;
    transport = other.transport;
    device = other.device;
    numThreads = other.numThreads;
    timeoutMs = other.timeoutMs;
    uniqueId = other.uniqueId;
    bindAddress = other.bindAddress;
    engine = other.engine;
    ncclComm = other.ncclComm;
    numSms = other.numSms;
    encryption = other.encryption;
    tracePath = other.tracePath;
    made = other.made;
  }

  /** 0 &lt;= rank &lt; worldSize; default 0. */
  public ContextConfig rank(int rank) {
    this.rank = rank;
    made = null;
    return this;
  }

  /** What {@link #rank(int)} set, or the default. */
  public int rank() {
    return rank;
  }

  /** 1 .. 4096; default 1. */
  public ContextConfig worldSize(int worldSize) {
    this.worldSize = worldSize;
    made = null;
    return this;
  }

  /** What {@link #worldSize(int)} set, or the default. */
  public int worldSize() {
    return worldSize;
  }

  /** Backend; default Backend.CPU. */
  public ContextConfig backend(Backend backend) {
    this.backend = Objects.requireNonNull(backend);
    made = null;
    return this;
  }

  /** What {@link #backend(Backend)} set, or the default. */
  public Backend backend() {
    return backend;
  }

  /** Transport; default Transport.LOCAL. */
  public ContextConfig transport(Transport transport) {
    this.transport = Objects.requireNonNull(transport);
    made = null;
    return this;
  }

  /** What {@link #transport(Transport)} set, or the default. */
  public Transport transport() {
    return transport;
  }

  /**
   * CUDA device ordinal, whatever device the calling threads work on, which stays theirs; must be 0
   * on the CPU backend.
   */
  public ContextConfig device(int device) {
    this.device = device;
    made = null;
    return this;
  }

  /** What {@link #device(int)} set, or the default. */
  public int device() {
    return device;
  }

  /**
   * CPU threads of this rank, the calling one included, at most 1024; no more are used than oneTBB
   * allows the process. 0: the share of a rank in the machine.
   */
  public ContextConfig numThreads(int numThreads) {
    this.numThreads = numThreads;
    made = null;
    return this;
  }

  /** What {@link #numThreads(int)} set, or the default. */
  public int numThreads() {
    return numThreads;
  }

  /**
   * Longest wait for another rank, 1 .. 2^31 - 1; 0, the default, means 300000 (5 minutes). What
   * the other rank does meanwhile counts, be it healthy or not: its way to the call, and in the
   * call what it computes before its next message, which is its longest block computation (its
   * queries against one chunk of keys), or several where chunks need not travel, as all of a part
   * with Schedule.ALL_GATHER. So choose it with regard to the length of the shards and to shardings
   * that give some ranks more work than others; more numChunks make the blocks shorter. With
   * Transport.NCCL also the longest that a transfer may take from when this rank's GPU is ready for
   * it.
   */
  public ContextConfig timeoutMs(long timeoutMs) {
    this.timeoutMs = timeoutMs;
    made = null;
    return this;
  }

  /** What {@link #timeoutMs(long)} set, or the default. */
  public long timeoutMs() {
    return timeoutMs;
  }

  /**
   * UniqueId.text, the same on every rank; may be null where worldSize is 1. With Transport.NCCL
   * one that was made for Transport.ZEROMQ will do, too.
   */
  public ContextConfig uniqueId(UniqueId uniqueId) {
    this.uniqueId = uniqueId;
    made = null;
    return this;
  }

  /** What {@link #uniqueId(UniqueId)} set, or the default. */
  public UniqueId uniqueId() {
    return uniqueId;
  }

  /**
   * With Transport.ZEROMQ an address of this machine, a number or a name, where this rank takes
   * what others send it, all by TCP and at a port that is free. null: the one from which rank 0 is
   * reached, and no TCP between ranks of one user on one machine. Must be null with Transport.LOCAL
   * and Transport.NCCL.
   */
  public ContextConfig bindAddress(String bindAddress) {
    this.bindAddress = bindAddress;
    made = null;
    return this;
  }

  /** What {@link #bindAddress(String)} set, or the default. */
  public String bindAddress() {
    return bindAddress;
  }

  /**
   * Forces an engine by its name in Capabilities.engines, or on CUDA "portable", or "cudnn" where
   * cuDNN 9.18 or newer is found: all that it can compute exactly; null: the fastest, on CUDA for
   * each block.
   */
  public ContextConfig engine(String engine) {
    this.engine = engine;
    made = null;
    return this;
  }

  /** What {@link #engine(String)} set, or the default. */
  public String engine() {
    return engine;
  }

  /**
   * ncclComm_t of this rank and device, borrowed until the context is destroyed, meanwhile not used
   * by anybody else; uniqueId is then 0, and nobody is waited for. The library never aborts it:
   * after Status.TIMEOUT, Status.PEER_LOST or Status.NCCL_ERROR the caller does, then destroys the
   * context. 0: the library makes one.
   */
  public ContextConfig ncclComm(long ncclComm) {
    this.ncclComm = ncclComm;
    made = null;
    return this;
  }

  /** What {@link #ncclComm(long)} set, or the default. */
  public long ncclComm() {
    return ncclComm;
  }

  /**
   * CUDA: no kernel that computes takes more room than so many of the device's streaming
   * multiprocessors have, which leaves that of the others to communication; 1 .. their number. Each
   * is then launched in turns of so many blocks, and cuDNN, which cannot be limited, is not used.
   * 0, the default: all. What a kernel computes does not depend on it. Must be 0 on the CPU
   * backend.
   */
  public ContextConfig numSms(int numSms) {
    this.numSms = numSms;
    made = null;
    return this;
  }

  /** What {@link #numSms(int)} set, or the default. */
  public int numSms() {
    return numSms;
  }

  /** Encryption, the same on every rank; must be Encryption.ON but with Transport.ZEROMQ. */
  public ContextConfig encryption(Encryption encryption) {
    this.encryption = Objects.requireNonNull(encryption);
    made = null;
    return this;
  }

  /** What {@link #encryption(Encryption)} set, or the default. */
  public Encryption encryption() {
    return encryption;
  }

  /**
   * A file, for each rank another, that is made or emptied and then written with what this rank
   * does and when, in the Trace Event Format (JSON) that Perfetto and chrome://tracing read: calls,
   * and inside them plan, agree, prepare, pack, post, compute, wait, kept rows (of layers), add
   * gradients, merge (of KvCache.decode), round, end; and on CPUs each message, sent or received,
   * from when it was posted to when it was over. On CUDA times are those of enqueuing. Times of
   * ranks of one machine can be compared. About 150 bytes for each event, written when a call ends.
   * null, the default: none.
   */
  public ContextConfig tracePath(String tracePath) {
    this.tracePath = tracePath;
    made = null;
    return this;
  }

  /** What {@link #tracePath(String)} set, or the default. */
  public String tracePath() {
    return tracePath;
  }

  private static Struct<RaContextConfig> struct() {
    return new Struct<>(
        RingAttnConstants.CONTEXT_CONFIG_SIZE, RaContextConfig::new, RingAttn::raInitContextConfig);
  }

  Struct<RaContextConfig> made() {
    Struct<RaContextConfig> known = made;
    return (known != null ? known : (made = make())).usable();
  }

  private Struct<RaContextConfig> make() {
    Struct<RaContextConfig> struct = struct();
    RaContextConfig c = struct.c;
    c.setRank(rank);
    c.setWorldSize(worldSize);
    c.setBackend(backend.value());
    c.setTransport(transport.value());
    c.setDevice(device);
    c.setNumThreads(numThreads);
    c.setTimeoutMs(timeoutMs);
    c.setUniqueId(struct.text("unique_id", uniqueId == null ? null : uniqueId.text()));
    c.setBindAddress(struct.text("bind_address", bindAddress));
    c.setEngine(struct.text("engine", engine));
    c.setNcclComm(ncclComm);
    c.setNumSms(numSms);
    c.setEncryption(encryption.value());
    c.setTracePath(struct.text("trace_path", tracePath));
    return struct;
  }
}
