// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaMachineRates;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;

/**
 * How fast ranks compute and reach each other, all of them alike, for RingAttention.estimateTime.
 *
 * <p>Several threads may give it to calls at the same time; only one may change it, and meanwhile
 * no other use it.
 */
public final class MachineRates {
  private static final Struct<RaMachineRates> DEFAULTS = struct();

  private double forwardFlops;
  private double backwardFlops;
  private double linkBytes;
  private double linkSeconds;

  /** As C reads it: made of the fields above when first asked for, and null after a change. */
  private volatile Struct<RaMachineRates> made;

  /** With the library's defaults. */
  public MachineRates() {
    RaMachineRates c = DEFAULTS.c;
    forwardFlops = c.getForwardFlops();
    backwardFlops = c.getBackwardFlops();
    linkBytes = c.getLinkBytes();
    linkSeconds = c.getLinkSeconds();
  }

  /** With what the other one has now. */
  public MachineRates(MachineRates other) {
    forwardFlops = other.forwardFlops;
    backwardFlops = other.backwardFlops;
    linkBytes = other.linkBytes;
    linkSeconds = other.linkSeconds;
    made = other.made;
  }

  /**
   * Per second of one rank, &gt; 0 and finite: MemoryRequirements.forwardFlops of some call over
   * its CallStatistics.computeSeconds, or over totalSeconds where links were no limit, which has in
   * it what ranks pack and encrypt; no default.
   */
  public MachineRates forwardFlops(double forwardFlops) {
    this.forwardFlops = forwardFlops;
    made = null;
    return this;
  }

  /** What {@link #forwardFlops(double)} set, or the default. */
  public double forwardFlops() {
    return forwardFlops;
  }

  /** The same for Context.backward; no default. */
  public MachineRates backwardFlops(double backwardFlops) {
    this.backwardFlops = backwardFlops;
    made = null;
    return this;
  }

  /** What {@link #backwardFlops(double)} set, or the default. */
  public double backwardFlops() {
    return backwardFlops;
  }

  /**
   * Bytes per second that a rank can send and, at the same time, receive, &gt; 0 and finite;
   * default 0: no limit.
   */
  public MachineRates linkBytes(double linkBytes) {
    this.linkBytes = linkBytes;
    made = null;
    return this;
  }

  /** What {@link #linkBytes(double)} set, or the default. */
  public double linkBytes() {
    return linkBytes;
  }

  /** Latency of a message, &gt;= 0 and finite; default 0. */
  public MachineRates linkSeconds(double linkSeconds) {
    this.linkSeconds = linkSeconds;
    made = null;
    return this;
  }

  /** What {@link #linkSeconds(double)} set, or the default. */
  public double linkSeconds() {
    return linkSeconds;
  }

  private static Struct<RaMachineRates> struct() {
    return new Struct<>(
        RingAttnConstants.MACHINE_RATES_SIZE, RaMachineRates::new, RingAttn::raInitMachineRates);
  }

  Struct<RaMachineRates> made() {
    Struct<RaMachineRates> known = made;
    return (known != null ? known : (made = make())).usable();
  }

  private Struct<RaMachineRates> make() {
    Struct<RaMachineRates> struct = struct();
    RaMachineRates c = struct.c;
    c.setForwardFlops(forwardFlops);
    c.setBackwardFlops(backwardFlops);
    c.setLinkBytes(linkBytes);
    c.setLinkSeconds(linkSeconds);
    return struct;
  }
}
