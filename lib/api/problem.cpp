#include <cstdio>

#include "api/barrier.h"
#include "api/context.h"
#include "api/structs.h"
#include "api/validate.h"
#include "engine/dropout.h"

using namespace ringattn;
using namespace ringattn::api;

extern "C" {

void ra_init_attention_desc(ra_attention_desc *desc, size_t struct_size) { init(desc, struct_size); }

ra_status ra_check_support(const ra_context *context, const ra_attention_desc *desc, ra_error *error) {
  return guard(error, [&] {
    const ra_context &c = checked(context);
    const ra_attention_desc d = read(desc, "desc");
    const Problem p = to_problem(d);
    require_supported(d, p, c.engine);
    if (error != nullptr) std::snprintf(error->message, sizeof error->message, "%s", c.engine.choice(p).c_str());
  });
}

ra_status ra_get_dropout_mask(const ra_attention_desc *desc, int64_t entry, int64_t head, int64_t query,
                              int64_t first_key, int64_t count, uint8_t *mask, ra_error *error) {
  return guard(error, [&] {
    const Problem p = to_problem(read(desc, "desc"));
    const auto require_below = [](const char *name, std::int64_t value, const char *field, std::int64_t end) {
      require(0 <= value && value < end, name, " is ", value, "; must be 0 .. ", end - 1, ", below ", field, " = ",
              end);
    };
    require_below("entry", entry, "batch", p.batch);
    require_below("head", head, "num_heads_q", p.num_heads_q);
    require_below("query", query, "seqlen_q", p.seqlen_q);
    require(0 <= first_key && first_key <= p.seqlen_kv, "first_key is ", first_key,
            "; must be 0 .. seqlen_kv = ", p.seqlen_kv);
    require(0 <= count && count <= p.seqlen_kv - first_key, "count is ", count, "; must be 0 .. ",
            p.seqlen_kv - first_key, ", what seqlen_kv = ", p.seqlen_kv, " leaves from first_key on");
    Ranges ranges;
    ranges.output("mask", mask, {}, count, 1, false);
    const PhiloxKey row = dropout_row_key(p.dropout.seed, query, entry, head);
    const std::uint32_t threshold = dropout_threshold(p.dropout.probability);
    for (std::int64_t n = 0; n < count; ++n)
      mask[n] = dropout_keeps(row, p.dropout.offset, first_key + n, threshold) ? 1 : 0;
  });
}

}  // extern "C"
