import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.Socket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import java.util.stream.Stream;

/**
 * Starts the service with a model, and has 200 texts written at once; each byte must be one which
 * the model chooses, computed without a cache. Clients that leave, requests that are wrong, and an
 * end in the midst of it.
 *
 * <pre>
 * java -cp ... GenerateTest CHECKPOINT TEXT [BYTES [STREAMS]]
 * </pre>
 */
final class GenerateTest {
  private final HttpClient http = HttpClient.newHttpClient();
  private final ServiceProcess service;
  private final URI generate;
  private final Model model;
  private final String text;
  private final Random random;

  private GenerateTest(ServiceProcess service, Model model, String text, long seed) {
    this.service = service;
    this.model = model;
    this.text = text;
    generate = service.address.resolve("/generate");
    random = new Random(seed);
  }

  private static void require(boolean condition, String otherwise) {
    GeneratorTest.require(condition, otherwise);
  }

  // ---------------------------------------------------------------- requests

  private Generator.Request makeRequest(int longest, int bytes) {
    int begin = random.nextInt(text.length() - longest);
    String prompt = text.substring(begin, begin + 1 + random.nextInt(longest));
    byte[] encoded = prompt.getBytes(StandardCharsets.UTF_8);
    return new Generator.Request(encoded, bytes, random.nextInt(3) * 0.5, random.nextInt(100));
  }

  private static String body(Generator.Request request) {
    return String.format(
        "{\"prompt\": %s, \"max_bytes\": %d, \"temperature\": %s, \"seed\": %d}",
        Json.quote(new String(request.prompt(), StandardCharsets.UTF_8)),
        request.maxBytes(),
        request.temperature(),
        request.seed());
  }

  private HttpResponse<Stream<String>> post(String body) throws IOException, InterruptedException {
    HttpRequest request =
        HttpRequest.newBuilder(generate).POST(HttpRequest.BodyPublishers.ofString(body)).build();
    return http.send(request, HttpResponse.BodyHandlers.ofLines());
  }

  /** What /model says of now. */
  private static Map<?, ?> state(URI service) throws IOException, InterruptedException {
    HttpRequest request = HttpRequest.newBuilder(service.resolve("/model")).build();
    HttpClient http = HttpClient.newHttpClient();
    return (Map<?, ?>) Json.read(http.send(request, HttpResponse.BodyHandlers.ofString()).body());
  }

  /** Until it says so. */
  static void await(URI service, String name, double value) throws Exception {
    for (int n = 0; n < 400; ++n) {
      if (state(service).get(name).equals(value)) {
        return;
      }
      Thread.sleep(25);
    }
    throw new IllegalStateException(name + " never is " + value + ": " + state(service));
  }

  /** Takes all events of a text; requires that it ends for `reason` and that what is said fits. */
  private static byte[] read(Iterator<String> lines, Generator.Request request, String reason) {
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    StringBuilder characters = new StringBuilder();
    boolean isLast = false;
    while (lines.hasNext()) {
      String line = lines.next();
      require(!isLast || line.isEmpty(), "behind the end: " + line);
      if (line.isEmpty() || line.equals(":")) {
        continue;
      }
      boolean isEnd = line.equals("event: end");
      line = isEnd ? lines.next() : line;
      require(line.startsWith("data: "), line);
      Map<?, ?> data = (Map<?, ?>) Json.read(line.substring("data: ".length()));
      characters.append((String) data.get("text"));
      if (isEnd) {
        require(data.get("reason").equals(reason), line);
        require(data.get("written").equals((double) bytes.size()), line);
        require(data.get("prompt").equals((double) request.prompt().length), line);
        require((Double) data.get("bytes_per_second") > 0 == bytes.size() > 0, line);
        isLast = true;
      } else {
        ((List<?>) data.get("bytes")).forEach(b -> bytes.write(((Double) b).intValue()));
      }
    }
    require(isLast, "there is no end");
    String whole = new String(bytes.toByteArray(), StandardCharsets.UTF_8);
    require(whole.contentEquals(characters), "other characters than bytes");
    return bytes.toByteArray();
  }

  // ---------------------------------------------------------------- tests

  /** Many at once: all come to their end, and each has the bytes that are its own. */
  private void load(int streams, int bytes) throws Exception {
    List<Generator.Request> requests = new ArrayList<>();
    for (int n = 0; n < streams; ++n) {
      requests.add(makeRequest(80, bytes));
    }
    byte[][] written = new byte[streams][];
    AtomicInteger next = new AtomicInteger();
    AtomicLong most = new AtomicLong();
    long start = System.nanoTime();
    LoadTest.onEveryClient(
        streams,
        () -> {
          int n = next.getAndIncrement();
          HttpResponse<Stream<String>> response = post(body(requests.get(n)));
          require(response.statusCode() == 200, "" + response.statusCode());
          String type = response.headers().firstValue("Content-Type").orElse("");
          require(type.equals("text/event-stream"), type);
          written[n] = read(response.body().iterator(), requests.get(n), "length");
          most.accumulateAndGet(System.nanoTime() - start, Math::max);
        });
    System.out.printf(
        "%d texts at once, 0 failures: %.0f bytes a second, the last one after %.1f s%n",
        streams, 1e9 * streams * bytes / most.get(), most.get() / 1e9);
    for (int n = 0; n < streams; ++n) {
      require(written[n].length == bytes, written[n].length + " bytes");
      GeneratorTest.requireRight(model, requests.get(n), written[n]);
    }
    await(generate, "used_pages", 0);
  }

  /** A client that has read the first line that begins so. */
  private Socket connect(String body, String line) throws IOException {
    Socket client = new Socket(generate.getHost(), generate.getPort());
    byte[] bytes = body.getBytes(StandardCharsets.UTF_8);
    String head = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n";
    client.getOutputStream().write(String.format(head, bytes.length).getBytes());
    client.getOutputStream().write(bytes);
    BufferedReader lines = new BufferedReader(new InputStreamReader(client.getInputStream()));
    String next;
    do {
      next = lines.readLine();
      require(next != null, "the service has hung up");
    } while (!next.startsWith(line));
    return client;
  }

  /** Clients that go away as a browser does, without a word; one of them before its text begins. */
  private void leave() throws Exception {
    String body = body(makeRequest(20, 3900)); // of which there is room for two
    Socket first = connect(body, "data:");
    Socket second = connect(body, "data:");
    Socket third = connect(body, ":");
    await(generate, "waiting", 1);
    third.close();
    await(generate, "waiting", 0);
    await(generate, "running", 2);
    first.close();
    await(generate, "running", 1);
    require((Double) state(generate).get("used_pages") > 0, "no pages are used");
    second.close();
    await(generate, "running", 0);
    await(generate, "used_pages", 0);
    System.out.println("3 clients have left, and their pages are free");
  }

  /** What is not asked rightly is refused, with words. */
  private void refuse() throws Exception {
    List<String> wrong =
        List.of(
            "",
            "{",
            "[]",
            "[".repeat(10_000),
            "{\"prompt\": \"a\",}",
            "{\"prompt\": \"\\ud83\"}",
            "{\"prompt\": \"a\"} b",
            "{}",
            "{\"prompt\": 1}",
            "{\"prompt\": \"\"}",
            "{\"prompt\": \"" + "a".repeat(Generator.LONGEST_PROMPT + 1) + "\"}",
            "{\"prompt\": \"a\", \"max_bytes\": 0}",
            "{\"prompt\": \"a\", \"max_bytes\": 1.5}",
            "{\"prompt\": \"a\", \"max_bytes\": 1e9}",
            "{\"prompt\": \"a\", \"max_bytes\": null}",
            "{\"prompt\": \"a\", \"temperature\": -1}",
            "{\"prompt\": \"a\", \"temperature\": 1e999}",
            "{\"prompt\": \"a\", \"seed\": \"1\"}",
            "{\"prompt\": \"a\", \"speed\": 1}",
            "{\"prompt\": \"" + "a".repeat(4000) + "\", \"max_bytes\": 4096}");
    for (String body : wrong) {
      HttpResponse<Stream<String>> response = post(body);
      String words = String.join(" ", response.body().toList());
      require(
          response.statusCode() == 400 && words.contains("must"),
          body.substring(0, Math.min(body.length(), 99))
              + " gives "
              + response.statusCode()
              + " "
              + words.substring(0, Math.min(99, words.length())));
    }
    int code = post("a".repeat(8 * Generator.LONGEST_PROMPT + 1)).statusCode();
    require(code == 413, "a long request gives " + code);
    HttpRequest get = HttpRequest.newBuilder(generate).build();
    code = http.send(get, HttpResponse.BodyHandlers.ofString()).statusCode();
    require(code == 405, "GET gives " + code);
    require(
        state(generate).get("weights").equals((double) model.numWeights()), "" + state(generate));
  }

  /** One more than it takes is refused; SIGTERM ends those that are on. */
  private void stop(int most) throws Exception {
    Generator.Request request = makeRequest(20, 4000);
    List<HttpResponse<Stream<String>>> running = new ArrayList<>();
    for (int n = 0; n < most; ++n) {
      running.add(post(body(request)));
    }
    int code = post(body(request)).statusCode();
    require(code == 429, "one more than " + most + " gives " + code);
    service.terminate();
    for (HttpResponse<Stream<String>> response : running) {
      byte[] written = read(response.body().iterator(), request, "stopped");
      byte[] first = Arrays.copyOf(written, Math.min(written.length, 300));
      GeneratorTest.requireRight(model, request, first);
    }
    service.requireEnd();
    System.out.println("stopped while " + most + " texts were written");
  }

  public static void main(String[] arguments) throws Exception {
    String checkpoint = arguments[0];
    int bytes = arguments.length > 2 ? Integer.parseInt(arguments[2]) : 64;
    int streams = arguments.length > 3 ? Integer.parseInt(arguments[3]) : 200;
    boolean isGood = false;
    String[] options = {
      "--length", "4096", "--checkpoint", checkpoint, "--texts", "" + streams, "--cache", "8000"
    };
    long seed = System.nanoTime();
    System.out.println("seed " + seed);
    String text = Files.readString(Path.of(arguments[1]));
    try (ServiceProcess service = new ServiceProcess(arguments[1], options)) {
      Model model = new Model(Path.of(checkpoint));
      GenerateTest test = new GenerateTest(service, model, text, seed);
      test.refuse();
      test.load(streams, bytes);
      test.leave();
      test.stop(streams);
      isGood = true;
    } catch (IllegalStateException | ExecutionException e) {
      e.printStackTrace();
    }
    System.exit(isGood ? 0 : 1); // whatever the HTTP client's threads do
  }
}
