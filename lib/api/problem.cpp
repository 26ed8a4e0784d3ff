#include <cstdio>

#include "api/barrier.h"
#include "api/context.h"
#include "api/structs.h"
#include "api/validate.h"

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

}  // extern "C"
