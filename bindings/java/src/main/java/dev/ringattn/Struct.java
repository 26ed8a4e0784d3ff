package dev.ringattn;

import dev.ringattn.internal.RingAttn;
import java.lang.ref.Reference;
import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Consumer;
import java.util.function.LongFunction;

/**
 * A C struct with all that it points to, in memory that lives as long as this is reachable. C gets
 * addresses, which the garbage collector does not see: whoever has passed `c` to C calls {@link
 * #keepAlive} after it.
 */
final class Struct<T> {
  /** Its getters and setters. */
  final T c;

  private final List<ByteBuffer> own = new ArrayList<>(1);
  private final List<Buffer> callers = new ArrayList<>();

  Struct(long size, LongFunction<T> at, Consumer<T> init) {
    c = at.apply(RingAttn.addressOf(allocate(size)));
    init.accept(c);
  }

  /**
   * How many things `lists` are of, which have `factor` entries for each and `more` besides: those
   * of the first list that is there. What does not divide is refused when that list is copied.
   */
  static long count(int factor, int more, long[]... lists) {
    for (long[] list : lists) {
      if (list != null) {
        return (list.length - more) / factor;
      }
    }
    return 0;
  }

  /**
   * The address of a copy of `entries`, of which the field `count` says that there are `length`.
   */
  long list(String name, long[] entries, String count, long length) {
    if (entries == null) {
      return 0;
    }
    requireEntries(name, entries.length, count, length);
    if (entries.length == 0) {
      return 0;
    }
    ByteBuffer copy = allocate(Long.BYTES * (long) entries.length);
    copy.asLongBuffer().put(entries);
    return RingAttn.addressOf(copy);
  }

  /** The same of other numbers. */
  long list(String name, float[] entries, String count, long length) {
    if (entries == null) {
      return 0;
    }
    requireEntries(name, entries.length, count, length);
    if (entries.length == 0) {
      return 0;
    }
    ByteBuffer copy = allocate(Float.BYTES * (long) entries.length);
    copy.asFloatBuffer().put(entries);
    return RingAttn.addressOf(copy);
  }

  static void requireEntries(String name, long entries, String count, long length) {
    RingAttentionException.require(
        entries == length,
        () -> name + " has " + entries + " entries; must have " + length + ", " + count);
  }

  /** The address of a copy of `text`, which C takes to end at its first NUL. */
  long text(String name, String text) {
    if (text == null) {
      return 0;
    }
    int nul = text.indexOf(0);
    RingAttentionException.require(
        nul < 0, () -> name + " has a NUL character at " + nul + "; must have none");
    byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
    return RingAttn.addressOf(allocate(bytes.length + 1L).put(bytes));
  }

  /** Memory of the caller's; null if it is no buffer's. */
  void keep(Buffer memory) {
    if (memory != null) {
      callers.add(memory);
    }
  }

  /** This, if all memory of the caller's is still there: each call asks before it gives it to C. */
  Struct<T> usable() {
    callers.forEach(Tensor::touch);
    return this;
  }

  void keepAlive() {
    Reference.reachabilityFence(this);
  }

  private ByteBuffer allocate(long size) {
    RingAttentionException.require(
        size <= Integer.MAX_VALUE, () -> size + " bytes of a list; must be at most 2^31 - 1");
    ByteBuffer memory = ByteBuffer.allocateDirect((int) size).order(ByteOrder.nativeOrder());
    own.add(memory);
    return memory;
  }
}
