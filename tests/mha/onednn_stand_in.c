// A oneDNN of version VERSION.1.0, as far as it is looked at when it is loaded: it has no other functions.
#include <oneapi/dnnl/dnnl_types.h>

const dnnl_version_t *dnnl_version(void);
const dnnl_version_t *dnnl_version(void) {
  static const dnnl_version_t version = {.major = VERSION, .minor = 1};
  return &version;
}
