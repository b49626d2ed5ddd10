# How math/ is compiled: kernel files by the instruction set in their name, the rest for any CPU of the architecture.
# RINGSPAN_SETS: "all" kernel sets of the architecture, those that this machine can run ("native"), or none but ref and
# portable ("portable"). The vectorised sets take a minute each to compile with a sanitizer.
set(RINGSPAN_SETS all CACHE STRING "Kernel sets to build: all, native or portable")
set(avx2_flags -mavx2 -mfma -mf16c)
set(avx_vnni_flags ${avx2_flags} -mavxvnni)
set(avx512_flags ${avx2_flags} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni)
set(x86_sets avx2 avx_vnni avx512)
set(definitions)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$" AND NOT RINGSPAN_SETS STREQUAL portable)
  foreach(set ${x86_sets})
    string(REPLACE avx512 avx512_vnni cpu_flag ${set})   # As /proc/cpuinfo names what the set needs.
    file(STRINGS /proc/cpuinfo native REGEX "^flags.* ${cpu_flag}( |$)" LIMIT_COUNT 1)
    if(RINGSPAN_SETS STREQUAL all OR native)
      string(TOUPPER RS_SET_${set} definition)
      list(APPEND definitions ${definition})
      set_source_files_properties(math/kernels_${set}.c PROPERTIES COMPILE_OPTIONS "${${set}_flags}")
      list(REMOVE_ITEM x86_sets ${set})
    endif()
  endforeach()
endif()
foreach(set ${x86_sets})
  set_source_files_properties(math/kernels_${set}.c PROPERTIES HEADER_FILE_ONLY ON)   # Not compiled.
endforeach()
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  list(APPEND definitions RS_SET_NEON)
  set_source_files_properties(math/kernels_neon_dot.c PROPERTIES COMPILE_OPTIONS -march=armv8.2-a+dotprod)
  set_source_files_properties(math/kernels_neon_i8mm.c PROPERTIES COMPILE_OPTIONS -march=armv8.2-a+dotprod+i8mm)
else()
  file(GLOB neon CONFIGURE_DEPENDS math/kernels_neon*.c)
  set_source_files_properties(${neon} PROPERTIES HEADER_FILE_ONLY ON)
endif()
set_source_files_properties(math/kernels.c PROPERTIES COMPILE_DEFINITIONS "${definitions}")
# Vectors wider than the CPU's are passed to inlined functions only.
set_source_files_properties(math/kernels_portable.c PROPERTIES COMPILE_OPTIONS -Wno-psabi)
# These expand bit-exactly: no multiply and add may be fused (aarch64 would by default).
set_source_files_properties(math/format.c math/format_k.c PROPERTIES COMPILE_OPTIONS -ffp-contract=off)
get_target_property(kind rs_math TYPE)
if(kind STREQUAL STATIC_LIBRARY AND NOT RINGSPAN_COVERAGE)
  target_compile_options(rs_math PRIVATE -O3)   # Also under the sanitizers, where the tests would crawl without.
  if(CMAKE_C_COMPILER_ID STREQUAL GNU)
    # A third of the time goes into where variables lie, which debuggers of such code rarely get right anyway.
    target_compile_options(rs_math PRIVATE -fno-var-tracking)
  endif()
endif()
