package dev.ringattn;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Where the libraries are looked for, each time by a JVM of its own. */
class LoaderTest {
  private static final String CLASSES =
      System.getProperty("java.class.path"); // without the artifact of libraries

  @TempDir private Path folder;

  static final class Version {
    public static void main(String[] arguments) {
      System.out.println(RingAttention.version());
    }
  }

  private static String load(int expectedExit, String classPath, String... options)
      throws Exception {
    return Child.run(expectedExit, classPath, Version.class, options).strip();
  }

  private static final String VERSION = "" + RingAttention.version();

  @Test
  void takesTheProperty() throws Exception {
    assertEquals(VERSION, load(0, CLASSES, Child.libraries(Child.LIBRARIES)));
  }

  /** No other place is tried, and the linker's words are there. */
  @Test
  void hasNoFallbackFromTheProperty() throws Exception {
    String error =
        load(
            1,
            CLASSES,
            Child.libraries(folder.toString()),
            "-Djava.library.path=" + Child.LIBRARIES);
    assertTrue(error.contains("dev.ringattn.libraries = " + folder), error);
    assertFalse(error.contains("java.library.path = " + Child.LIBRARIES), error);
    Files.writeString(folder.resolve("libringattn_jni.so"), "no library");
    assertTrue(load(1, CLASSES, Child.libraries(folder.toString())).contains("file too short"));
  }

  @Test
  void takesTheLibraryPath() throws Exception {
    assertEquals(VERSION, load(0, CLASSES, "-Djava.library.path=" + Child.LIBRARIES));
  }

  /** From the jar's folder, into one that is gone afterwards. */
  @Test
  void takesResources() throws Exception {
    String output =
        load(
            0,
            CLASSES + ":" + System.getProperty("ringattn.natives"),
            "-Djava.library.path=/nowhere",
            "-Djava.io.tmpdir=" + folder);
    assertEquals(VERSION, output);
    try (Stream<Path> left = Files.list(folder)) {
      assertEquals(List.of(), left.toList());
    }
  }

  @Test
  void namesAllPlaces() throws Exception {
    String error = load(1, CLASSES, "-Djava.library.path=/nowhere");
    assertTrue(error.contains("java.library.path = /nowhere: no ringattn_jni"), error);
    assertTrue(error.contains("jar resource dev/ringattn/linux-"), error);
    assertTrue(error.contains("UnsatisfiedLinkError"), error);
  }
}
