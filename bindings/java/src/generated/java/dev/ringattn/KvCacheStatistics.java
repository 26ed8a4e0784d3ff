// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
package dev.ringattn;

import dev.ringattn.internal.RaKvCacheStatistics;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;

/**
 * What a cache holds now.
 *
 * @param numSequences that were made and not freed
 * @param numTokens of all of them, shared ones counted for each, lost ones included
 * @param usedPages of this rank's, shared ones counted once
 * @param freePages of this rank's
 * @param leastFreePages of the rank that has the fewest free ones
 * @param lostPages of all sequences, that were on ranks which are gone, counted for each sequence
 * @param memory bytes of this rank's pages
 */
public record KvCacheStatistics(
    long numSequences,
    long numTokens,
    long usedPages,
    long freePages,
    long leastFreePages,
    long lostPages,
    long memory) {
  static Struct<RaKvCacheStatistics> struct() {
    return new Struct<>(
        RingAttnConstants.KV_CACHE_STATISTICS_SIZE,
        RaKvCacheStatistics::new,
        RingAttn::raInitKvCacheStatistics);
  }

  static KvCacheStatistics of(Struct<RaKvCacheStatistics> struct) {
    RaKvCacheStatistics c = struct.c;
    KvCacheStatistics record =
        new KvCacheStatistics(
            c.getNumSequences(),
            c.getNumTokens(),
            c.getUsedPages(),
            c.getFreePages(),
            c.getLeastFreePages(),
            c.getLostPages(),
            c.getMemory());
    struct.keepAlive();
    return record;
  }
}
