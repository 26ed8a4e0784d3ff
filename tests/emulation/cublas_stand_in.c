/* A cuBLAS with all functions that are asked for, or with PARTIAL without the last of them, none of which does anything. */
#define FUNCTION(name) \
  int name(void);      \
  int name(void) { return 0; }
FUNCTION(cublasGetStatusName)
FUNCTION(cublasCreate_v2)
FUNCTION(cublasDestroy_v2)
FUNCTION(cublasSetMathMode)
FUNCTION(cublasSetSmCountTarget)
FUNCTION(cublasSetStream_v2)
FUNCTION(cublasSetWorkspace_v2)
#ifndef PARTIAL
FUNCTION(cublasGemmEx_64)
#endif
