import java.io.BufferedReader;
import java.io.IOException;
import java.net.URI;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;

/** The service as a process of its own, with this one's class path and libraries. */
final class ServiceProcess implements AutoCloseable {
  private final Process process;
  private final BufferedReader output;
  final URI address;

  ServiceProcess(String text, String... arguments) throws IOException {
    List<String> command = new ArrayList<>();
    command.add(System.getProperty("java.home") + "/bin/java");
    System.getProperties()
        .forEach(
            (name, value) -> {
              if (name.toString().startsWith("dev.ringattn.")) {
                command.add("-D" + name + "=" + value);
              }
            });
    command.addAll(List.of("-cp", System.getProperty("java.class.path"), "Service"));
    command.add(text);
    command.addAll(List.of(arguments));
    command.addAll(List.of("--port", "0"));
    process = new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.INHERIT).start();
    output = process.inputReader();
    String line = output.readLine();
    if (line == null) {
      throw new IOException("the service did not start");
    }
    System.out.println(line);
    address = URI.create(line.substring(line.indexOf("http:")));
  }

  boolean isAlive() {
    return process.isAlive();
  }

  /** SIGTERM; the process's own destroy would close its output too. */
  void terminate() {
    process.toHandle().destroy();
  }

  /** That it has ended as it should after SIGTERM. */
  void requireEnd() throws IOException, InterruptedException {
    if (!process.waitFor(10, TimeUnit.SECONDS)) {
      throw new IllegalStateException("the service does not stop");
    }
    String last = output.readLine();
    if (process.exitValue() != 143 || !"stopped".equals(last)) {
      throw new IllegalStateException(
          "the service ended with " + process.exitValue() + " and said " + last);
    }
  }

  @Override
  public void close() {
    process.destroyForcibly();
  }
}
