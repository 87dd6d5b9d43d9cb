# Third-party libraries, each behind one file of ours (ARCHITECTURE.md, section 8). Static where Debian has an archive.
find_package(Threads REQUIRED)
find_package(nlohmann_json 3.11 REQUIRED)
find_package(CLI11 2.1 REQUIRED)
find_package(fmt 9 REQUIRED)
find_package(Eigen3 3.4 REQUIRED NO_MODULE)

find_path(PCRE2_INCLUDE_DIR pcre2.h REQUIRED)
find_library(PCRE2_LIBRARY NAMES libpcre2-8.a pcre2-8 REQUIRED)
add_library(nibble_pcre2 INTERFACE)
target_include_directories(nibble_pcre2 SYSTEM INTERFACE ${PCRE2_INCLUDE_DIR})
target_link_libraries(nibble_pcre2 INTERFACE ${PCRE2_LIBRARY})

find_path(UTF8PROC_INCLUDE_DIR utf8proc.h REQUIRED)
find_library(UTF8PROC_LIBRARY NAMES libutf8proc.a utf8proc REQUIRED)
add_library(nibble_utf8proc INTERFACE)
target_include_directories(nibble_utf8proc SYSTEM INTERFACE ${UTF8PROC_INCLUDE_DIR})
target_link_libraries(nibble_utf8proc INTERFACE ${UTF8PROC_LIBRARY})
target_compile_definitions(nibble_utf8proc INTERFACE UTF8PROC_STATIC)

if(NIBBLE_BUILD_TESTS)
  find_package(GTest REQUIRED)
endif()
