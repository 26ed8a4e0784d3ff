# The headers of ZeroMQ and libsodium. The libraries are loaded when they are first asked for, and need not be here.
find_path(RINGATTN_ZEROMQ_INCLUDE_DIR zmq.h DOC "Folder of zmq.h")
find_path(RINGATTN_SODIUM_INCLUDE_DIR sodium.h DOC "Folder of sodium.h")
if(NOT RINGATTN_ZEROMQ_INCLUDE_DIR OR NOT RINGATTN_SODIUM_INCLUDE_DIR)
  message(FATAL_ERROR "The transport between processes needs zmq.h (Debian: libzmq3-dev) and sodium.h (libsodium-dev), which ./dev setup build installs; "
    "-DRINGATTN_ZEROMQ=OFF builds without it. Found:"
    "\n  RINGATTN_ZEROMQ_INCLUDE_DIR = ${RINGATTN_ZEROMQ_INCLUDE_DIR}\n  RINGATTN_SODIUM_INCLUDE_DIR = ${RINGATTN_SODIUM_INCLUDE_DIR}")
endif()
