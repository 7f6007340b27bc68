# libsparsegnn_cuda.so, and for every csrc/cuda/<op>.cu its PTX (target `cuda_ptx`, which tests/ptx runs) and what ptxas
# says of its kernels (target `cuda_checks`, read by tests/test_cuda_build.py).
# Needs nvcc alone: no GPU, and torch's CPU build will do.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES "80-real;90" CACHE STRING "SASS for sm_80 and sm_90, PTX for what comes later" FORCE)
endif()
foreach(architecture ${CMAKE_CUDA_ARCHITECTURES})
  string(REGEX MATCH "^[0-9]+" number "${architecture}")
  if(number AND number LESS 80)
    message(FATAL_ERROR "sparsegnn: the CUDA kernels need compute capability 8.0 (A100) or newer, got ${architecture}: "
            "set TORCH_CUDA_ARCH_LIST=8.0, or SPARSEGNN_CUDA=off to build without them")
  endif()
endforeach()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(SPARSEGNN_CUDA STREQUAL "on")
    message(FATAL_ERROR "SPARSEGNN_CUDA=on, but nvcc was not found or does not work")
  endif()
  add_custom_target(cuda_checks)
  add_custom_target(sparsegnn_ptx)
  add_custom_target(sparsegnn_cuda)
  return()
endif()
set(CMAKE_CUDA_STANDARD 17)  # CMake 3.25 knows no CUDA20
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")
enable_language(CUDA)

file(GLOB cuda_entries CONFIGURE_DEPENDS csrc/cuda/*.cu)
add_library(sparsegnn_cuda MODULE ${cuda_entries} csrc/common/interface.cpp)
set_target_properties(sparsegnn_cuda PROPERTIES LIBRARY_OUTPUT_DIRECTORY "${SPARSEGNN_OUTPUT}")
target_compile_definitions(sparsegnn_cuda PRIVATE USE_CUDA)
if(NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  target_compile_options(sparsegnn_cuda PRIVATE -Xcompiler=-fmacro-prefix-map=${CMAKE_CURRENT_SOURCE_DIR}/=)
endif()
# The current stream lives in libtorch_cuda.so, which a CPU-only torch lacks and libtorch.so brings along elsewhere:
# the library must ask for libtorch.so even though nothing in it is used at link time.
target_link_libraries(sparsegnn_cuda PRIVATE torch_stable -Wl,--no-as-needed torch torch_cpu)

# The PTX and the cubin of every op for sm_90, from the very files of the library.
set(ptx_files)
set(ptxas_logs)
foreach(entry ${cuda_entries})
  get_filename_component(op ${entry} NAME_WE)
  set(stem "${CMAKE_BINARY_DIR}/ptxas/${op}")
  add_custom_command(
    OUTPUT ${stem}.ptx
    COMMAND ${CMAKE_COMMAND} -E make_directory "${CMAKE_BINARY_DIR}/ptxas"
    COMMAND ${CMAKE_CUDA_COMPILER} -std=c++17 -O3 -arch=sm_90 -ptx -DNDEBUG -DUSE_CUDA -DTORCH_STABLE_ONLY
            -DTORCH_TARGET_VERSION=0x020a000000000000 -isystem "${SPARSEGNN_TORCH}/include" ${entry} -MD -MF ${stem}.d
            -MT ${stem}.ptx -o ${stem}.ptx
    DEPENDS ${entry} DEPFILE ${stem}.d
    COMMENT "Making the PTX of ${op}" VERBATIM)
  add_custom_command(
    OUTPUT ${stem}.txt
    COMMAND sh -c "\"$0\" \"$@\" > '${stem}.tmp' 2>&1 || { cat '${stem}.tmp'; exit 1; }" ${CMAKE_CUDA_COMPILER}
            -arch=sm_90 -cubin -Xptxas -v ${stem}.ptx -o ${stem}.cubin
    COMMAND ${CMAKE_COMMAND} -E rename ${stem}.tmp ${stem}.txt
    DEPENDS ${stem}.ptx
    COMMENT "Asking ptxas about ${op}" VERBATIM)
  list(APPEND ptx_files ${stem}.ptx)
  list(APPEND ptxas_logs ${stem}.txt)
endforeach()
add_custom_target(cuda_ptx DEPENDS ${ptx_files})
add_custom_target(cuda_checks DEPENDS ${ptxas_logs})
