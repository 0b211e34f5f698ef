# sanitize(target): compiles the sanitizers in TORCHCONV_SANITIZE into it. At -O1, since a higher level takes the compiler
# tens of minutes for the unrolled loops. For the same reason AddressSanitizer calls a function for each access, and UBSan
# does without its checks of pointers: null, alignment, object size, type.
set(TORCHCONV_SANITIZE "" CACHE STRING "Sanitizers to compile in, e.g. address,undefined or thread")

function(sanitize target)
  if(NOT TORCHCONV_SANITIZE)
    return()
  endif()
  set(options -fsanitize=${TORCHCONV_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -O1)
  if(TORCHCONV_SANITIZE MATCHES undefined)
    list(APPEND options -fno-sanitize=null,alignment,object-size,vptr,nonnull-attribute,returns-nonnull-attribute)
  endif()
  if(TORCHCONV_SANITIZE MATCHES address AND CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    list(APPEND options --param=asan-instrumentation-with-call-threshold=0)
  endif()
  target_compile_options(${target} PRIVATE ${options})
  target_link_options(${target} PRIVATE -fsanitize=${TORCHCONV_SANITIZE})
endfunction()
