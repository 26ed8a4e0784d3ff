// The raw layer of Java, package dev.ringattn.internal: each C function a static method of RingAttn, each struct a class of
// getters and setters over memory at an address, and its size a constant. Nothing here owns, allocates or frees.
//
//   ra_error *               no parameter; a failure is thrown as dev.ringattn.RingAttentionException
//   ra_status                void; of ra_check_support the text that says which engine, as UTF-8
//   struct *                 its class; at address 0 a NullPointerException
//   other pointers           long: an address
//   char[]                   String
//   int64_t *positions       long[] that the call fills
//   uint8_t *mask            boolean[] that the call fills
//   int32_t *former_ranks    int[] that the call reads
//   size_t struct_size       no parameter
//   size_t, int64_t          long
//   (callback, user_data)    an object with a method void log(int level, byte[] message), or null
//
// sizes.i, which bindings/generate/java.py writes, says sizeof each struct.
%include "common.i"

%{
#include <string.h>

static jbyteArray to_bytes(JNIEnv *env, const char *text) {
  const jsize length = (jsize)strlen(text);
  const jbyteArray bytes = (*env)->NewByteArray(env, length);
  if (bytes) (*env)->SetByteArrayRegion(env, bytes, 0, length, (const jbyte *)text);
  return bytes;
}

// Text is UTF-8, which is not what NewStringUTF takes: Java decodes it.
static void throw_failure(JNIEnv *env, const ra_error *error) {
  const jclass type = (*env)->FindClass(env, "dev/ringattn/RingAttentionException");
  const jmethodID make = type ? (*env)->GetMethodID(env, type, "<init>", "(IIII[B)V") : NULL;
  const jbyteArray message = make ? to_bytes(env, error->message) : NULL;
  if (!message) return;  // an exception of Java's is pending
  const jthrowable failure = (jthrowable)(*env)->NewObject(env, type, make, (jint)error->status, (jint)error->rank,
                                                           (jint)error->cuda_error, (jint)error->nccl_result, message);
  if (failure) (*env)->Throw(env, failure);
}

static JavaVM *machine;

// From whatever thread: one that Java does not know is attached for as long as this takes.
static void log_line(int32_t level, const char *message, void *sink) {
  JNIEnv *env = NULL;
  const int is_known = (*machine)->GetEnv(machine, (void **)&env, JNI_VERSION_10) == JNI_OK;
  if (!is_known && (*machine)->AttachCurrentThreadAsDaemon(machine, (void **)&env, NULL) != JNI_OK) return;
  if ((*env)->PushLocalFrame(env, 4) == 0) {
    const jmethodID log = (*env)->GetMethodID(env, (*env)->GetObjectClass(env, sink), "log", "(I[B)V");
    const jbyteArray bytes = log ? to_bytes(env, message) : NULL;
    if (bytes) (*env)->CallVoidMethod(env, sink, log, (jint)level, bytes);
    (*env)->ExceptionClear(env);  // no memory for the message; log itself throws nothing
    (*env)->PopLocalFrame(env, NULL);
  }
  if (!is_known) (*machine)->DetachCurrentThread(machine);
}
%}

%pragma(java) jniclasscode=%{
  static {
    Loader.load();
  }
%}

// ---------------------------------------------------------------- errors

%typemap(in, numinputs=0) ra_error *error (ra_error failure) "$1 = &failure;"
%typemap(argout) ra_error *error "if ($1->status != RA_STATUS_SUCCESS) throw_failure(jenv, $1);"

%typemap(jni) ra_status "void"
%typemap(jtype) ra_status "void"
%typemap(jstype) ra_status "void"
%typemap(javaout) ra_status "{
    $jnicall;
  }"
%typemap(out) ra_status "(void)$1;"

// The message of a success.
%typemap(jni) ra_status ra_check_support "jbyteArray"
%typemap(jtype) ra_status ra_check_support "byte[]"
%typemap(jstype) ra_status ra_check_support "byte[]"
%typemap(javaout) ra_status ra_check_support "{
    return $jnicall;
  }"
%typemap(out) ra_status ra_check_support "$result = $1 == RA_STATUS_SUCCESS ? to_bytes(jenv, arg3->message) : NULL;"

// ---------------------------------------------------------------- structs

%typemap(javabody) SWIGTYPE %{
  private final long swigCPtr;

  public $javaclassname(long address) {
    swigCPtr = address;
  }

  static long getCPtr($javaclassname struct) {
    return struct.swigCPtr;
  }
%}
%typemap(javadestruct, methodname="delete", methodmodifiers="public") SWIGTYPE ""
%typemap(javafinalize) SWIGTYPE ""
%typemap(javaout) SWIGTYPE * "{
    return new $javaclassname($jnicall);
  }"
%typemap(in) SWIGTYPE * "$1 = ($1_ltype)(intptr_t)$input;"
%typemap(out) SWIGTYPE * "$result = (jlong)(intptr_t)$1;"
%typemap(jtype, nopgcpp="1") SWIGTYPE * "long"
%typemap(check) SWIGTYPE * %{
  if (!$1) {
    SWIG_JavaThrowException(jenv, SWIG_JavaNullPointerException, "$*1_type at address 0");
    return $null;
  }
%}
%typemap(check) char *, ra_error * ""
%typemap(in, numinputs=0) size_t struct_size "$1 = sizeof *arg1;"
%javaconst(1) RA_VERSION_MAJOR;
%javaconst(1) RA_VERSION_MINOR;
%javaconst(1) RA_VERSION_PATCH;

// ---------------------------------------------------------------- addresses

%define %address(TYPE...)
%typemap(jni) TYPE "jlong"
%typemap(jtype) TYPE "long"
%typemap(jstype) TYPE "long"
%typemap(javain) TYPE "$javainput"
%typemap(javaout) TYPE "{
    return $jnicall;
  }"
%typemap(in) TYPE "$1 = ($1_ltype)(intptr_t)$input;"
%typemap(out) TYPE "$result = (jlong)(intptr_t)$1;"
%typemap(memberin) TYPE "$1 = $input;"
%typemap(freearg) TYPE ""
%typemap(check) TYPE ""
%enddef
%address(void *)
%address(float *, const float *)
%address(const int64_t *)
%address(ra_context *, const ra_context *)
%address(ra_kv_cache *, const ra_kv_cache *)
%address(ra_stream)
%address(const char *)
#pragma SWIG nowarn=451

%typemap(jni) int64_t *positions "jlongArray"
%typemap(jtype) int64_t *positions "long[]"
%typemap(jstype) int64_t *positions "long[]"
%typemap(javain) int64_t *positions "$javainput"
%typemap(check) int64_t *positions ""
%typemap(in) int64_t *positions %{
  $1 = (int64_t *)(*jenv)->GetLongArrayElements(jenv, $input, NULL);
  if (!$1) return $null;
%}
%typemap(freearg) int64_t *positions "(*jenv)->ReleaseLongArrayElements(jenv, $input, (jlong *)$1, 0);"

%typemap(jni) uint8_t *mask "jbooleanArray"
%typemap(jtype) uint8_t *mask "boolean[]"
%typemap(jstype) uint8_t *mask "boolean[]"
%typemap(javain) uint8_t *mask "$javainput"
%typemap(check) uint8_t *mask ""
%typemap(in) uint8_t *mask %{
  $1 = (uint8_t *)(*jenv)->GetBooleanArrayElements(jenv, $input, NULL);
  if (!$1) return $null;
%}
%typemap(freearg) uint8_t *mask "(*jenv)->ReleaseBooleanArrayElements(jenv, $input, (jboolean *)$1, 0);"

%typemap(jni) const int32_t *former_ranks "jintArray"
%typemap(jtype) const int32_t *former_ranks "int[]"
%typemap(jstype) const int32_t *former_ranks "int[]"
%typemap(javain) const int32_t *former_ranks "$javainput"
%typemap(check) const int32_t *former_ranks ""
%typemap(in) const int32_t *former_ranks %{
  $1 = (int32_t *)(*jenv)->GetIntArrayElements(jenv, $input, NULL);
  if (!$1) return $null;
%}
%typemap(freearg) const int32_t *former_ranks "(*jenv)->ReleaseIntArrayElements(jenv, $input, (jint *)$1, JNI_ABORT);"

// The address of a direct buffer's first byte, whatever its position.
%typemap(jni) const void *buffer "jobject"
%typemap(jtype) const void *buffer "java.nio.Buffer"
%typemap(jstype) const void *buffer "java.nio.Buffer"
%typemap(javain) const void *buffer "$javainput"
%typemap(in) const void *buffer "$1 = (*jenv)->GetDirectBufferAddress(jenv, $input);"
%inline %{
static void *address_of(const void *buffer) { return (void *)buffer; }
%}

// Afterwards the library has forgotten what it was given before. Calls must come one after the other.
%typemap(jni) (ra_log_callback callback, void *user_data) "jobject"
%typemap(jtype) (ra_log_callback callback, void *user_data) "Object"
%typemap(jstype) (ra_log_callback callback, void *user_data) "Object"
%typemap(javain) (ra_log_callback callback, void *user_data) "$javainput"
%typemap(check) (ra_log_callback callback, void *user_data) ""
%typemap(in) (ra_log_callback callback, void *user_data) %{
  (*jenv)->GetJavaVM(jenv, &machine);
  $1 = $input ? log_line : NULL;
  $2 = $input ? (*jenv)->NewGlobalRef(jenv, $input) : NULL;
%}
%typemap(freearg) (ra_log_callback callback, void *user_data) %{
  static jobject sink = NULL;
  if (sink) (*jenv)->DeleteGlobalRef(jenv, sink);
  sink = $2;
%}

%include "sizes.i"
%include <ringattn/ringattn.h>
