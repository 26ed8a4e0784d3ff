/* A driver or an NCCL, as far as it is asked which version it is: DRIVER is one, with no device; NCCL is one without other functions. */
#ifdef DRIVER
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
#else
int ncclGetVersion(int *version);
int ncclGetVersion(int *version) {
  *version = NCCL;
  return 0;
}
#endif
