# libringspan (shared and static), the command ringspan, and what an installed tree needs to be found.
include(CMakePackageConfigHelpers)
set(libringspan_private PkgConfig::PCRE2 PkgConfig::JANSSON PkgConfig::HWLOC PkgConfig::UCX PkgConfig::SODIUM
    PkgConfig::AVAHI Threads::Threads m)

add_library(ringspan SHARED ${libringspan_objects})
set_target_properties(ringspan PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}
  LINKER_LANGUAGE C PUBLIC_HEADER include/ringspan.h)
target_link_libraries(ringspan PRIVATE ${libringspan_private})
target_include_directories(ringspan INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
if(NOT RINGSPAN_SANITIZE)
  target_link_options(ringspan PRIVATE -Wl,--no-undefined)
endif()

# One relocatable object whose hidden symbols are made local: internal names such as str_of cannot clash with a user's.
set(whole ${CMAKE_BINARY_DIR}/ringspan_whole.o)
add_custom_command(OUTPUT ${whole} DEPENDS ${libringspan_objects} COMMAND_EXPAND_LISTS VERBATIM
  COMMAND ${CMAKE_LINKER} -r -o ${whole} ${libringspan_objects}
  COMMAND ${CMAKE_OBJCOPY} --localize-hidden ${whole})
add_library(ringspan_static STATIC ${whole})
set_target_properties(ringspan_static PROPERTIES OUTPUT_NAME ringspan LINKER_LANGUAGE C)

file(GLOB cli_sources CONFIGURE_DEPENDS cli/*.c)
if(cli_sources)
  add_executable(ringspan_cli ${cli_sources})
  set_target_properties(ringspan_cli PROPERTIES OUTPUT_NAME ringspan)
  target_link_libraries(ringspan_cli rs_serve)
  install(TARGETS ringspan_cli)
endif()

install(TARGETS ringspan EXPORT ringspanTargets)
install(TARGETS ringspan_static)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY profiles DESTINATION ${CMAKE_INSTALL_DATADIR}/ringspan)
if(EXISTS ${CMAKE_SOURCE_DIR}/man/ringspan.1)
  install(FILES man/ringspan.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
endif()
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/ringspan)
install(EXPORT ringspanTargets NAMESPACE ringspan:: FILE ringspanConfig.cmake DESTINATION ${package_dir})
write_basic_package_version_file(ringspanConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/ringspanConfigVersion.cmake DESTINATION ${package_dir})
file(RELATIVE_PATH pc_prefix /x/${CMAKE_INSTALL_LIBDIR}/pkgconfig /x)
string(REGEX REPLACE "/$" "" pc_prefix ${pc_prefix})
configure_file(cmake/ringspan.pc.in ringspan.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/ringspan.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
