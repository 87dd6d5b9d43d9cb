# `cmake --install build/release --prefix P`: the program, the headers and one archive that find_package(nibble) finds.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

get_property(modules GLOBAL PROPERTY NIBBLE_MODULES)
set(objects)
foreach(module ${modules})
  list(APPEND objects $<TARGET_OBJECTS:${module}>)
endforeach()
foreach(isa portable avx2 avx512)
  if(TARGET nibble_kernels_cpu_${isa})
    list(APPEND objects $<TARGET_OBJECTS:nibble_kernels_cpu_${isa}>)
  endif()
endforeach()
add_library(nibble STATIC ${objects})
set_target_properties(nibble PROPERTIES LINKER_LANGUAGE CXX)

install(TARGETS nibble_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS nibble ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/nibble DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
configure_package_config_file(cmake/nibbleConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/nibbleConfig.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/nibble
                              PATH_VARS CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR)
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/nibbleConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/nibbleConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/nibbleConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/nibble)
