# How math/ is compiled: kernel files by the instruction set in their name, the rest for any CPU of the architecture.
file(GLOB avx2 CONFIGURE_DEPENDS math/*avx2*.c)
file(GLOB avx512 CONFIGURE_DEPENDS math/*avx512*.c)
file(GLOB avx512_vnni CONFIGURE_DEPENDS math/*avx512_vnni*.c)
file(GLOB neon CONFIGURE_DEPENDS math/*neon*.c)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(avx2_flags -mavx2 -mfma -mf16c)
  set_source_files_properties(${avx2} PROPERTIES COMPILE_OPTIONS "${avx2_flags}")
  set(avx512_flags ${avx2_flags} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
  set_source_files_properties(${avx512} PROPERTIES COMPILE_OPTIONS "${avx512_flags}")
  set_source_files_properties(${avx512_vnni} PROPERTIES COMPILE_OPTIONS "${avx512_flags};-mavx512vnni")
else()
  set_source_files_properties(${avx2} ${avx512} PROPERTIES HEADER_FILE_ONLY ON)   # Not compiled elsewhere.
endif()
if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set_source_files_properties(${neon} PROPERTIES HEADER_FILE_ONLY ON)
endif()
# Vectors wider than the CPU's are passed to inlined functions only.
set_source_files_properties(math/kernels_portable.c PROPERTIES COMPILE_OPTIONS -Wno-psabi)
# These expand bit-exactly: no multiply and add may be fused (aarch64 would by default).
set_source_files_properties(math/format.c math/format_k.c PROPERTIES COMPILE_OPTIONS -ffp-contract=off)
get_target_property(kind rs_math TYPE)
if(kind STREQUAL STATIC_LIBRARY AND NOT RINGSPAN_COVERAGE)
  target_compile_options(rs_math PRIVATE -O3)   # Also under the sanitizers, where the tests would crawl without.
endif()
