# SPDX-License-Identifier: Apache-2.0
#
# Sources written at build time: moe_build_info.h (identity of this build) and the profiles of plugin/profiles as C arrays.

string(TOUPPER "${CMAKE_BUILD_TYPE}" moe_build_type_upper)

# moe_build_info.h in `folder`, written by `target`. `kernel_definitions`: macros that this build's kernels get beside the
# flags of all.
function(moe_add_build_info target folder kernel_definitions)
  # What, besides the sources, decides the bits that the kernels compute.
  set(kernel_inputs_file "${PROJECT_BINARY_DIR}/CMakeFiles/${target}_inputs.txt")
  file(CONFIGURE OUTPUT "${kernel_inputs_file}" CONTENT
"compiler @CMAKE_C_COMPILER_ID@ @CMAKE_C_COMPILER_VERSION@ @CMAKE_SYSTEM_PROCESSOR@
flags @CMAKE_C_FLAGS@ @CMAKE_C_FLAGS_${moe_build_type_upper}@ @moe_arithmetic_flags@ @moe_sanitize_flags@
avx2 @MOE_HAVE_AVX2@ @moe_avx2_flags@
cuda @MOE_HAVE_CUDA@ @moe_cuda_identity@
definitions @kernel_definitions@
" @ONLY)
  # Runs in every build, because a commit or an edit changes the identity; the header is rewritten only when its text changes.
  add_custom_target(${target}
    COMMAND "${CMAKE_COMMAND}"
      "-DSOURCE_DIR=${PROJECT_SOURCE_DIR}" "-DKERNEL_INPUTS=${kernel_inputs_file}"
      "-DVERSION=${PROJECT_VERSION}" "-DCOMPILER=${CMAKE_C_COMPILER_ID} ${CMAKE_C_COMPILER_VERSION}"
      "-DOUTPUT=${folder}/moe_build_info.h"
      -P "${PROJECT_SOURCE_DIR}/src/cmake/write_build_info.cmake"
    BYPRODUCTS "${folder}/moe_build_info.h"
    COMMENT "Checking version, commit and kernel-set id" VERBATIM)
endfunction()
moe_add_build_info(moe_build_info "${MOE_GENERATED_DIR}" "")

file(GLOB moe_profile_files CONFIGURE_DEPENDS plugin/profiles/*.yaml)
list(SORT moe_profile_files)
set(moe_profile_list_file "${PROJECT_BINARY_DIR}/CMakeFiles/profile_list.txt") # changes when a profile is added or removed
list(JOIN moe_profile_files "\n" moe_profile_lines)
file(CONFIGURE OUTPUT "${moe_profile_list_file}" CONTENT "@moe_profile_lines@\n" @ONLY)
set(moe_profile_sources "${MOE_GENERATED_DIR}/moe_profiles.c")
add_custom_command(OUTPUT "${moe_profile_sources}"
  COMMAND "${CMAKE_COMMAND}" "-DLIST=${moe_profile_list_file}" "-DOUTPUT=${moe_profile_sources}"
    -P "${PROJECT_SOURCE_DIR}/src/cmake/write_profiles.cmake"
  DEPENDS ${moe_profile_files} "${moe_profile_list_file}" "${PROJECT_SOURCE_DIR}/src/cmake/write_profiles.cmake"
  COMMENT "Embedding plugin/profiles" VERBATIM)
