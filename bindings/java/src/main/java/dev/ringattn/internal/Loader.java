package dev.ringattn.internal;

import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Locale;

/**
 * Loads libringattn_jni.so, which brings libringattn.so. Places, in this order:
 *
 * <pre>
 * 1. the folder that the system property dev.ringattn.libraries names; then no other
 * 2. java.library.path
 * 3. resources of a jar, the artifact whose classifier is the platform, as linux-x86_64
 * </pre>
 *
 * <p>What was tried, and what the linker said of it, is in the error's message.
 */
final class Loader {
  static final String PROPERTY = "dev.ringattn.libraries";

  private static final String NAME = "ringattn_jni";

  private Loader() {}

  static void load() {
    StringBuilder tried = new StringBuilder("cannot load " + System.mapLibraryName(NAME));
    if (!isLoaded(tried)) {
      throw new UnsatisfiedLinkError(tried.toString());
    }
    String refusal = refusal(RingAttnJNI.raGetVersion());
    if (refusal != null) {
      throw new UnsatisfiedLinkError(refusal);
    }
  }

  private static boolean isLoaded(StringBuilder tried) {
    String folder = System.getProperty(PROPERTY);
    if (folder != null) {
      String path = new File(folder, System.mapLibraryName(NAME)).getAbsolutePath();
      return succeeds(tried, PROPERTY + " = " + folder, () -> System.load(path));
    }
    return succeeds(
            tried,
            "java.library.path = " + System.getProperty("java.library.path"),
            () -> System.loadLibrary(NAME))
        || succeeds(tried, "jar resource " + resources(), Loader::loadResources);
  }

  private interface Attempt {
    void run() throws IOException;
  }

  private static boolean succeeds(StringBuilder tried, String place, Attempt attempt) {
    try {
      attempt.run();
      return true;
    } catch (IOException | UnsatisfiedLinkError e) {
      tried.append("\n  ").append(place).append(": ").append(e.getMessage());
      return false;
    }
  }

  // ---------------------------------------------------------------- resources

  /** The folder in the jar: "files" lists what is in it. */
  private static String resources() {
    String arch = System.getProperty("os.arch");
    return "dev/ringattn/"
        + System.getProperty("os.name").toLowerCase(Locale.ROOT).replaceAll("\\W", "")
        + "-"
        + (arch.equals("amd64") ? "x86_64" : arch);
  }

  /** Into a folder that only this user can read, and that goes when Java does. */
  private static void loadResources() throws IOException {
    String files;
    try (InputStream list = open("files")) {
      files = new String(list.readAllBytes(), StandardCharsets.UTF_8);
    }
    Path folder = Files.createTempDirectory("ringattn").toAbsolutePath();
    folder.toFile().deleteOnExit();
    for (String file : files.split("\\s+")) {
      Path path = folder.resolve(file);
      path.toFile().deleteOnExit();
      try (InputStream in = open(file)) {
        Files.copy(in, path);
      }
    }
    System.load(folder.resolve(System.mapLibraryName(NAME)).toString());
  }

  private static InputStream open(String file) throws IOException {
    InputStream in = Loader.class.getClassLoader().getResourceAsStream(resources() + "/" + file);
    if (in == null) {
      throw new IOException("there is no " + resources() + "/" + file);
    }
    return in;
  }

  // ---------------------------------------------------------------- versions

  /**
   * Why a library of this version cannot be used with these classes, or null: another major, before
   * 1.0 another minor, or an older patch or minor than that of the header they were generated from.
   */
  static String refusal(int version) {
    return refusal(
        version,
        RingAttnConstants.RA_VERSION_MAJOR,
        RingAttnConstants.RA_VERSION_MINOR,
        RingAttnConstants.RA_VERSION_PATCH);
  }

  static String refusal(int version, int major, int minor, int patch) {
    int theirs = version / 10000;
    boolean isSame = theirs == major && (major > 0 || version / 100 % 100 == minor);
    if (isSame && version >= major * 10000 + minor * 100 + patch) {
      return null;
    }
    return String.format(
        "libringattn is version %d.%d.%d; these classes need %d.%d.%d or a newer one that is"
            + " compatible",
        theirs, version / 100 % 100, version % 100, major, minor, patch);
  }
}
