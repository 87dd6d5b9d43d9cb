# `cmake --install build/release --prefix P` puts the program, the headers and one library where find_package(nibble) finds them.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
install(DIRECTORY include/nibble DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS nibble_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
