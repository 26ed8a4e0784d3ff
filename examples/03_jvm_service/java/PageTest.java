import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.WebSocket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Types into the page, in a Chromium without a window that is told what to do by its DevTools
 * protocol, and compares what it shows with the head computed directly.
 *
 * <pre>
 * java -cp ... PageTest CHROMIUM TEXT PICTURE.png [CHECKPOINT]
 * </pre>
 */
final class PageTest {
  private static final int LENGTH = 16384;

  // ---------------------------------------------------------------- the browser

  /** One page; each command is a message of JSON with an id, which its answer has too. */
  private static final class Browser implements AutoCloseable, WebSocket.Listener {
    private final Process process;
    private final Path profile = Files.createTempDirectory("chromium");
    private final HttpClient http = HttpClient.newHttpClient();
    private final BlockingQueue<String> messages = new LinkedBlockingQueue<>();
    private final StringBuilder message = new StringBuilder();
    private final WebSocket socket;
    private int commands;

    Browser(String program) throws Exception {
      process =
          new ProcessBuilder(
                  program,
                  "--headless=new",
                  "--no-sandbox", // which root, as in containers, cannot have
                  "--disable-gpu",
                  "--disable-dev-shm-usage",
                  "--no-first-run",
                  "--window-size=1000,1300",
                  "--remote-debugging-port=0",
                  "--user-data-dir=" + profile,
                  "about:blank")
              .redirectErrorStream(true)
              .redirectOutput(ProcessBuilder.Redirect.DISCARD)
              .start();
      Path file = profile.resolve("DevToolsActivePort");
      for (int n = 0; n < 300 && (!Files.exists(file) || Files.size(file) == 0); ++n) {
        Thread.sleep(100);
      }
      String port = Files.readAllLines(file).get(0);
      URI list = URI.create("http://localhost:" + port + "/json/list");
      Matcher page =
          Pattern.compile("\"webSocketDebuggerUrl\": \"(ws:[^\"]*/page/[^\"]*)\"").matcher("");
      for (int n = 0; n < 100 && !page.find(); ++n) {
        Thread.sleep(n == 0 ? 0 : 100);
        HttpRequest request = HttpRequest.newBuilder(list).build();
        page.reset(http.send(request, HttpResponse.BodyHandlers.ofString()).body());
      }
      socket = http.newWebSocketBuilder().buildAsync(URI.create(page.group(1)), this).get();
    }

    @Override
    public CompletionStage<?> onText(WebSocket socket, CharSequence part, boolean isLast) {
      message.append(part);
      if (isLast) {
        messages.add(message.toString());
        message.setLength(0);
      }
      socket.request(1);
      return null;
    }

    /** What `method` answers. An exception in the page is one here. */
    String command(String method, String parameters) throws Exception {
      int id = ++commands;
      String text =
          String.format(
              "{\"id\": %d, \"method\": \"%s\", \"params\": {%s}}", id, method, parameters);
      socket.sendText(text, true).get();
      for (; ; ) {
        String answer = messages.poll(20, TimeUnit.SECONDS);
        require(answer != null, method + " has no answer");
        require(
            !answer.contains("exceptionThrown") && !answer.contains("exceptionDetails"), answer);
        if (answer.startsWith("{\"id\":" + id + ",")) {
          return answer;
        }
      }
    }

    /** The string that an expression of JavaScript has for its value. */
    String value(String expression) throws Exception {
      String quoted = expression.replace("\\", "\\\\").replace("\"", "\\\"");
      String answer = command("Runtime.evaluate", "\"expression\": \"String(" + quoted + ")\"");
      Matcher value = Pattern.compile("\"value\":\"((?:[^\"\\\\]|\\\\.)*)\"").matcher(answer);
      require(value.find(), answer);
      return unescape(value.group(1));
    }

    private static String unescape(String text) {
      return Pattern.compile("\\\\(u(....)|.)")
          .matcher(text)
          .replaceAll(
              escape -> {
                String letter =
                    switch (escape.group(1).charAt(0)) {
                      case 'n' -> "\n";
                      case 't' -> "\t";
                      case 'u' -> "" + (char) Integer.parseInt(escape.group(2), 16);
                      default -> escape.group(1);
                    };
                return Matcher.quoteReplacement(letter);
              });
    }

    void await(String condition) throws Exception {
      for (int n = 0; n < 200; ++n) {
        if (value(condition).equals("true")) {
          return;
        }
        Thread.sleep(50);
      }
      throw new IllegalStateException("never: " + condition);
    }

    void press(String key, int code) throws Exception {
      for (String type : new String[] {"keyDown", "keyUp"}) {
        command(
            "Input.dispatchKeyEvent",
            String.format(
                "\"type\": \"%s\", \"key\": \"%s\", \"windowsVirtualKeyCode\": %d",
                type, key, code));
      }
    }

    void picture(Path file) throws Exception {
      String answer = command("Page.captureScreenshot", "");
      Matcher data = Pattern.compile("\"data\":\"([^\"]*)\"").matcher(answer);
      require(data.find(), answer);
      Files.write(file, Base64.getDecoder().decode(data.group(1)));
    }

    @Override
    public void close() throws IOException {
      process.descendants().forEach(ProcessHandle::destroyForcibly);
      process.destroyForcibly().onExit().join();
      new ProcessBuilder("rm", "-rf", profile.toString()).start().onExit().join();
    }
  }

  private static void require(boolean condition, String otherwise) {
    if (!condition) {
      throw new IllegalStateException(otherwise);
    }
  }

  // ---------------------------------------------------------------- the test

  private final Browser browser;
  private final byte[] book;

  private PageTest(Browser browser, byte[] book) {
    this.browser = browser;
    this.book = book;
  }

  /** Waits until the page shows what comes after `text`; each line must be what the head says. */
  private void check(String text) throws Exception {
    browser.await("document.querySelector('textarea').value === document.body.dataset.shown");
    require(browser.value("document.body.dataset.shown").equals(text), "the text is another");
    byte[] behind = text.getBytes(StandardCharsets.US_ASCII);
    byte[] both = Arrays.copyOf(book, book.length + behind.length);
    System.arraycopy(behind, 0, both, book.length, behind.length);

    String[] lines =
        browser
            .value("[...document.querySelector('tbody').rows].map((r) => r.innerText).join(';')")
            .split(";");
    long context = 64;
    for (String line : lines) {
      boolean isLast = line.equals(lines[lines.length - 1]);
      context = isLast ? both.length : context;
      double[] next = InductionHead.attendDirectly(both, new long[] {both.length}, context)[0];
      double best = Arrays.stream(next).max().orElseThrow();
      String[] cells = line.split("\\s+");
      String wanted = String.format("%,d", context);
      require(cells[0].equals(wanted), "looks back " + cells[0] + ", not " + wanted);
      double shown = Double.parseDouble(cells[cells.length - 2]);
      require(Math.abs(shown - 100 * best) < 0.51, line + " has " + shown + ", not " + best);
      context *= 4;
    }
    require(lines.length == 5, lines.length + " lines");
    String read = browser.value("document.getElementById('read').innerText");
    require(read.startsWith(text) && read.length() == text.length() + 1, read);
    require(browser.value("document.getElementById('said').innerText").isEmpty(), "it says more");
  }

  private void run(URI address) throws Exception {
    browser.command("Runtime.enable", "");
    browser.command("Page.navigate", "\"url\": \"" + address + "\"");
    browser.await("document.body?.dataset.shown !== undefined");
    String text = browser.value("document.querySelector('textarea').value");
    check(text);
    String more = ". The library";
    browser.command(
        "Runtime.evaluate", "\"expression\": \"document.querySelector('textarea').select()\"");
    browser.command("Input.insertText", "\"text\": \"attention" + more + "\"");
    check("attention" + more);
    String guess = browser.value("document.querySelector('.next').innerText");
    browser.press("Tab", 9);
    check("attention" + more + guess.replace('\u2423', ' ').replace('\u21B5', '\n'));
  }

  private void set(String field, String value) throws Exception {
    browser.value("document.getElementById('" + field + "').value = '" + value + "'");
  }

  /** Has a text written to its end, and one that is stopped. */
  private void write(URI address, Model model) throws Exception {
    String prompt = "The ranks of \u00e4 library";
    browser.await("!document.getElementById('writer').hidden");
    String weights = browser.value("document.getElementById('weights').innerText");
    require(weights.equals(String.format("%,d", model.numWeights())), weights);
    set("prompt", prompt);
    set("bytes", "60");
    set("temperature", "0");
    browser.value("document.getElementById('write').click()");
    browser.await("document.body.dataset.wrote === 'length 60'");
    byte[] encoded = prompt.getBytes(StandardCharsets.UTF_8);
    byte[] expected = GeneratorTest.writeDirectly(model, new Generator.Request(encoded, 60, 0, 0));
    String written = browser.value("document.querySelector('#written span').textContent");
    require(written.equals(new String(expected, StandardCharsets.UTF_8)), written);
    String whole = browser.value("document.getElementById('written').textContent");
    require(whole.equals(prompt + written), whole);
    String speed = browser.value("document.getElementById('speed').innerText");
    require(speed.matches("60 bytes, [1-9][0-9]* a second"), speed);

    set("bytes", "4096");
    browser.value("document.getElementById('write').click()");
    browser.await("document.querySelector('#written span').textContent.length > 20");
    require(browser.value("document.getElementById('write').innerText").equals("Stop"), "no Stop");
    GenerateTest.await(address, "running", 1);
    browser.value("document.getElementById('write').click()");
    browser.await("document.body.dataset.wrote.startsWith('stopped ')");
    GenerateTest.await(address, "running", 0);

    set("bytes", "5000");
    browser.value("document.getElementById('write').click()");
    browser.await("document.getElementById('failed').innerText.includes('max_bytes must be')");
    set("bytes", "200");
    set("temperature", "0.8");
    browser.value("document.getElementById('write').click()");
    browser.await("document.body.dataset.wrote === 'length 200'");
    require(browser.value("document.getElementById('failed').innerText").isEmpty(), "it says more");
  }

  public static void main(String[] arguments) throws Exception {
    byte[] text = Service.toAlphabet(Files.readString(Path.of(arguments[1])));
    byte[] book = Arrays.copyOf(text, LENGTH);
    String checkpoint = arguments.length > 3 ? arguments[3] : null;
    List<String> options = new ArrayList<>(List.of("--length", "" + LENGTH));
    if (checkpoint != null) {
      options.addAll(List.of("--checkpoint", checkpoint));
    }
    boolean isGood = false;
    try (ServiceProcess service = new ServiceProcess(arguments[1], options.toArray(String[]::new));
        Browser browser = new Browser(arguments[0])) {
      PageTest test = new PageTest(browser, book);
      test.run(service.address);
      if (checkpoint != null) {
        test.write(service.address, new Model(Path.of(checkpoint)));
      }
      browser.picture(Path.of(arguments[2]));
      service.terminate();
      service.requireEnd();
      isGood = true;
    } catch (IllegalStateException e) {
      System.err.println(e.getMessage());
    }
    System.exit(isGood ? 0 : 1);
  }
}
