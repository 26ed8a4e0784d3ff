/* A driver, an NCCL or a cuDNN, as far as it is asked which version it is. DRIVER is one, with no device; with COMPILED it takes kernels
   as they are compiled, which is all that cuDNN needs of a driver to make plans. NCCL, CUDNN and CUBLAS are libraries without other functions. */
#if defined(DRIVER)
int cuDriverGetVersion(int *version);
int cuInit(unsigned flags);
int cuDriverGetVersion(int *version) {
  *version = DRIVER;
  return 0;
}
int cuInit(unsigned flags) {
  (void)flags;
  return 100; /* CUDA_ERROR_NO_DEVICE */
}
#ifdef COMPILED
static int handle;
#define GIVES_HANDLE(function) \
  int function(void **to);     \
  int function(void **to) {    \
    *to = &handle;             \
    return 0;                  \
  }
#define SUCCEEDS(function) \
  int function(void);      \
  int function(void) { return 0; }
#define FAILS(function) \
  int function(void);   \
  int function(void) { return 100; }
GIVES_HANDLE(cuLibraryLoadData)
GIVES_HANDLE(cuLibraryGetKernel)
SUCCEEDS(cuLibraryUnload)
SUCCEEDS(cuKernelGetAttribute)
SUCCEEDS(cuKernelSetAttribute)
FAILS(cuCtxGetCurrent)
FAILS(cuCtxGetLimit)
FAILS(cuCtxPopCurrent)
FAILS(cuCtxPushCurrent)
FAILS(cuDeviceGet)
FAILS(cuDeviceGetCount)
FAILS(cuGetErrorName)
FAILS(cuGetErrorString)
FAILS(cuLaunchCooperativeKernel)
FAILS(cuLaunchKernel)
FAILS(cuLaunchKernelEx)
FAILS(cuLibraryLoadFromFile)
FAILS(cuLinkAddData)
FAILS(cuLinkComplete)
FAILS(cuLinkCreate)
FAILS(cuLinkDestroy)
FAILS(cuOccupancyMaxPotentialClusterSize)
FAILS(cuStreamGetCtx)
#endif
#elif defined(CUDNN)
unsigned long cudnnGetVersion(void);
unsigned long cudnnGetVersion(void) { return CUDNN; }
#elif defined(CUBLAS)
unsigned long cublasLtGetVersion(void);
unsigned long cublasLtGetVersion(void) { return CUBLAS; }
#else
int ncclGetVersion(int *version);
int ncclGetVersion(int *version) {
  *version = NCCL;
  return 0;
}
#endif
