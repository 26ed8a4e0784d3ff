// In the place of the ZeroMQ transport where the library is built without it.
#include "core/error.h"
#include "transport/zeromq.h"

namespace ringattn {

std::string missing_zeromq() { return "this build was made without ZeroMQ (RINGATTN_ZEROMQ=OFF)"; }

std::string make_zeromq_id(const char*) { fail(RA_STATUS_NOT_SUPPORTED, missing_zeromq()); }

std::unique_ptr<Transport> join_zeromq(const ZeromqGroup&, std::int64_t, std::function<void()>) {
  fail(RA_STATUS_NOT_SUPPORTED, missing_zeromq());
}

std::unique_ptr<ControlPlane> open_control_plane(const ZeromqGroup&, std::int64_t, std::function<void()>) {
  fail(RA_STATUS_NOT_SUPPORTED, missing_zeromq());
}

void refuse_zeromq(const ZeromqGroup&, ra_status, const char*) noexcept {}

}  // namespace ringattn
