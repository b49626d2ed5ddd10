# kernel_check and what it needs, for a processor that the libraries of the other layers are not installed for. A test
# for each set, since an emulator is slow and they run side by side. Target `checks` builds the program.
add_library(rs_base STATIC base/clock.c base/status.c)   # All that math/ and kernel_check take from base/.
layer(math rs_base m)
include(cmake/kernels.cmake)

file(GLOB sources CONFIGURE_DEPENDS tests/kernel_*.c)
add_executable(kernel_check ${sources})
target_link_libraries(kernel_check rs_math)
target_compile_options(kernel_check PRIVATE -fno-tree-vectorize)   # gcc 12 for aarch64 crashes on loops with fmax.
add_custom_target(checks DEPENDS kernel_check)

enable_testing()
function(check_set set qemu_cpu)
  add_test(NAME kernel_check_${set} COMMAND kernel_check --quick ${set})
  set_tests_properties(kernel_check_${set} PROPERTIES TIMEOUT 1200 ENVIRONMENT QEMU_CPU=${qemu_cpu})
endfunction()
check_set(portable cortex-a57)
check_set(neon cortex-a57)
check_set(neon_dot neoverse-n1)
check_set(neon_i8mm max)
