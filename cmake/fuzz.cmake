# Fuzzers: tests/fuzz/fuzz_<name>.c with seeds in tests/fuzz/corpus/<name>/. What a run finds grows in
# build/fuzz/corpus/<name>/; an input that fails is left in build/fuzz/found/. FUZZ_SECONDS sets the time (20 s).
add_custom_target(checks)
file(GLOB fuzzers CONFIGURE_DEPENDS tests/fuzz/fuzz_*.c)
file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/found)
foreach(source ${fuzzers})
  get_filename_component(program ${source} NAME_WE)
  string(REPLACE fuzz_ "" name ${program})
  set(grown ${CMAKE_BINARY_DIR}/corpus/${name})
  set(seeds ${CMAKE_SOURCE_DIR}/tests/fuzz/corpus/${name})
  if(NOT EXISTS ${seeds})
    set(seeds)
  endif()
  file(MAKE_DIRECTORY ${grown})
  add_executable(${program} ${source})
  target_link_libraries(${program} rs_serve -fsanitize=fuzzer)
  add_dependencies(checks ${program})
  add_test(NAME ${program} COMMAND sh -c
    "exec ./${program} -seed=1 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -verbosity=0 \
-max_total_time=\${FUZZ_SECONDS:-20} -artifact_prefix=found/ ${grown} ${seeds}"
    WORKING_DIRECTORY ${CMAKE_BINARY_DIR})
  set_tests_properties(${program} PROPERTIES LABELS fuzz TIMEOUT 1000000 ENVIRONMENT UBSAN_OPTIONS=print_stacktrace=1)
endforeach()
