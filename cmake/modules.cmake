# One static library per folder of src/, linking exactly the modules it may include (tools/layers.txt).
include(GoogleTest)

# add_module(NAME [DEPENDS module...] [LIBRARIES target...])
# Compiles NAME/*.cpp; NAME/*_test.cpp become the test program test_NAME.
function(add_module name)
  cmake_parse_arguments(ARG "" "" "DEPENDS;LIBRARIES;SOURCES" ${ARGN})
  string(REPLACE "/" "_" target ${name})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${name}/*.cpp)
  file(GLOB tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${name}/*_test.cpp)
  if(tests)
    list(REMOVE_ITEM sources ${tests})
  endif()
  list(APPEND sources ${ARG_SOURCES})
  set(dependencies)
  foreach(module ${ARG_DEPENDS})
    string(REPLACE "/" "_" module ${module})
    list(APPEND dependencies nibble_${module})
  endforeach()
  if(NOT sources)
    add_library(nibble_${target} INTERFACE)
    target_link_libraries(nibble_${target} INTERFACE ${dependencies})
    return()
  endif()
  add_library(nibble_${target} STATIC ${sources})
  set_property(GLOBAL APPEND PROPERTY NIBBLE_MODULES nibble_${target})
  target_include_directories(nibble_${target} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
                                                     $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src>)
  target_link_libraries(nibble_${target} PUBLIC ${dependencies} PRIVATE $<BUILD_INTERFACE:nibble_options>
                                         PUBLIC $<BUILD_INTERFACE:nibble_third_party> PRIVATE ${ARG_LIBRARIES})
  if(NIBBLE_BUILD_TESTS AND tests)
    add_unit_test(${target} nibble_${target} ${tests})
  endif()
endfunction()

# Header-only libraries that any module may use privately in its sources.
add_library(nibble_third_party INTERFACE)
target_link_libraries(nibble_third_party INTERFACE nlohmann_json::nlohmann_json Threads::Threads)
# {fmt} itself is compiled in src/base/fmt_library.cpp: its headers alone cost three seconds a file.
target_include_directories(nibble_third_party SYSTEM INTERFACE $<TARGET_PROPERTY:fmt::fmt-header-only,INTERFACE_INCLUDE_DIRECTORIES>)

# add_unit_test(NAME LIBRARY SOURCES...): a GoogleTest program whose cases ctest lists one by one.
function(add_unit_test name library)
  add_executable(test_${name} ${ARGN})
  target_link_libraries(test_${name} PRIVATE ${library} nibble_options nibble_third_party GTest::gtest GTest::gtest_main)
  target_compile_definitions(test_${name} PRIVATE NIBBLE_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/data"
                                                  NIBBLE_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  gtest_discover_tests(test_${name} TEST_PREFIX ${name}. DISCOVERY_TIMEOUT 60 PROPERTIES LABELS unit)
endfunction()
