import com.sun.net.httpserver.HttpExchange;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.charset.CharsetDecoder;
import java.nio.charset.CodingErrorAction;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;

/**
 * POST /generate: a JSON object comes, and server-sent events go out while a text is written.
 *
 * <pre>
 *   data: {"bytes": [226, 130], "text": ""}         as soon as there are some
 *   data: {"bytes": [172, 32], "text": "€ "}        characters that are whole now
 *   event: end
 *   data: {"reason": "length", ...}                 the last one
 * </pre>
 *
 * <p>Where nothing comes for a while, as where a text waits for others, there are comments: nobody
 * would notice else that a client has left, and it would be written on for nobody.
 */
final class Writing {
  private static final int LONGEST_BODY = 8 * Generator.LONGEST_PROMPT;
  private static final int PATIENCE_MS = 500;

  private Writing() {}

  static void answer(HttpExchange exchange, Generator generator) throws IOException, Refusal {
    Generator.Request request = read(Refusal.body(exchange, LONGEST_BODY));
    if (!generator.fits(request)) {
      throw new Refusal(400, "the cache is too small: prompt and max_bytes must be less");
    }
    Generator.Stream stream =
        generator.start(request).orElseThrow(() -> new Refusal(429, "too many texts are written"));
    try {
      exchange.getResponseHeaders().set("Content-Type", "text/event-stream");
      exchange.getResponseHeaders().set("Cache-Control", "no-store");
      exchange.sendResponseHeaders(200, 0);
      send(stream, request.prompt().length, exchange.getResponseBody());
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    } finally {
      stream.cancel();
    }
  }

  private static void send(Generator.Stream stream, int prompt, OutputStream out)
      throws IOException, InterruptedException {
    Characters characters = new Characters();
    long begin = System.nanoTime();
    int written = 0;
    Generator.Part part;
    do {
      part = stream.take(PATIENCE_MS);
      byte[] bytes = part.bytes();
      written += bytes.length;
      String event = part.end() == null ? ":\n\n" : "";
      if (bytes.length > 0) {
        String text = Json.quote(characters.add(bytes, false));
        event = "data: {\"bytes\": " + list(bytes) + ", \"text\": " + text + "}\n\n";
      }
      if (part.end() != null) {
        double seconds = (System.nanoTime() - begin) / 1e9;
        event +=
            String.format(
                "event: end\ndata: {\"reason\": %s, \"text\": %s, \"prompt\": %d, \"written\": %d,"
                    + " \"seconds\": %.3f, \"bytes_per_second\": %.1f}\n\n",
                Json.quote(part.end()),
                Json.quote(characters.add(new byte[0], true)),
                prompt,
                written,
                seconds,
                written / seconds);
      }
      out.write(event.getBytes(StandardCharsets.UTF_8));
      out.flush();
    } while (part.end() == null);
  }

  private static String list(byte[] bytes) {
    int[] values = new int[bytes.length];
    Arrays.setAll(values, i -> bytes[i] & 0xFF);
    return Arrays.toString(values);
  }

  /** Of bytes that come bit by bit; what is no UTF-8 becomes U+FFFD. */
  private static final class Characters {
    private final CharsetDecoder decoder =
        StandardCharsets.UTF_8.newDecoder().onMalformedInput(CodingErrorAction.REPLACE);
    private byte[] begun = {}; // of a character

    String add(byte[] bytes, boolean isLast) {
      ByteBuffer in = ByteBuffer.allocate(begun.length + bytes.length).put(begun).put(bytes).flip();
      CharBuffer out = CharBuffer.allocate(in.remaining() + 1);
      decoder.decode(in, out, isLast);
      begun = new byte[in.remaining()];
      in.get(begun);
      return out.flip().toString();
    }
  }

  // ---------------------------------------------------------------- requests

  private static Generator.Request read(byte[] body) throws Refusal {
    Map<String, Object> fields = new HashMap<>();
    try {
      if (!(Json.read(new String(body, StandardCharsets.UTF_8)) instanceof Map<?, ?> object)) {
        throw new Refusal(400, "the request must be a JSON object");
      }
      object.forEach((name, value) -> fields.put((String) name, value));
    } catch (IllegalArgumentException e) {
      throw new Refusal(400, e.getMessage());
    }
    if (!(fields.remove("prompt") instanceof String text)) {
      throw new Refusal(400, "prompt must be a string");
    }
    byte[] prompt = text.getBytes(StandardCharsets.UTF_8);
    if (prompt.length < 1 || prompt.length > Generator.LONGEST_PROMPT) {
      throw new Refusal(
          400,
          "prompt has " + prompt.length + " bytes; must have 1 to " + Generator.LONGEST_PROMPT);
    }
    long maxBytes = whole(fields, "max_bytes", 256, 1, Generator.MOST_BYTES);
    double temperature = number(fields, "temperature", 1, 0, Generator.HOTTEST);
    long seed = whole(fields, "seed", 0, 0, 1L << 53);
    if (!fields.isEmpty()) {
      throw new Refusal(400, "there must be no field " + fields.keySet().iterator().next());
    }
    return new Generator.Request(prompt, (int) maxBytes, temperature, seed);
  }

  private static double number(
      Map<String, Object> fields, String name, double usual, long least, long most) throws Refusal {
    Object value = fields.containsKey(name) ? fields.remove(name) : (Double) usual;
    if (value instanceof Double number && least <= number && number <= most) {
      return number;
    }
    throw new Refusal(400, name + " must be a number from " + least + " to " + most);
  }

  private static long whole(
      Map<String, Object> fields, String name, double usual, long least, long most) throws Refusal {
    double value = number(fields, name, usual, least, most);
    if (value != Math.rint(value)) {
      throw new Refusal(400, name + " is " + value + "; must be whole");
    }
    return (long) value;
  }
}
