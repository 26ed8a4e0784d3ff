# The headers of oneDNN. The library is loaded when it is first asked for, and need not be here.
find_path(RINGATTN_ONEDNN_INCLUDE_DIR oneapi/dnnl/dnnl.h DOC "Folder of oneapi/dnnl/dnnl.h")
if(NOT RINGATTN_ONEDNN_INCLUDE_DIR)
  message(FATAL_ERROR "Layers of multi-head attention need oneapi/dnnl/dnnl.h of oneDNN 2 (Debian: libdnnl-dev), which ./dev setup build installs; "
    "-DRINGATTN_ONEDNN=OFF builds without them.")
endif()
