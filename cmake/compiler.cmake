# Warnings, sanitizers and floating-point rules that every target shares.
add_library(nibble_options INTERFACE)
target_compile_options(nibble_options INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-ffp-contract=off;-fno-math-errno>")
if(NIBBLE_WERROR)
  target_compile_options(nibble_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(NIBBLE_SANITIZE)
  target_compile_options(nibble_options INTERFACE -fsanitize=${NIBBLE_SANITIZE} -fno-omit-frame-pointer
                                                  -fno-sanitize-recover=all)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_definitions(nibble_options INTERFACE _GLIBCXX_ASSERTIONS)  # [] behind the end, front() of nothing
    # Instrumented standard-library code looks uninitialized to GCC 12.
    target_compile_options(nibble_options INTERFACE -Wno-maybe-uninitialized -Wno-uninitialized)
  endif()
  target_link_options(nibble_options INTERFACE -fsanitize=${NIBBLE_SANITIZE})
endif()
if(CMAKE_BUILD_TYPE STREQUAL "Release")
  string(REPLACE "-O3" "-O2" CMAKE_CXX_FLAGS_RELEASE "${CMAKE_CXX_FLAGS_RELEASE}")
endif()
if(NOT NIBBLE_SANITIZE)
  # One binary that runs on any Linux with this glibc or newer.
  target_link_options(nibble_options INTERFACE -static-libstdc++ -static-libgcc)
endif()
find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()
