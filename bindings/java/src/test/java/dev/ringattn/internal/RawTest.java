package dev.ringattn.internal;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import dev.ringattn.RingAttentionException;
import dev.ringattn.Status;
import org.junit.jupiter.api.Test;

/** What SWIG made refuses address 0, be it that of a struct or of a context. */
class RawTest {
  @Test
  void refusesStructsAtAddress0() {
    RaForwardArgs none = new RaForwardArgs(0);
    assertThrows(NullPointerException.class, none::getQ);
    assertThrows(NullPointerException.class, none::getLse);
    assertThrows(NullPointerException.class, () -> none.setLse(8));
    assertThrows(NullPointerException.class, () -> none.setQ(new RaTensor(0)));
    assertThrows(NullPointerException.class, () -> RingAttn.raInitForwardArgs(none));
    assertThrows(NullPointerException.class, () -> RingAttn.raMergeAttention(new RaMergeArgs(0)));
    assertThrows(NullPointerException.class, () -> RingAttn.raMergeAttention(null));
  }

  @Test
  void refusesContextsAtAddress0() {
    RingAttn.raDestroyContext(0);
    RingAttentionException failure =
        assertThrows(RingAttentionException.class, () -> RingAttn.raAbortContext(0));
    assertEquals(Status.INVALID_ARGUMENT, failure.status());
  }
}
