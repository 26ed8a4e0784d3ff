# ringattn_options: how all code of this repository is compiled. Linked PRIVATE by every target, never installed.
add_library(ringattn_options INTERFACE)
set(warnings -Wall -Wextra -Wconversion)  # the presets make them errors
target_compile_options(ringattn_options INTERFACE "$<$<COMPILE_LANGUAGE:C,CXX>:${warnings};-Wpedantic>")
if(RINGATTN_CUDA)
  # For the host's compiler, which nvcc hands code that -Wpedantic finds fault with, and does not tell which warnings are errors.
  target_compile_options(ringattn_options INTERFACE
    "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=$<JOIN:${warnings}$<$<BOOL:${CMAKE_COMPILE_WARNING_AS_ERROR}>:;-Werror>,$<COMMA>>>")
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC bug 105651: "..." + std::string is said to overlap itself.
  target_compile_options(ringattn_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>)
endif()

if(RINGATTN_SANITIZER STREQUAL "address")
  set(sanitizer_flags -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_compile_definitions(_GLIBCXX_ASSERTIONS)
elseif(RINGATTN_SANITIZER STREQUAL "thread")
  set(sanitizer_flags -fsanitize=thread -fno-omit-frame-pointer)
  target_compile_definitions(ringattn_options INTERFACE RINGATTN_THREAD_SANITIZER)
elseif(RINGATTN_SANITIZER)
  message(FATAL_ERROR "RINGATTN_SANITIZER is ${RINGATTN_SANITIZER}; must be address, thread or empty")
endif()
if(RINGATTN_SANITIZER)
  # Everything in this build, GoogleTest programs included, so that no allocation or lock goes unseen.
  add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:${sanitizer_flags}>")
  add_compile_definitions(RINGATTN_SANITIZED)
  add_link_options(${sanitizer_flags})
endif()
if(RINGATTN_FUZZ)
  # libFuzzer's library, which Clang brings; GCC reports coverage to it (tests/fuzz/coverage.cpp).
  file(GLOB clang_libraries /usr/lib/llvm-*/lib/clang/*/lib/linux /usr/lib/clang/*/lib/linux)
  find_library(RINGATTN_LIBFUZZER clang_rt.fuzzer-${CMAKE_SYSTEM_PROCESSOR} PATHS ${clang_libraries} REQUIRED)
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-fsanitize-coverage=trace-pc,trace-cmp>")
endif()
