# libsparsegnn_cpu.so: entries at the baseline instruction set, each kernel file once per instruction set.
file(GLOB entries CONFIGURE_DEPENDS csrc/cpu/*.cpp)
file(GLOB kernels CONFIGURE_DEPENDS csrc/cpu/*.kernel.cpp)
list(REMOVE_ITEM entries ${kernels})

set(flags_portable "")
set(flags_avx2 -march=x86-64-v3)
set(flags_avx512 -march=x86-64-v4 -mprefer-vector-width=512)

# The best of them that this machine runs; all of them where that cannot be asked.
function(find_best_isa result)
  file(WRITE "${CMAKE_BINARY_DIR}/best_isa.c" [[
    #include <stdio.h>
    int main(void) {
      __builtin_cpu_init();
      int v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
      int v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
               __builtin_cpu_supports("bmi2");
      fputs(v4 ? "avx512" : v3 ? "avx2" : "portable", stdout);
      return 0;
    }]])
  execute_process(
    COMMAND ${CMAKE_CXX_COMPILER} -x c "${CMAKE_BINARY_DIR}/best_isa.c" -o "${CMAKE_BINARY_DIR}/best_isa"
    RESULT_VARIABLE failed)
  if(NOT failed AND NOT CMAKE_CROSSCOMPILING)
    execute_process(COMMAND "${CMAKE_BINARY_DIR}/best_isa" OUTPUT_VARIABLE best RESULT_VARIABLE failed)
  endif()
  if(failed OR CMAKE_CROSSCOMPILING)
    set(best ${all_isas})
  endif()
  set(${result} ${best} PARENT_SCOPE)
endfunction()

set(all_isas portable)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND all_isas avx2 avx512)
endif()
if(SPARSEGNN_ISAS STREQUAL "all" OR all_isas STREQUAL "portable")
  set(isas ${all_isas})
elseif(SPARSEGNN_ISAS STREQUAL "auto")
  find_best_isa(isas)
else()
  string(REPLACE "," ";" isas "${SPARSEGNN_ISAS}")
  list(REMOVE_DUPLICATES isas)
  foreach(name ${isas})
    if(NOT name IN_LIST all_isas)
      message(FATAL_ERROR "SPARSEGNN_ISAS must be auto, all, or some of ${all_isas} with commas between, got ${SPARSEGNN_ISAS}")
    endif()
  endforeach()
endif()
message(STATUS "Instruction sets of the CPU kernels: ${isas}")
file(WRITE "${CMAKE_BINARY_DIR}/isas.txt" "${isas}")

add_library(sparsegnn_cpu MODULE ${entries} csrc/common/interface.cpp)
set_target_properties(sparsegnn_cpu PROPERTIES LIBRARY_OUTPUT_DIRECTORY "${SPARSEGNN_OUTPUT}")
target_link_libraries(sparsegnn_cpu PRIVATE torch_stable torch_cpu torch)
list(TRANSFORM isas TOUPPER OUTPUT_VARIABLE have)
list(TRANSFORM have PREPEND "SG_HAVE_")
target_compile_definitions(sparsegnn_cpu PRIVATE ${have})
# Half of the time that an entry takes to compile are torch's headers.
target_precompile_headers(sparsegnn_cpu PRIVATE csrc/common/parallel.h csrc/cpu/dispatch.h csrc/cpu/output.h)
# The large kernels say themselves what is a vector: what the compiler would add to that is time to compile, a fifth.
file(GLOB vectors_by_hand csrc/cpu/spmm*.kernel.cpp csrc/cpu/gat.kernel.cpp csrc/cpu/gat_backward.kernel.cpp csrc/cpu/sparse_linear.kernel.cpp
     csrc/cpu/sparse_linear_backward.kernel.cpp csrc/cpu/block_linear*.kernel.cpp)
set_source_files_properties(${vectors_by_hand} PROPERTIES COMPILE_OPTIONS "-fno-tree-vectorize;-fno-tree-slp-vectorize")
foreach(name ${isas})
  add_library(kernels_${name} OBJECT ${kernels})
  target_compile_definitions(kernels_${name} PRIVATE SG_ISA=${name} ${have})
  target_compile_options(kernels_${name} PRIVATE -ffp-contract=fast -fno-math-errno -fno-trapping-math
                                                 -Wno-maybe-uninitialized ${flags_${name}})
  target_sources(sparsegnn_cpu PRIVATE $<TARGET_OBJECTS:kernels_${name}>)
endforeach()
