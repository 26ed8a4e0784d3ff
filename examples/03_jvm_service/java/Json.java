import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * JSON as plain objects: Map, List, String, Double, Boolean and null. What is none is refused with
 * IllegalArgumentException.
 */
final class Json {
  private static final int DEEPEST = 32;

  private final String text;
  private int next; // to be read

  private Json(String text) {
    this.text = text;
  }

  static Object read(String text) {
    Json json = new Json(text);
    Object value = json.value(0);
    json.require(json.peek() == 0, "the end");
    return value;
  }

  /** With quotation marks. */
  static String quote(String text) {
    StringBuilder quoted = new StringBuilder("\"");
    for (char c : text.toCharArray()) {
      if (c == '"' || c == '\\') {
        quoted.append('\\').append(c);
      } else if (c < ' ') {
        quoted.append(String.format("\\u%04x", (int) c));
      } else {
        quoted.append(c);
      }
    }
    return quoted.append('"').toString();
  }

  private void require(boolean condition, String wanted) {
    if (!condition) {
      throw new IllegalArgumentException("no JSON: byte " + next + " must be " + wanted);
    }
  }

  /** What comes behind blanks, which it takes; 0 at the end. */
  private char peek() {
    while (next < text.length() && " \t\r\n".indexOf(text.charAt(next)) >= 0) {
      ++next;
    }
    return next < text.length() ? text.charAt(next) : 0;
  }

  private boolean takes(String word) {
    peek();
    boolean isThere = text.startsWith(word, next);
    next += isThere ? word.length() : 0;
    return isThere;
  }

  private Object value(int depth) {
    require(depth < DEEPEST, "no deeper than " + DEEPEST);
    if (takes("{")) {
      Map<String, Object> object = new LinkedHashMap<>();
      for (boolean isFirst = true; !takes("}"); isFirst = false) {
        require(isFirst || takes(","), ", or }");
        require(takes("\""), "a name");
        String name = string();
        require(takes(":"), ":");
        object.put(name, value(depth + 1));
      }
      return object;
    }
    if (takes("[")) {
      List<Object> list = new ArrayList<>();
      for (boolean isFirst = true; !takes("]"); isFirst = false) {
        require(isFirst || takes(","), ", or ]");
        list.add(value(depth + 1));
      }
      return list;
    }
    if (takes("\"")) {
      return string();
    }
    if (takes("true")) {
      return true;
    }
    if (takes("false")) {
      return false;
    }
    return takes("null") ? null : number();
  }

  private Double number() {
    int begin = next;
    while (next < text.length() && "+-.0123456789eE".indexOf(text.charAt(next)) >= 0) {
      ++next;
    }
    String digits = text.substring(begin, next);
    next = begin;
    require(digits.matches("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?"), "a value");
    next += digits.length();
    return Double.valueOf(digits);
  }

  /** Behind its first quotation mark. */
  private String string() {
    StringBuilder string = new StringBuilder();
    while (true) {
      require(next < text.length() && text.charAt(next) >= ' ', "part of a string");
      char c = text.charAt(next++);
      if (c == '"') {
        return string.toString();
      }
      string.append(c == '\\' ? escaped() : c);
    }
  }

  private char escaped() {
    require(next < text.length(), "an escape");
    char c = text.charAt(next++);
    int plain = "\"\\/bfnrt".indexOf(c);
    if (plain >= 0) {
      return "\"\\/\b\f\n\r\t".charAt(plain);
    }
    require(c == 'u' && text.substring(next).matches("(?s)[0-9a-fA-F]{4}.*"), "an escape");
    next += 4;
    return (char) Integer.parseInt(text.substring(next - 4, next), 16);
  }
}
