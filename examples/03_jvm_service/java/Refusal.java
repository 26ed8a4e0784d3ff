import com.sun.net.httpserver.HttpExchange;
import java.io.IOException;

/** An answer that is no success. */
final class Refusal extends Exception {
  private static final long serialVersionUID = 1;
  final int code;

  Refusal(int code, String message) {
    super(message);
    this.code = code;
  }

  /** The request's body; 413 if it has more bytes. */
  static byte[] body(HttpExchange exchange, int longest) throws IOException, Refusal {
    byte[] body = exchange.getRequestBody().readNBytes(longest + 1);
    if (body.length > longest) {
      throw new Refusal(413, "the request has more than " + longest + " bytes");
    }
    return body;
  }
}
