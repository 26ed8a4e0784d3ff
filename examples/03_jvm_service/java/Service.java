import com.sun.net.httpserver.Headers;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.InputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URLDecoder;
import java.nio.FloatBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/**
 * An attention head that has read a book says over HTTP how a text goes on.
 *
 * <pre>
 * POST /predict   form fields text (1 to 1,024 bytes) and context (bytes that each guess may look back
 *                 on). 200 and JSON; 400 with what is wrong; 429 if too many wait; 503 while it stops
 * GET /           a page with a text box
 * GET /book       how long the book is, as JSON
 * POST /generate  JSON: prompt (1 to 4,096 bytes), max_bytes, temperature, seed. 200 and server-sent
 *                 events while a trained model writes on; the same refusals
 * GET /model      what that is, and what it does now, as JSON; 404 without one
 * </pre>
 *
 * <p>SIGTERM stops it: predictions that it has taken are answered first, texts end where they are.
 */
final class Service {
  private static final int LONGEST_FORM = 8 * RankGroup.LONGEST_TEXT;
  private static final int PATIENCE_MS = 30_000;
  private static final int CLIENTS = 1024; // that may wait to be connected

  private final RankGroup.Book book;
  private final Pool pool;
  private final Generator generator; // null without a model
  private final HttpServer server;
  private final ExecutorService threads = Executors.newCachedThreadPool();
  private int inside; // requests that are being answered
  private boolean isStopping;

  Service(byte[] text, int port, int groups, int longestQueue, Generator generator)
      throws IOException {
    book = new RankGroup.Book(text);
    pool = new Pool(() -> new RankGroup(book), groups, longestQueue);
    this.generator = generator;
    InetAddress here = InetAddress.getLoopbackAddress();
    server = HttpServer.create(new InetSocketAddress(here, port), CLIENTS);
    server.setExecutor(threads);
    server.createContext("/", this::answer);
    server.start();
  }

  int port() {
    return server.getAddress().getPort();
  }

  /** Answers what has come, and nothing more; those who do not take it are left after a while. */
  void close() throws InterruptedException {
    synchronized (this) {
      isStopping = true;
    }
    if (generator != null) {
      generator.close();
    }
    synchronized (this) {
      long end = System.nanoTime() + 1_000_000L * PATIENCE_MS;
      for (long left; inside > 0 && (left = end - System.nanoTime()) > 0; ) {
        wait(1 + left / 1_000_000);
      }
    }
    server.stop(0);
    pool.close();
    threads.shutdown();
  }

  private synchronized boolean enter() {
    inside += isStopping ? 0 : 1;
    return !isStopping;
  }

  private synchronized void leave() {
    --inside;
    notifyAll();
  }

  // ---------------------------------------------------------------- HTTP

  private void answer(HttpExchange exchange) throws IOException {
    try (exchange) {
      if (!enter()) {
        send(exchange, 503, "text/plain", "stopping\n".getBytes(StandardCharsets.UTF_8));
        return;
      }
      try {
        route(exchange);
      } catch (Refusal refusal) {
        byte[] message = (refusal.getMessage() + "\n").getBytes(StandardCharsets.UTF_8);
        send(exchange, refusal.code, "text/plain; charset=utf-8", message);
      } finally {
        leave();
      }
    }
  }

  private void route(HttpExchange exchange) throws IOException, Refusal {
    String path = exchange.getRequestURI().getPath();
    String method = path.equals("/predict") || path.equals("/generate") ? "POST" : "GET";
    if (!exchange.getRequestMethod().equals(method)) {
      exchange.getResponseHeaders().set("Allow", method);
      throw new Refusal(405, path + " is for " + method);
    }
    switch (path) {
      case "/" -> send(exchange, 200, "text/html; charset=utf-8", page());
      case "/book" -> sendJson(exchange, "{\"length\": " + book.text.length + "}");
      case "/predict" -> sendJson(exchange, predict(fields(exchange)));
      case "/model" -> sendJson(exchange, describe(model()));
      case "/generate" -> Writing.answer(exchange, model());
      default -> throw new Refusal(404, "there is no " + path);
    }
  }

  private static byte[] page() throws IOException {
    try (InputStream page = Service.class.getResourceAsStream("page.html")) {
      return page.readAllBytes();
    }
  }

  private static Map<String, String> fields(HttpExchange exchange) throws IOException, Refusal {
    Map<String, String> fields = new HashMap<>();
    try {
      String body = new String(Refusal.body(exchange, LONGEST_FORM), StandardCharsets.ISO_8859_1);
      for (String field : body.split("&")) {
        String[] pair = field.split("=", 2);
        String value = pair.length == 2 ? pair[1] : "";
        fields.put(pair[0], URLDecoder.decode(value, StandardCharsets.UTF_8));
      }
    } catch (IllegalArgumentException e) {
      throw new Refusal(400, "no form: " + e.getMessage());
    }
    return fields;
  }

  private static void sendJson(HttpExchange exchange, String json) throws IOException {
    send(exchange, 200, "application/json", json.getBytes(StandardCharsets.UTF_8));
  }

  private static void send(HttpExchange exchange, int code, String type, byte[] body)
      throws IOException {
    Headers headers = exchange.getResponseHeaders();
    headers.set("Content-Type", type);
    headers.set("Cache-Control", "no-store");
    if (code == 429) {
      headers.set("Retry-After", "1");
    }
    exchange.sendResponseHeaders(code, body.length);
    exchange.getResponseBody().write(body);
  }

  // ---------------------------------------------------------------- predictions

  private String predict(Map<String, String> fields) throws Refusal {
    byte[] text = toAlphabet(fields.getOrDefault("text", ""));
    if (text.length < 1 || text.length > RankGroup.LONGEST_TEXT) {
      throw new Refusal(
          400, "text has " + text.length + " bytes; must have 1 to " + RankGroup.LONGEST_TEXT);
    }
    long least = RankGroup.leastContext(text);
    long most = RankGroup.mostContext(book, text);
    String asked = fields.getOrDefault("context", "");
    long context;
    try {
      context = Long.parseLong(asked);
    } catch (NumberFormatException e) {
      context = -1;
    }
    if (context < least || context > most) {
      throw new Refusal(
          400, "context is " + asked + "; must be " + least + " to " + most + " for this text");
    }
    Optional<CompletableFuture<FloatBuffer>> answer = pool.ask(text, context);
    if (answer.isEmpty()) {
      throw new Refusal(429, "too many requests are waiting");
    }
    try {
      return toJson(text, context, answer.get().get());
    } catch (ExecutionException | InterruptedException e) {
      throw new Refusal(500, "" + e.getCause());
    }
  }

  /** Bytes outside the alphabet become its last letter. */
  static byte[] toAlphabet(String text) {
    byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
    for (int i = 0; i < bytes.length; ++i) {
      bytes[i] = bytes[i] < 0 ? InductionHead.ALPHABET - 1 : bytes[i];
    }
    return bytes;
  }

  /**
   * next: the distribution of the byte behind the text. known: for each byte of the text but the
   * first, how likely the head held it, with what is before it.
   */
  private static String toJson(byte[] text, long context, FloatBuffer rows) {
    StringBuilder json = new StringBuilder("{\"context\": " + context + ", \"next\": [");
    for (int b = 0; b < InductionHead.ALPHABET; ++b) {
      append(json, b, rows.get((text.length - 1) * InductionHead.ALPHABET + b));
    }
    json.append("], \"known\": [");
    for (int i = 1; i < text.length; ++i) {
      append(json, i - 1, rows.get((i - 1) * InductionHead.ALPHABET + text[i]));
    }
    return json.append("]}").toString();
  }

  private static void append(StringBuilder json, int index, float probability) {
    json.append(index == 0 ? "" : ", ").append(String.format("%.5f", probability));
  }

  // ---------------------------------------------------------------- texts

  private Generator model() throws Refusal {
    if (generator == null) {
      throw new Refusal(404, "there is no model: the service was started without --checkpoint");
    }
    return generator;
  }

  private static String describe(Generator generator) {
    Generator.State now = generator.state();
    return String.format(
        "{\"weights\": %d, \"running\": %d, \"waiting\": %d, \"used_pages\": %d, \"free_pages\":"
            + " %d}",
        generator.model().numWeights(),
        now.running(),
        now.waiting(),
        now.usedPages(),
        now.freePages());
  }

  // ---------------------------------------------------------------- the program

  private static final String HELP =
      """
      Usage: Service [OPTIONS] TEXT
        --length N   bytes of TEXT that the head reads; 0: all [131072]
        --port N     0: any that is free [8080]
        --groups N   groups of four ranks, each of which answers one request at a time [1]
        --queue N    requests that may wait; more are refused with 429 [64]
        --checkpoint FILE  of example 06: a model that writes texts on
        --cache N    bytes of all texts that are written at once [65536]
        --texts N    that are written, or wait, at once; more are refused with 429 [256]
      """;

  public static void main(String[] arguments) {
    Locale.setDefault(Locale.ROOT);
    System.setProperty("sun.net.httpserver.nodelay", "true"); // events go out when they come
    Map<String, Integer> options = new HashMap<>();
    options.putAll(Map.of("--length", 131072, "--port", 8080, "--groups", 1, "--queue", 64));
    options.putAll(Map.of("--cache", 65536, "--texts", 256));
    String path = null;
    String checkpoint = null;
    try {
      for (int i = 0; i < arguments.length; ++i) {
        if (options.containsKey(arguments[i])) {
          options.put(arguments[i], Integer.parseUnsignedInt(arguments[++i]));
        } else if (arguments[i].equals("--checkpoint")) {
          checkpoint = arguments[++i];
        } else if (!arguments[i].startsWith("-") && path == null) {
          path = arguments[i];
        } else {
          throw new IllegalArgumentException(arguments[i]);
        }
      }
    } catch (IllegalArgumentException | ArrayIndexOutOfBoundsException e) {
      path = null;
    }
    if (path == null) {
      System.err.print(HELP);
      System.exit(2);
    }
    try {
      run(path, checkpoint, options);
    } catch (IOException | RuntimeException e) {
      System.err.println(e);
      System.exit(1); // whatever threads there are already
    }
  }

  private static void run(String path, String checkpoint, Map<String, Integer> options)
      throws IOException {
    byte[] text = toAlphabet(Files.readString(Path.of(path), StandardCharsets.UTF_8));
    int length = options.get("--length");
    text = length == 0 ? text : Arrays.copyOf(text, Math.min(length, text.length));
    Generator generator = null;
    if (checkpoint != null) {
      Model model = new Model(Path.of(checkpoint));
      generator = new Generator(model, options.get("--cache"), options.get("--texts"));
    }
    Service service =
        new Service(
            text,
            options.get("--port"),
            options.get("--groups"),
            options.get("--queue"),
            generator);
    Runtime.getRuntime()
        .addShutdownHook(
            new Thread(
                () -> {
                  try {
                    service.close();
                    System.out.println("stopped");
                  } catch (InterruptedException e) {
                    Thread.currentThread().interrupt();
                  }
                }));
    System.out.printf(
        "%d ranks have read %,d bytes; http://localhost:%d/%n",
        Ranks.COUNT * options.get("--groups"), text.length, service.port());
  }
}
