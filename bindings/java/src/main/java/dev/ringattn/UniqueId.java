package dev.ringattn;

import dev.ringattn.internal.RaUniqueId;
import dev.ringattn.internal.RingAttn;
import dev.ringattn.internal.RingAttnConstants;
import java.util.Objects;

/**
 * Names a group of ranks that is about to form. One rank makes it and gives the text to the others,
 * by any channel; it is a credential, so {@link #toString} does not show it.
 *
 * @param text printable ASCII without spaces
 */
public record UniqueId(String text) {
  /** From the text that {@link #create} made, here or elsewhere. */
  public UniqueId {
    Objects.requireNonNull(text);
  }

  /** An id for one new group. Errors: NOT_SUPPORTED (no such transport here), NCCL_ERROR. */
  public static UniqueId create(Transport transport) {
    return create(transport, null);
  }

  /**
   * The same, where rank 0 will listen on `bindAddress` ("host" or "host:port"); null is loopback,
   * and needed with LOCAL and NCCL. Errors: INVALID_ARGUMENT too.
   */
  public static UniqueId create(Transport transport, String bindAddress) {
    Struct<RaUniqueId> id =
        new Struct<>(RingAttnConstants.UNIQUE_ID_SIZE, RaUniqueId::new, c -> {});
    RingAttn.raCreateUniqueId(id.c, transport.value(), id.text("bind_address", bindAddress));
    UniqueId made = new UniqueId(id.c.getText());
    id.keepAlive();
    return made;
  }

  @Override
  public String toString() {
    return "UniqueId[...]";
  }
}
