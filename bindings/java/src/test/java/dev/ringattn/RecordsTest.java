package dev.ringattn;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.lang.module.ModuleDescriptor;
import java.lang.module.ModuleFinder;
import java.nio.file.Path;
import java.util.List;
import java.util.Set;
import java.util.function.Consumer;
import org.junit.jupiter.api.Test;

/** Generated code, by its kinds; each field is the conformance suite's. */
class RecordsTest {
  @Test
  void knowsConstants() {
    assertEquals(Schedule.ALL_GATHER, Schedule.of(2));
    assertEquals(-1, Stride.REPEAT.value());
  }

  /** What a newer library may return is a constant, not an exception. */
  @Test
  void survivesConstantsOfLater() {
    assertEquals(Status.UNKNOWN, Status.of(12345));
    assertEquals(Schedule.UNKNOWN, Schedule.of(12345));
    assertEquals(Transport.UNKNOWN, Transport.of(-7));
  }

  @Test
  void beginsWithTheLibrarysDefaults() {
    AttentionDesc desc = new AttentionDesc();
    assertEquals(1, desc.batch());
    assertEquals(-1, desc.seqlenKv());
    assertEquals(MaskAlignment.BOTTOM_RIGHT, desc.maskAlignment());
    assertEquals(1, new ContextConfig().worldSize());
    assertEquals(DType.FLOAT32, new MergeArgs().dtype());
    assertFalse(new BackwardArgs().accumulate());
    assertThrows(NullPointerException.class, () -> desc.mask(null));
  }

  @Test
  void copies() {
    AttentionDesc desc = new AttentionDesc().seqlenQ(8).headDim(16);
    assertEquals(8, RingAttention.shardLength(desc, 1, 0, Side.QUERY));
    AttentionDesc longer = new AttentionDesc(desc).seqlenQ(9);
    assertEquals(8, RingAttention.shardLength(desc, 1, 0, Side.QUERY));
    assertEquals(9, RingAttention.shardLength(longer, 1, 0, Side.QUERY));
    assertEquals(16, longer.headDim());
  }

  @Test
  void hidesTheCredential() {
    UniqueId id = UniqueId.create(Transport.LOCAL);
    assertFalse(("" + id).contains(id.text()));
    assertEquals(id, new UniqueId(id.text()));
  }

  /** C would take a text to end there. */
  @Test
  void refusesNulInText() {
    for (Consumer<String> use :
        List.<Consumer<String>>of(
            text -> new Context(new ContextConfig().engine("portable" + text)).close(),
            text -> new Context(new ContextConfig().uniqueId(new UniqueId(text))).close(),
            text -> UniqueId.create(Transport.ZEROMQ, "127.0.0.1" + text))) {
      RingAttentionException failure =
          assertThrows(RingAttentionException.class, () -> use.accept("\0junk"));
      assertEquals(Status.INVALID_ARGUMENT, failure.status());
      assertTrue(
          failure.getMessage().matches(".*(engine|unique_id|bind_address) has a NUL.*"),
          failure.getMessage());
    }
  }

  @Test
  void knowsTheLibrary() {
    assertEquals(RingAttention.version(), RingAttention.capabilities().version());
    assertTrue(RingAttention.capabilities().hardwareThreads() > 0);
  }

  @Test
  void exportsOnePackage() throws Exception {
    Path classes =
        Path.of(Context.class.getProtectionDomain().getCodeSource().getLocation().toURI());
    ModuleDescriptor module =
        ModuleFinder.of(classes).find("dev.ringattn").orElseThrow().descriptor();
    assertEquals(1, module.exports().size());
    assertEquals(Set.of("dev.ringattn"), Set.of(module.exports().iterator().next().source()));
  }
}
