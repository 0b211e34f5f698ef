# emulate(target): compiles it with AVX-512, AVX512_BF16 and AMX emulated by the functions in tests/emulation, for tests on
# machines with AVX2. At -O1, since a higher level takes the compiler minutes.
option(TORCHCONV_EMULATE "Emulate AVX-512, AVX512_BF16 and AMX with AVX2" OFF)
option(TORCHCONV_EMULATE_AMX "The same, without the kernels for other instruction sets" OFF)

set(emulation ${CMAKE_CURRENT_LIST_DIR}/../tests/emulation/avx512.h)
function(emulate target)
  if(TORCHCONV_EMULATE_AMX)
    get_target_property(sources ${target} SOURCES)
    list(FILTER sources EXCLUDE REGEX "/targets/avx")
    set_target_properties(${target} PROPERTIES SOURCES "${sources}")
    target_compile_definitions(${target} PRIVATE TORCHCONV_AMX_ONLY)
  endif()
  if(TORCHCONV_EMULATE OR TORCHCONV_EMULATE_AMX)
    target_compile_definitions(${target} PRIVATE TORCHCONV_EMULATION="${emulation}")
    target_compile_options(${target} PRIVATE -O1 -Wno-psabi -Wno-ignored-attributes)
  endif()
endfunction()
