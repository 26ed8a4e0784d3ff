import java.io.IOException;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLongArray;

/**
 * Starts the service, asks it 2,000 times from 16 clients, and checks each answer against the head
 * computed directly; then floods it, and stops it while it works.
 *
 * <pre>
 * java -cp ... LoadTest TEXT [LENGTH]
 * </pre>
 */
final class LoadTest {
  private static final int REQUESTS = 2000;
  private static final int CLIENTS = 16;
  private static final int QUEUE = 32; // of the service

  /** What is asked, and what must come of it. */
  private record Question(String text, long context, double[] next) {}

  private final HttpClient http = HttpClient.newHttpClient();
  private final URI predict;
  private final List<Question> questions;

  private LoadTest(URI service, List<Question> questions) {
    predict = service.resolve("/predict");
    this.questions = questions;
  }

  // ---------------------------------------------------------------- questions

  /** Places of the book, as they stand there and with a word that does not, for any context. */
  private static List<Question> makeQuestions(byte[] book, long seed) {
    Random random = new Random(seed);
    List<Question> questions = new ArrayList<>();
    for (int n = 0; n < 24; ++n) {
      int length = 1 + random.nextInt(48);
      int begin = random.nextInt(book.length - length);
      String text = new String(book, begin, length, StandardCharsets.US_ASCII);
      text = n % 3 == 0 ? text + " and lo" : text;
      byte[] behind = text.getBytes(StandardCharsets.US_ASCII);
      long context = behind.length + 1 + random.nextInt(book.length);
      byte[] both = Arrays.copyOf(book, book.length + behind.length);
      System.arraycopy(behind, 0, both, book.length, behind.length);
      long[] target = {both.length};
      double[] next = InductionHead.attendDirectly(both, target, context)[0];
      questions.add(new Question(text, context, next));
    }
    return questions;
  }

  private HttpRequest request(Question question) {
    String text = URLEncoder.encode(question.text, StandardCharsets.UTF_8);
    String form = "text=" + text + "&context=" + question.context;
    return HttpRequest.newBuilder(predict)
        .header("Content-Type", "application/x-www-form-urlencoded")
        .POST(HttpRequest.BodyPublishers.ofString(form))
        .build();
  }

  private HttpResponse<String> ask(Question question) throws IOException, InterruptedException {
    return http.send(request(question), HttpResponse.BodyHandlers.ofString());
  }

  /** Why this is no right answer, or null. */
  private static String fault(Question question, HttpResponse<String> response) {
    if (response.statusCode() != 200) {
      return response.statusCode() + " " + response.body();
    }
    String body = response.body();
    int begin = body.indexOf("\"next\": [") + "\"next\": [".length();
    String[] next = body.substring(begin, body.indexOf(']', begin)).split(", ");
    for (int b = 0; b < InductionHead.ALPHABET; ++b) {
      if (Math.abs(Double.parseDouble(next[b]) - question.next[b]) > 1e-4) {
        return "byte " + b + " has " + next[b] + "; must have " + question.next[b];
      }
    }
    return null;
  }

  // ---------------------------------------------------------------- tests

  interface Client {
    void run() throws Exception;
  }

  static void onEveryClient(int clients, Client client) throws Exception {
    ExecutorService threads = Executors.newFixedThreadPool(clients);
    List<Future<?>> running = new ArrayList<>();
    for (int c = 0; c < clients; ++c) {
      running.add(
          threads.submit(
              () -> {
                client.run();
                return null;
              }));
    }
    threads.shutdown();
    for (Future<?> one : running) {
      one.get();
    }
  }

  private static void require(boolean condition, String otherwise) {
    if (!condition) {
      throw new IllegalStateException(otherwise);
    }
  }

  private void load() throws Exception {
    AtomicInteger next = new AtomicInteger();
    AtomicInteger failures = new AtomicInteger();
    AtomicLongArray times = new AtomicLongArray(REQUESTS);
    long start = System.nanoTime();
    onEveryClient(
        CLIENTS,
        () -> {
          for (int n; (n = next.getAndIncrement()) < REQUESTS; ) {
            Question question = questions.get(n % questions.size());
            long begin = System.nanoTime();
            String fault = fault(question, ask(question));
            times.set(n, System.nanoTime() - begin);
            if (fault != null && failures.getAndIncrement() < 5) {
              System.err.println(fault);
            }
          }
        });
    double seconds = (System.nanoTime() - start) / 1e9;
    double[] sorted = new double[REQUESTS];
    Arrays.setAll(sorted, n -> times.get(n) / 1e6);
    Arrays.sort(sorted);
    System.out.printf(
        "%,d requests from %d clients, %d failures: %.0f a second, p50 %.1f ms, p99 %.1f ms%n",
        REQUESTS,
        CLIENTS,
        failures.get(),
        REQUESTS / seconds,
        sorted[REQUESTS / 2],
        sorted[REQUESTS * 99 / 100]);
    require(failures.get() == 0, "requests failed");
  }

  /** What is not asked rightly is refused, with words. */
  private void refuse() throws Exception {
    Question right = questions.get(0);
    for (Question wrong :
        List.of(
            new Question("", 100, null),
            new Question("a".repeat(1025), 2000, null),
            new Question(right.text, right.text.length(), null),
            new Question(right.text, 1L << 40, null))) {
      HttpResponse<String> response = ask(wrong);
      require(
          response.statusCode() == 400 && response.body().contains("must"),
          response.statusCode() + " " + response.body());
    }
    for (String path : List.of("/", "/book", "/nothing", "/predict")) {
      HttpRequest get = HttpRequest.newBuilder(predict.resolve(path)).build();
      int code = http.send(get, HttpResponse.BodyHandlers.ofString()).statusCode();
      int expected = path.equals("/nothing") ? 404 : path.equals("/predict") ? 405 : 200;
      require(code == expected, path + " gives " + code);
    }
  }

  /**
   * More at once than the queue holds: some are refused, the others right, and no one waits long.
   */
  private void flood() throws Exception {
    AtomicInteger answered = new AtomicInteger();
    AtomicInteger refused = new AtomicInteger();
    onEveryClient(
        4 * QUEUE,
        () -> {
          for (int n = 0; n < 4; ++n) {
            Question question = questions.get(n);
            HttpResponse<String> response = ask(question);
            if (response.statusCode() == 429) {
              refused.getAndIncrement();
            } else {
              String fault = fault(question, response);
              require(fault == null, fault);
              answered.getAndIncrement();
            }
          }
        });
    System.out.printf(
        "%d clients at once: %d answered, %d refused with 429%n",
        4 * QUEUE, answered.get(), refused.get());
    require(refused.get() > 0 && answered.get() >= QUEUE, "the queue has no bound, or no room");
  }

  /** Until it has gone, a request is answered rightly, or refused. */
  private void stop(ServiceProcess service) throws Exception {
    AtomicInteger answered = new AtomicInteger();
    AtomicInteger refused = new AtomicInteger();
    onEveryClient(
        CLIENTS,
        () -> {
          while (service.isAlive()) {
            Question question = questions.get(answered.get() % questions.size());
            HttpResponse<String> response;
            try {
              response = ask(question);
            } catch (IOException e) { // no connection any more
              refused.getAndIncrement();
              continue;
            }
            if (response.statusCode() == 503) {
              refused.getAndIncrement();
              continue;
            }
            String fault = fault(question, response);
            require(fault == null, fault);
            if (answered.getAndIncrement() == 100) {
              service.terminate();
            }
          }
        });
    service.requireEnd();
    System.out.printf("stopped under load: %d answered%n", answered.get());
  }

  public static void main(String[] arguments) throws Exception {
    String path = arguments[0];
    String length = arguments.length > 1 ? arguments[1] : "8192";
    boolean isGood = false;
    try (ServiceProcess service =
        new ServiceProcess(path, "--length", length, "--queue", "" + QUEUE)) {
      long seed = System.nanoTime();
      System.out.println("seed " + seed);
      byte[] text = Service.toAlphabet(Files.readString(Path.of(path)));
      byte[] book = Arrays.copyOf(text, Integer.parseInt(length));
      LoadTest test = new LoadTest(service.address, makeQuestions(book, seed));
      test.refuse();
      test.load();
      test.flood();
      test.stop(service);
      isGood = true;
    } catch (IllegalStateException | ExecutionException e) {
      System.err.println(e.getMessage());
    }
    System.exit(isGood ? 0 : 1); // whatever the HTTP client's threads do
  }
}
