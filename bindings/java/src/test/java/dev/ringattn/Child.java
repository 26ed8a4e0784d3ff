package dev.ringattn;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;

/** A JVM of its own, for what must be seen from its start. */
final class Child {
  static final String LIBRARIES = System.getProperty("dev.ringattn.libraries");

  private Child() {}

  /** What `main` prints to either stream. */
  static String run(int expectedExit, Class<?> main, String... options) throws Exception {
    return run(expectedExit, System.getProperty("java.class.path"), main, options);
  }

  static String run(int expectedExit, String classPath, Class<?> main, String... options)
      throws IOException, InterruptedException {
    Process process = start(classPath, main, options);
    String output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    assertEquals(expectedExit, process.waitFor(), output);
    return output;
  }

  static Process start(String classPath, Class<?> main, String... options) throws IOException {
    List<String> command = new ArrayList<>();
    command.add(System.getProperty("java.home") + "/bin/java");
    command.addAll(List.of(options));
    command.addAll(List.of("-ea", "-cp", classPath, main.getName()));
    return new ProcessBuilder(command).redirectErrorStream(true).start();
  }

  static String libraries(String folder) {
    return "-Ddev.ringattn.libraries=" + folder;
  }
}
