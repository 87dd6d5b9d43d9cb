# GPU kernels: whether they are compiled, and for which architectures. The runtime is static, so the program also starts
# where there is no driver.
set(NIBBLE_CUDA AUTO CACHE STRING "GPU kernels: AUTO (when nvcc is found), ON or OFF")
set_property(CACHE NIBBLE_CUDA PROPERTY STRINGS AUTO ON OFF)
# One architecture keeps the build short: the kernels tuned for sm_90a, and portable code that the driver compiles for
# every other GPU. A release: "75;80;86;89;90a;90-virtual" (the preset `cuda-release`).
set(NIBBLE_CUDA_ARCHITECTURES "75-virtual;90a" CACHE STRING "As CMAKE_CUDA_ARCHITECTURES: 90a, 75-virtual, ...")

set(NIBBLE_HAS_CUDA OFF)
if(NIBBLE_CUDA STREQUAL "OFF")
  return()
endif()
include(CheckLanguage)
set(CMAKE_CUDA_ARCHITECTURES OFF)  # spelled out below: this CMake does not know 90a
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(NIBBLE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "NIBBLE_CUDA=ON: nvcc was not found")
  endif()
  message(STATUS "CUDA: nvcc was not found; building without GPU kernels")
  return()
endif()
enable_language(CUDA)
find_package(CUDAToolkit 12.4 REQUIRED)
set(NIBBLE_HAS_CUDA ON)
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")  # which CMake 3.25 does not know of nvcc
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
if(CCACHE_PROGRAM)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

add_library(nibble_cuda_options INTERFACE)
# Products and sums round one by one, as in the reference; fmaf() where a kernel wants the fused operation.
set(cuda_flags -fmad=false -lineinfo --expt-relaxed-constexpr -Xcompiler=-Wall,-Wextra,-ffp-contract=off
    -Xcompiler=-Wno-stringop-overflow)  # false alarms of GCC 13 about copies of structs
foreach(architecture ${NIBBLE_CUDA_ARCHITECTURES})
  if(architecture MATCHES "^([0-9]+a?)-virtual$")
    list(APPEND cuda_flags "SHELL:-gencode arch=compute_${CMAKE_MATCH_1},code=compute_${CMAKE_MATCH_1}")
  elseif(architecture MATCHES "^([0-9]+a?)$")
    list(APPEND cuda_flags "SHELL:-gencode arch=compute_${CMAKE_MATCH_1},code=sm_${CMAKE_MATCH_1}")
  else()
    message(FATAL_ERROR "NIBBLE_CUDA_ARCHITECTURES: found '${architecture}', expected numbers such as 90a or 75-virtual")
  endif()
endforeach()
# Kernels that start before the one before them has ended need code that waits for it, which only sm_90 has.
if(NIBBLE_CUDA_ARCHITECTURES MATCHES "(^|;)90a(;|$)")
  target_compile_definitions(nibble_cuda_options INTERFACE NIBBLE_HAS_SM90)
endif()
target_compile_options(nibble_cuda_options INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:${cuda_flags}>")
if(NIBBLE_WERROR)
  target_compile_options(nibble_cuda_options INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
endif()
message(STATUS "CUDA: nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${NIBBLE_CUDA_ARCHITECTURES}")
