# Test programs (cmocka), their helpers, pytest files and tidy, all as CTest tests. Target `checks` builds the programs.
#   tests/test_*.c        cmocka programs, labels unit and sanitizer
#   tests/kernel_*.c      kernel_check: compares and times every kernel set, labels unit and sanitizer
#   tests/*_tool.c        helper programs for pytest files, found in $RINGSPAN_BUILD
#   tests/lab/netdelay.c  the switch of the lab, found there too
#   tests/test_*.py       pytest files, label python
add_custom_target(checks)
pkg_check_modules(CMOCKA IMPORTED_TARGET cmocka)

function(check_program name sources)
  add_executable(${name} EXCLUDE_FROM_ALL ${sources})
  target_link_libraries(${name} rs_serve ${ARGN})
  add_dependencies(checks ${name})
endfunction()

set(environment
  RINGSPAN_LIB=$<TARGET_FILE:ringspan>
  RINGSPAN_BIN=${CMAKE_BINARY_DIR}/ringspan
  RINGSPAN_BUILD=${CMAKE_BINARY_DIR}
  RINGSPAN_MODELS=${CMAKE_SOURCE_DIR}/models
  PYTHONDONTWRITEBYTECODE=1
  UBSAN_OPTIONS=print_stacktrace=1)
if(RINGSPAN_SANITIZE STREQUAL thread)
  list(APPEND environment UCX_MEM_EVENTS=no)   # Its hooks of madvise run in threads that the sanitizer has forgotten.
endif()
# The timeouts guard against hangs alone: a loaded machine is no failure.
function(check_test name timeout_s labels)
  add_test(NAME ${name} COMMAND ${ARGN} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${timeout_s} LABELS "${labels}" ENVIRONMENT "${environment}")
endfunction()

file(GLOB tools CONFIGURE_DEPENDS tests/*_tool.c)
foreach(source ${tools})
  get_filename_component(name ${source} NAME_WE)
  check_program(${name} ${source})
endforeach()

if(CMAKE_SYSTEM_NAME STREQUAL Linux)
  check_program(netdelay tests/lab/netdelay.c)
endif()

file(GLOB programs CONFIGURE_DEPENDS tests/test_*.c)
if(CMOCKA_FOUND)
  foreach(source ${programs})
    get_filename_component(name ${source} NAME_WE)
    check_program(${name} ${source} PkgConfig::CMOCKA)
    check_test(${name} 1200 "unit;sanitizer" ${name})
  endforeach()
else()
  message(STATUS "cmocka is not installed: the C tests are left out (make setup installs it)")
endif()

file(GLOB kernel_check CONFIGURE_DEPENDS tests/kernel_*.c)
if(kernel_check)
  check_program(kernel_check "${kernel_check}")
  check_test(kernel_check 1200 "unit;sanitizer" kernel_check)
endif()

check_test(tidy 60 unit python3 ${CMAKE_SOURCE_DIR}/tools/tidy.py)

file(GLOB pytests CONFIGURE_DEPENDS tests/test_*.py)
if(EXISTS ${RINGSPAN_PYTHON})
  foreach(source ${pytests})
    get_filename_component(name ${source} NAME_WE)
    check_test(py_${name} 1200 python ${RINGSPAN_PYTHON} -m pytest -q -rs -p no:cacheprovider ${source})
  endforeach()
else()
  message(STATUS "${RINGSPAN_PYTHON} is missing: the Python tests are left out (make setup makes it)")
endif()
