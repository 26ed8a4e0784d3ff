package dev.ringattn;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.File;
import java.io.IOException;
import java.lang.reflect.Method;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Function;
import java.util.stream.LongStream;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;
import org.junit.jupiter.api.function.Executable;

/** bindings/conformance/cases.json, by the rules of the README beside it. */
class ConformanceTest {
  private static final List<String> TENSORS = List.of("q", "k", "v", "dout", "dq", "dk", "dv");
  private static final List<String> WEIGHTS =
      List.of("w_q", "w_k", "w_v", "w_o", "b_q", "b_k", "b_v", "b_o", "norm_q", "norm_k");

  private static JsonNode read(String variable) throws IOException {
    String path = System.getenv(variable);
    boolean isRequired = System.getenv("RINGATTN_CONFORMANCE_REQUIRED") != null;
    assertTrue(path != null || !isRequired, variable + " is not set");
    assumeTrue(path != null, variable + " is not set");
    return new ObjectMapper().readTree(new File(path));
  }

  @TestFactory
  Stream<DynamicTest> results() throws IOException {
    JsonNode cases = read("RINGATTN_CONFORMANCE").get("results");
    JsonNode results = read("RINGATTN_CONFORMANCE_RESULTS");
    return tests(cases, c -> checkResult(c, results.get(c.get("name").asText())));
  }

  @TestFactory
  Stream<DynamicTest> layers() throws IOException {
    JsonNode cases = read("RINGATTN_CONFORMANCE").get("layers");
    JsonNode results = read("RINGATTN_CONFORMANCE_RESULTS");
    return tests(cases, c -> checkLayer(c, results.get(c.get("name").asText())));
  }

  @TestFactory
  Stream<DynamicTest> caches() throws IOException {
    JsonNode cases = read("RINGATTN_CONFORMANCE").get("caches");
    JsonNode results = read("RINGATTN_CONFORMANCE_RESULTS");
    return tests(cases, c -> checkCache(c, results.get(c.get("name").asText())));
  }

  @TestFactory
  Stream<DynamicTest> errors() throws IOException {
    return tests(read("RINGATTN_CONFORMANCE").get("errors"), ConformanceTest::checkError);
  }

  private interface Check {
    void run(JsonNode c) throws Exception;
  }

  private static Stream<DynamicTest> tests(JsonNode cases, Check check) {
    return StreamSupport.stream(cases.spliterator(), false)
        .map(c -> DynamicTest.dynamicTest(c.get("name").asText(), () -> runNamed(check, c)));
  }

  /** Surefire does not print a dynamic test's name. */
  private static void runNamed(Check check, JsonNode c) {
    try {
      check.run(c);
    } catch (Exception | AssertionError e) {
      throw new AssertionError(c.get("name").asText() + ": " + e.getMessage(), e);
    }
  }

  // ---------------------------------------------------------------- fields, by their C names

  private static <T> T filled(T record, JsonNode fields) {
    if (fields != null) {
      for (Map.Entry<String, JsonNode> field : fields.properties()) {
        set(record, field.getKey(), field.getValue());
      }
    }
    return record;
  }

  private static void set(Object record, String field, JsonNode value) {
    for (Method setter : record.getClass().getMethods()) {
      if (setter.getName().equals(camel(field)) && setter.getParameterCount() == 1) {
        try {
          setter.invoke(record, as(setter.getParameterTypes()[0], value));
          return;
        } catch (ReflectiveOperationException e) {
          throw new AssertionError(field, e);
        }
      }
    }
    throw new AssertionError(record.getClass() + " has no " + field);
  }

  private static String camel(String name) {
    StringBuilder camel = new StringBuilder();
    for (String word : name.split("_")) {
      camel.append(camel.isEmpty() ? word.substring(0, 1) : word.substring(0, 1).toUpperCase());
      camel.append(word.substring(1));
    }
    return camel.toString();
  }

  private static Object as(Class<?> type, JsonNode value) {
    if (type == long.class) {
      return value.asLong();
    } else if (type == int.class) {
      return value.asInt();
    } else if (type == float.class) {
      return real(value);
    } else if (type == double.class) {
      return value.asDouble();
    } else if (type == boolean.class) {
      return value.asBoolean();
    } else if (type == long[].class) {
      return longs(value);
    } else if (type == float[].class) {
      float[] list = new float[value.size()];
      for (int i = 0; i < list.length; ++i) {
        list[i] = real(value.get(i));
      }
      return list;
    } else if (type == UniqueId.class) {
      return new UniqueId(value.asText());
    } else if (type.isEnum()) {
      return Stream.of(type.getEnumConstants())
          .filter(constant -> constant.toString().equals(value.asText()))
          .findAny()
          .orElseThrow();
    }
    return value.asText();
  }

  private static long[] longs(JsonNode list) {
    return StreamSupport.stream(list.spliterator(), false).mapToLong(JsonNode::asLong).toArray();
  }

  private static float real(JsonNode value) {
    return switch (value.asText()) {
      case "inf" -> Float.POSITIVE_INFINITY;
      case "-inf" -> Float.NEGATIVE_INFINITY;
      case "nan" -> Float.NaN;
      default -> (float) value.asDouble();
    };
  }

  // ---------------------------------------------------------------- problems

  /** Shapes and types of a desc's tensors; of a layer, unless `mha` is null. */
  private record Problem(AttentionDesc desc, MhaDesc mha) {
    static Problem of(JsonNode c) {
      MhaDesc mha = c.has("mha") ? filled(new MhaDesc(), c.get("mha")) : null;
      return new Problem(filled(new AttentionDesc(), c.get("desc")), mha);
    }

    DType type(String name) {
      DType type =
          switch (name) {
            case "lse", "key_bias" -> DType.FLOAT32;
            case "out", "dout" -> desc.outDtype();
            case "dq", "dk", "dv", "dx" -> desc.gradDtype();
            default -> desc.dtype();
          };
      return type != DType.SAME ? type : desc.dtype();
    }

    Side side(String name) {
      boolean isOfKeys = List.of("k", "v", "dk", "dv", "key_bias").contains(name);
      return isOfKeys ? Side.KEY_VALUE : Side.QUERY;
    }

    long seqlen(Side side) {
      boolean isOfKeys = side == Side.KEY_VALUE && desc.seqlenKv() != -1;
      return isOfKeys ? desc.seqlenKv() : desc.seqlenQ();
    }

    long heads(String name) {
      if (name.equals("key_bias") || mha != null) {
        return 1;
      }
      boolean isOfKeys = side(name) == Side.KEY_VALUE && desc.numHeadsKv() != 0;
      return isOfKeys ? desc.numHeadsKv() : desc.numHeadsQ();
    }

    long dim(String name) {
      if (mha != null) {
        return mha.dModel();
      }
      boolean isOfValues = List.of("v", "dv", "out", "dout").contains(name);
      return name.equals("lse") || name.equals("key_bias")
          ? 1
          : isOfValues && desc.headDimV() != 0 ? desc.headDimV() : desc.headDim();
    }

    Array array(String name, long rows) {
      return new Array(type(name), desc.batch() * rows * heads(name) * dim(name));
    }

    Array whole(String name) {
      return array(name, seqlen(side(name)));
    }

    Array shard(String name, int worldSize, int rank) {
      return array(name, RingAttention.shardLength(desc, worldSize, rank, side(name)));
    }

    /** How many numbers a weight has; 0 where the layer has none. */
    long count(String weight) {
      Problem heads = new Problem(desc, null);
      return switch (weight) {
        case "w_q", "w_k", "w_v" -> {
          String name = weight.substring(2);
          yield mha.dModel() * heads.heads(name) * heads.dim(name);
        }
        case "w_o" -> heads.heads("out") * heads.dim("out") * mha.dModel();
        case "b_q", "b_k", "b_v" -> {
          String name = weight.substring(2);
          yield mha.hasQkvBias() ? heads.heads(name) * heads.dim(name) : 0;
        }
        case "b_o" -> mha.hasOutBias() ? mha.dModel() : 0;
        default -> mha.normalizeHeads() ? desc.headDim() : 0;
      };
    }

    SequenceArgs sequence(String name, Array whole, Array shard, int worldSize, int rank) {
      Side side = side(name);
      SequenceArgs args =
          new SequenceArgs().side(side).dtype(type(name)).numHeads(heads(name)).dim(dim(name));
      if (!name.equals("lse")) {
        return args.whole(whole.tensor()).shard(shard.tensor());
      }
      long n = seqlen(side);
      long local = RingAttention.shardLength(desc, worldSize, rank, side);
      return args.whole(whole.tensor().strides(heads(name) * n, 1, n))
          .shard(shard.tensor().strides(heads(name) * local, 1, local));
    }
  }

  // ---------------------------------------------------------------- results

  private static void checkResult(JsonNode c, JsonNode hashes) throws Exception {
    Problem problem = Problem.of(c);
    int worldSize = c.get("world_size").asInt();
    long seed = c.get("seed").asLong();
    boolean accumulates = c.path("accumulate").asBoolean();
    Map<String, Array> wholes = new LinkedHashMap<>();
    for (String name : TENSORS) {
      Array array = problem.whole(name);
      wholes.put(name, array);
      if (accumulates || !List.of("dq", "dk", "dv").contains(name)) {
        array.fill(seed, TENSORS.indexOf(name));
      }
    }
    wholes.put("out", problem.whole("out"));
    wholes.put("lse", problem.whole("lse"));
    if (problem.desc.hasKeyBias()) {
      wholes.put("key_bias", problem.whole("key_bias"));
      wholes.get("key_bias").fill(seed, 7);
    }
    long countOfSinks = problem.desc.numHeadsQ() * problem.desc.numSinks();
    Array sinks = new Array(DType.FLOAT32, countOfSinks);
    sinks.fill(seed, 8);
    List<Array> dsinks =
        Stream.generate(() -> new Array(DType.FLOAT32, countOfSinks)).limit(worldSize).toList();
    if (accumulates) {
      dsinks.get(0).fill(seed, 9);
    }

    UniqueId id = UniqueId.create(Transport.LOCAL);
    Ranks.run(
        worldSize,
        rank -> {
          Map<String, Array> shards = split(problem, wholes, worldSize, rank);
          ForwardArgs forward = forward(shards);
          BackwardArgs backward = backward(shards).accumulate(accumulates);
          if (shards.containsKey("key_bias")) {
            forward.keyBias(shards.get("key_bias").tensor());
            backward.keyBias(shards.get("key_bias").tensor());
          }
          if (countOfSinks > 0) {
            forward.sinks(sinks.tensor());
            backward.sinks(sinks.tensor()).dsinks(dsinks.get(rank).tensor());
          }
          try (Context context = joinGroup(c, id, worldSize, rank)) {
            context.forward(problem.desc, forward);
            context.backward(problem.desc, backward);
          }
          List<String> outputs = List.of("out", "lse", "dq", "dk", "dv");
          join(problem, outputs, shards, wholes, worldSize, rank);
        });

    for (Array share : dsinks.subList(1, worldSize)) {
      for (long i = 0; i < countOfSinks; ++i) {
        dsinks.get(0).set(i, dsinks.get(0).get(i) + share.get(i));
      }
    }
    wholes.put("dsinks", dsinks.get(0));
    if (problem.desc.dropoutProbability() > 0) {
      wholes.put("dropout_mask", dropoutMask(problem));
    }
    compare(c, wholes, hashes);
  }

  private static Context joinGroup(JsonNode c, UniqueId id, int worldSize, int rank) {
    return new Context(
        filled(new ContextConfig(), c.get("config")).rank(rank).worldSize(worldSize).uniqueId(id));
  }

  private static Map<String, Array> split(
      Problem problem, Map<String, Array> wholes, int worldSize, int rank) {
    Map<String, Array> shards = new LinkedHashMap<>();
    wholes.forEach(
        (name, whole) -> {
          Array shard = problem.shard(name, worldSize, rank);
          shards.put(name, shard);
          SequenceArgs args = problem.sequence(name, whole, shard, worldSize, rank);
          RingAttention.splitSequence(problem.desc, worldSize, rank, args);
        });
    return shards;
  }

  /** Ranks write to places apart. */
  private static void join(
      Problem problem,
      List<String> names,
      Map<String, Array> shards,
      Map<String, Array> wholes,
      int worldSize,
      int rank) {
    for (String name : names) {
      SequenceArgs args =
          problem.sequence(name, wholes.get(name), shards.get(name), worldSize, rank);
      RingAttention.joinSequence(problem.desc, worldSize, rank, args);
    }
  }

  private static void compare(JsonNode c, Map<String, Array> wholes, JsonNode hashes) {
    List<String> wrong = new ArrayList<>();
    for (Map.Entry<String, JsonNode> expected : c.get("expected").properties()) {
      String name = expected.getKey();
      Array whole = wholes.get(name);
      Iterator<JsonNode> values = expected.getValue().get("values").iterator();
      double tolerance = expected.getValue().get("tolerance").asDouble();
      for (long at : longs(expected.getValue().get("at"))) {
        JsonNode value = values.next();
        double truth = value.isTextual() ? real(value) : value.asDouble();
        float ours = whole.get(at);
        if (ours != truth && !(Math.abs(ours - truth) <= tolerance)) {
          wrong.add(name + "[" + at + "] is " + ours + "; must be " + truth + " +- " + tolerance);
        }
      }
      if (!whole.hash().equals(hashes.get(name).asText())) {
        wrong.add(name + " is not what C got");
      }
    }
    assertEquals(List.of(), wrong);
  }

  /** Of each pair 1 where it is kept, else 0: [batch, numHeadsQ, seqlenQ, seqlenKv]. */
  private static Array dropoutMask(Problem problem) {
    AttentionDesc desc = problem.desc;
    int keys = (int) problem.seqlen(Side.KEY_VALUE);
    int middle = keys / 3;
    Array all = Array.floats(desc.batch() * desc.numHeadsQ() * desc.seqlenQ() * keys);
    int n = 0;
    for (long entry = 0; entry < desc.batch(); ++entry) {
      for (long head = 0; head < desc.numHeadsQ(); ++head) {
        for (long query = 0; query < desc.seqlenQ(); ++query) {
          for (boolean[] part :
              List.of(
                  RingAttention.dropoutMask(desc, entry, head, query, 0, middle),
                  RingAttention.dropoutMask(desc, entry, head, query, middle, keys - middle))) {
            for (boolean isKept : part) {
              all.set(n++, isKept ? 1 : 0);
            }
          }
        }
      }
    }
    return all;
  }

  private static ForwardArgs forward(Map<String, Array> tensors) {
    return new ForwardArgs()
        .q(tensors.get("q").tensor())
        .k(tensors.get("k").tensor())
        .v(tensors.get("v").tensor())
        .out(tensors.get("out").tensor())
        .lse(tensors.get("lse").tensor());
  }

  private static BackwardArgs backward(Map<String, Array> tensors) {
    return new BackwardArgs()
        .dout(tensors.get("dout").tensor())
        .q(tensors.get("q").tensor())
        .k(tensors.get("k").tensor())
        .v(tensors.get("v").tensor())
        .out(tensors.get("out").tensor())
        .lse(tensors.get("lse").tensor())
        .dq(tensors.get("dq").tensor())
        .dk(tensors.get("dk").tensor())
        .dv(tensors.get("dv").tensor());
  }

  // ---------------------------------------------------------------- layers

  private static void checkLayer(JsonNode c, JsonNode hashes) throws Exception {
    Problem problem = Problem.of(c);
    int worldSize = c.get("world_size").asInt();
    long seed = c.get("seed").asLong();
    boolean accumulates = c.path("accumulate").asBoolean();
    boolean reduces = c.path("reduce").asBoolean();
    Map<String, Array> wholes = new LinkedHashMap<>();
    for (String name : List.of("x", "dout", "out", "dx")) {
      wholes.put(name, problem.whole(name));
    }
    wholes.get("x").fill(seed, 0);
    wholes.get("dout").fill(seed, 11);
    Map<String, Array> weights = new LinkedHashMap<>();
    for (String name : WEIGHTS) {
      Array weight = new Array(problem.desc.dtype(), problem.count(name));
      weights.put(name, weight.fill(seed, WEIGHTS.indexOf(name) + 1));
    }
    List<Map<String, Array>> gradients =
        Stream.generate(() -> gradients(problem)).limit(worldSize).toList();
    if (accumulates) {
      gradients
          .get(0)
          .forEach((name, g) -> g.fill(seed, WEIGHTS.indexOf(name.substring(1)) + 17));
    }

    UniqueId id = UniqueId.create(Transport.LOCAL);
    Ranks.run(
        worldSize,
        rank -> {
          Map<String, Array> tensors = split(problem, wholes, worldSize, rank);
          tensors.putAll(weights);
          tensors.putAll(gradients.get(rank));
          try (Context context = joinGroup(c, id, worldSize, rank)) {
            Activations activations = new Activations(context, problem.desc, problem.mha);
            MhaForwardArgs forward =
                mhaForward(name -> tensors.get(name).tensor()).activations(activations);
            MhaBackwardArgs backward =
                mhaBackward(forward, name -> tensors.get(name).tensor())
                    .accumulate(accumulates)
                    .reduce(reduces);
            context.mhaForward(problem.desc, problem.mha, forward);
            context.mhaBackward(problem.desc, problem.mha, backward);
            for (Array gradient : gradients.get(rank).values()) {
              if (!reduces && gradient.count() > 0) {
                context.allReduce(gradient.tensor());
              }
            }
          }
          join(problem, List.of("out", "dx"), tensors, wholes, worldSize, rank);
        });

    for (Map<String, Array> other : gradients) {
      gradients.get(0).forEach((name, g) -> assertEquals(g.hash(), other.get(name).hash(), name));
    }
    wholes.putAll(gradients.get(0));
    compare(c, wholes, hashes);
  }

  /** Of all weights, by their names; without numbers where the layer has none. */
  private static Map<String, Array> gradients(Problem problem) {
    Map<String, Array> gradients = new LinkedHashMap<>();
    for (String name : WEIGHTS) {
      gradients.put("d" + name, Array.floats(problem.count(name)));
    }
    return gradients;
  }

  private static MhaForwardArgs mhaForward(Function<String, Tensor> tensors) {
    return new MhaForwardArgs()
        .x(tensors.apply("x"))
        .wQ(tensors.apply("w_q"))
        .wK(tensors.apply("w_k"))
        .wV(tensors.apply("w_v"))
        .wO(tensors.apply("w_o"))
        .bQ(tensors.apply("b_q"))
        .bK(tensors.apply("b_k"))
        .bV(tensors.apply("b_v"))
        .bO(tensors.apply("b_o"))
        .normQ(tensors.apply("norm_q"))
        .normK(tensors.apply("norm_k"))
        .out(tensors.apply("out"));
  }

  private static MhaBackwardArgs mhaBackward(
      MhaForwardArgs forward, Function<String, Tensor> tensors) {
    return new MhaBackwardArgs(forward)
        .dout(tensors.apply("dout"))
        .dx(tensors.apply("dx"))
        .dwQ(tensors.apply("dw_q"))
        .dwK(tensors.apply("dw_k"))
        .dwV(tensors.apply("dw_v"))
        .dwO(tensors.apply("dw_o"))
        .dbQ(tensors.apply("db_q"))
        .dbK(tensors.apply("db_k"))
        .dbV(tensors.apply("db_v"))
        .dbO(tensors.apply("db_o"))
        .dnormQ(tensors.apply("dnorm_q"))
        .dnormK(tensors.apply("dnorm_k"));
  }

  // ---------------------------------------------------------------- caches

  private static void checkCache(JsonNode c, JsonNode hashes) throws Exception {
    List<UniqueId> groups = new ArrayList<>(List.of(UniqueId.create(Transport.LOCAL)));
    for (JsonNode call : c.get("calls")) {
      if (call.has("former_ranks")) {
        groups.add(UniqueId.create(Transport.LOCAL));
      }
    }
    List<Map<String, Array>> ofRanks =
        Stream.generate(() -> (Map<String, Array>) new LinkedHashMap<String, Array>())
            .limit(c.get("world_size").asInt())
            .toList();
    Ranks.run(
        ofRanks.size(),
        rank -> {
          try (CacheUser user = new CacheUser(c, groups, rank, ofRanks.get(rank))) {
            user.run();
          }
        });

    Map<String, Array> results = new LinkedHashMap<>();
    for (Map<String, Array> own : ofRanks) {
      own.forEach(
          (name, array) -> {
            Array first = results.putIfAbsent(name, array);
            assertEquals(first == null ? array.hash() : first.hash(), array.hash(), name);
          });
    }
    compare(c, results, hashes);
  }

  /** A rank, which may become another one of a smaller group, and its cache. */
  private static final class CacheUser implements AutoCloseable {
    private final JsonNode c;
    private final Iterator<UniqueId> groups;
    private final KvCacheDesc shape;
    private final KvCache cache;
    private final Map<String, Array> results; // out_<n> and lse_<n> of call n
    private Context context;
    private int rank;

    CacheUser(JsonNode c, List<UniqueId> groups, int rank, Map<String, Array> results) {
      this.c = c;
      this.groups = groups.iterator();
      this.rank = rank;
      this.results = results;
      shape = filled(new KvCacheDesc(), c.get("cache"));
      context = joinGroup(c, this.groups.next(), c.get("world_size").asInt(), rank);
      cache = new KvCache(context, shape);
    }

    @Override
    public void close() {
      cache.close();
      context.close();
    }

    void run() {
      int n = 0;
      for (JsonNode call : c.get("calls")) {
        if (call.has("former_ranks") && !joinsNext(call)) {
          return;
        }
        String number = "" + n;
        long seed = c.get("seed").asLong() + n++;
        try {
          if (call.has("status")) {
            expectRefusal(call, () -> make(call, seed, number));
          } else {
            assertGiven(call, make(call, seed, number));
          }
        } catch (RuntimeException | AssertionError e) {
          throw new AssertionError("call " + number + ", rank " + rank + ": " + e.getMessage(), e);
        }
      }
    }

    /** Leaves the group; into the next one only those go that `former_ranks` has. */
    private boolean joinsNext(JsonNode call) {
      int[] former = formerRanks(call);
      UniqueId id = groups.next();
      for (int now = 0; now < former.length; ++now) {
        if (former[now] == rank) {
          rank = now;
          context.close();
          context = joinGroup(c, id, former.length, now);
          return true;
        }
      }
      return false;
    }

    private static int[] formerRanks(JsonNode call) {
      return LongStream.of(longs(call.get("former_ranks"))).mapToInt(Math::toIntExact).toArray();
    }

    private void assertGiven(JsonNode call, long... given) {
      int i = 0;
      for (JsonNode number : call.path("gives")) {
        long expected = (number.isArray() ? number.get(rank) : number).asLong();
        assertEquals(expected, given[i], "number " + i);
        ++i;
      }
    }

    /** The numbers that a call gives. */
    private long[] make(JsonNode call, long seed, String number) {
      long sequence = call.path("sequence").asLong();
      switch (call.get("call").asText()) {
        case "create_sequence" -> {
          return new long[] {cache.createSequence()};
        }
        case "fork_sequence" -> {
          return new long[] {cache.fork(sequence)};
        }
        case "get_sequence_length" -> {
          return new long[] {cache.length(sequence)};
        }
        case "get_lost_tokens" -> {
          return new long[] {cache.lostTokens(sequence, call.get("from").asLong())};
        }
        case "get_kv_cache_statistics" -> {
          KvCacheStatistics s = cache.statistics();
          return new long[] {
            s.numSequences(),
            s.numTokens(),
            s.usedPages(),
            s.freePages(),
            s.leastFreePages(),
            s.lostPages(),
            s.memory()
          };
        }
        case "truncate_sequence" -> cache.truncate(sequence, call.get("length").asLong());
        case "free_sequence" -> cache.free(sequence);
        case "append" -> append(call, seed);
        case "decode" -> decode(call, seed, number);
        case "move_kv_cache" -> cache.moveTo(context, formerRanks(call));
        default -> throw new AssertionError("no such call");
      }
      return new long[0];
    }

    /** A tensor as the call needs it, unless the call says how long it is. */
    private static Array tensor(JsonNode call, String name, DType dtype, long count) {
      return new Array(dtype, call.path("elements").path(name).asLong(count));
    }

    private void append(JsonNode call, long seed) {
      long[] sequences = longs(call.get("sequences"));
      long numTokens = call.get("num_tokens").asLong();
      long heads = sequences.length * numTokens * shape.numHeadsKv();
      long dimV = shape.headDimV() == 0 ? shape.headDim() : shape.headDimV();
      Array k = tensor(call, "k", shape.dtype(), heads * shape.headDim()).fill(seed, 1);
      Array v = tensor(call, "v", shape.dtype(), heads * dimV).fill(seed, 2);
      cache.append(
          new AppendArgs()
              .numTokens(numTokens)
              .sequences(sequences)
              .lengths(call.has("lengths") ? longs(call.get("lengths")) : null)
              .positions(call.has("positions") ? longs(call.get("positions")) : null)
              .k(k.tensor())
              .v(v.tensor()));
    }

    private void decode(JsonNode call, long seed, String number) {
      AttentionDesc desc = filled(filled(new AttentionDesc(), c.get("desc")), call.get("desc"));
      Problem problem = new Problem(desc, null);
      Map<String, Array> tensors = new LinkedHashMap<>();
      for (String name : List.of("q", "out", "lse")) {
        long count = problem.whole(name).count();
        tensors.put(name, tensor(call, name, problem.type(name), count));
      }
      long countOfSinks = desc.numHeadsQ() * desc.numSinks();
      Array sinks = tensor(call, "sinks", DType.FLOAT32, countOfSinks).fill(seed, 8);
      cache.decode(
          desc,
          new DecodeArgs()
              .sequences(longs(call.get("sequences")))
              .q(tensors.get("q").fill(seed, 0).tensor())
              .out(tensors.get("out").tensor())
              .lse(tensors.get("lse").tensor())
              .sinks(countOfSinks > 0 ? sinks.tensor() : null));
      assertEquals(call.get("schedule").asText(), context.statistics().schedule().name());
      results.put("out_" + number, tensors.get("out"));
      results.put("lse_" + number, tensors.get("lse"));
    }
  }

  // ---------------------------------------------------------------- errors

  private static void checkError(JsonNode c) {
    expectRefusal(c, () -> new Call(c).run());
  }

  private static void expectRefusal(JsonNode c, Executable call) {
    RingAttentionException failure = assertThrows(RingAttentionException.class, call);
    assertEquals(c.get("status").asText(), failure.status().name(), failure.getMessage());
    for (JsonNode word : c.get("words")) {
      assertTrue(
          failure.getMessage().contains(word.asText()),
          () -> "no '" + word.asText() + "' in: " + failure.getMessage());
    }
  }

  private record Call(JsonNode c) {
    int number(String name, int otherwise) {
      return c.path("arguments").path(name).asInt(otherwise);
    }

    Side side() {
      return Side.valueOf(c.path("arguments").path("side").asText("QUERY"));
    }

    /** Zeros, as many as `elements` says, or the case. */
    Tensor tensor(String name, DType dtype, long elements) {
      JsonNode given = c.path("tensors").path(name);
      Tensor packed = new Array(dtype, given.path("elements").asLong(elements)).tensor();
      long[] strides =
          Stream.of("batch_stride", "seq_stride", "head_stride")
              .mapToLong(stride -> given.path(stride).asLong(0))
              .toArray();
      boolean isPacked = LongStream.of(strides).allMatch(stride -> stride == 0);
      return isPacked ? packed : packed.strides(strides[0], strides[1], strides[2]);
    }

    void run() {
      Problem problem = Problem.of(c);
      AttentionDesc desc = problem.desc;
      ContextConfig config = filled(new ContextConfig(), c.get("config"));
      String call = c.get("call").asText();
      int worldSize = number("world_size", 1);
      int rank = number("rank", 0);
      switch (call) {
        case "create_unique_id" -> {
          JsonNode arguments = c.get("arguments");
          Transport transport = Transport.valueOf(arguments.get("transport").asText());
          UniqueId.create(transport, arguments.path("bind_address").asText(null));
        }
        case "estimate_memory" -> RingAttention.estimateMemory(config, desc);
        case "estimate_time" ->
            RingAttention.estimateTime(
                config, desc, filled(new MachineRates(), c.get("rates")));
        case "get_shard_length" -> RingAttention.shardLength(desc, worldSize, rank, side());
        case "get_shard_position" ->
            RingAttention.shardPosition(desc, worldSize, rank, side(), number("index", 0));
        case "get_shard_positions" ->
            RingAttention.shardPositions(
                desc, worldSize, rank, side(), number("first", 0), number("count", 0));
        case "get_dropout_mask" ->
            RingAttention.dropoutMask(
                desc,
                number("entry", 0),
                number("head", 0),
                number("query", 0),
                number("first_key", 0),
                number("count", 1));
        case "split_sequence" ->
            RingAttention.splitSequence(desc, worldSize, rank, sequence(desc, worldSize, rank));
        case "join_sequence" ->
            RingAttention.joinSequence(desc, worldSize, rank, sequence(desc, worldSize, rank));
        case "merge_attention" -> merge();
        default -> onContext(call, config, problem);
      }
    }

    SequenceArgs sequence(AttentionDesc desc, int worldSize, int rank) {
      SequenceArgs args =
          new SequenceArgs()
              .side(side())
              .dtype(DType.FLOAT32)
              .numHeads(number("num_heads", 1))
              .dim(number("dim", 1));
      long row = desc.batch() * args.numHeads() * args.dim();
      long whole = row * Problem.of(c).seqlen(side());
      long shard = row * RingAttention.shardLength(desc, worldSize, rank, side());
      return args.whole(tensor("whole", DType.FLOAT32, whole))
          .shard(tensor("shard", DType.FLOAT32, shard));
    }

    void merge() {
      MergeArgs args = filled(new MergeArgs(), c.get("arguments"));
      long rows = args.batch() * args.seqlen() * args.numHeads();
      long elements = rows * args.headDimV();
      RingAttention.mergeAttention(
          args.outA(tensor("out_a", DType.FLOAT32, elements))
              .outB(tensor("out_b", DType.FLOAT32, elements))
              .out(tensor("out", DType.FLOAT32, elements))
              .lseA(tensor("lse_a", DType.FLOAT32, rows))
              .lseB(tensor("lse_b", DType.FLOAT32, rows))
              .lse(tensor("lse", DType.FLOAT32, rows)));
    }

    void onContext(String call, ContextConfig config, Problem problem) {
      AttentionDesc desc = problem.desc;
      try (Context context = new Context(config)) {
        if (call.endsWith("_after_abort")) {
          context.abort();
        }
        switch (call) {
          case "create_context" -> {}
          case "check_support" -> context.checkSupport(desc);
          case "get_memory_requirements" -> context.memoryRequirements(desc);
          case "run_self_test" -> context.runSelfTest(number("num_problems", 1), number("seed", 1));
          case "forward", "forward_after_abort" -> context.forward(desc, forwardArgs(problem));
          case "backward" -> context.backward(desc, backwardArgs(problem));
          case "create_kv_cache" ->
              new KvCache(context, filled(new KvCacheDesc(), c.get("cache"))).close();
          case "all_reduce_after_abort" -> context.allReduce(Array.floats(4).tensor());
          case "get_mha_requirements" -> context.mhaRequirements(desc, problem.mha);
          case "mha_forward", "mha_backward" -> layer(call, context, problem);
          default -> throw new AssertionError("no call " + call);
        }
      }
    }

    void layer(String call, Context context, Problem problem) {
      boolean isRight = true;
      try {
        context.mhaRequirements(problem.desc, problem.mha);
      } catch (RingAttentionException e) {
        isRight = false; // no shapes follow from it
      }
      Map<String, Tensor> tensors = new LinkedHashMap<>();
      for (String name : List.of("x", "dout", "out", "dx")) {
        long elements = isRight ? problem.whole(name).count() : 1;
        tensors.put(name, tensor(name, problem.type(name), elements));
      }
      for (String name : WEIGHTS) {
        long elements = isRight ? problem.count(name) : 1;
        tensors.put(name, tensor(name, problem.desc.dtype(), elements));
        tensors.put("d" + name, tensor("d" + name, DType.FLOAT32, elements));
      }
      MhaForwardArgs forward = mhaForward(tensors::get);
      if (isRight && number("activations", 1) != 0) {
        forward.activations(new Activations(context, problem.desc, problem.mha));
      }
      if (call.equals("mha_forward")) {
        context.mhaForward(problem.desc, problem.mha, forward);
      } else {
        context.mhaBackward(problem.desc, problem.mha, mhaBackward(forward, tensors::get));
      }
    }

    Tensor of(Problem problem, String name) {
      long elements = 1;
      try {
        elements = problem.shard(name, 1, 0).count();
      } catch (RingAttentionException e) {
        // the desc is wrong: no shapes follow from it
      }
      return tensor(name, problem.type(name), elements);
    }

    ForwardArgs forwardArgs(Problem problem) {
      return new ForwardArgs()
          .q(of(problem, "q"))
          .k(of(problem, "k"))
          .v(of(problem, "v"))
          .out(of(problem, "out"))
          .lse(of(problem, "lse"));
    }

    BackwardArgs backwardArgs(Problem problem) {
      return new BackwardArgs()
          .dout(of(problem, "dout"))
          .q(of(problem, "q"))
          .k(of(problem, "k"))
          .v(of(problem, "v"))
          .out(of(problem, "out"))
          .lse(of(problem, "lse"))
          .dq(of(problem, "dq"))
          .dk(of(problem, "dk"))
          .dv(of(problem, "dv"))
          .accumulate(number("accumulate", 0) != 0);
    }
  }
}
