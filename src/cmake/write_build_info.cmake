# SPDX-License-Identifier: Apache-2.0
#
# cmake -DSOURCE_DIR= -DKERNEL_INPUTS= -DVERSION= -DCOMPILER= -DOUTPUT= -P write_build_info.cmake
# Writes moe_build_info.h: names, hashes of the kernel sources, and the commit.

file(READ "${KERNEL_INPUTS}" digest_text)
file(GLOB_RECURSE kernel_files RELATIVE "${SOURCE_DIR}" "${SOURCE_DIR}/kernels/*")
list(SORT kernel_files)
foreach(kernel_file IN LISTS kernel_files)
  file(SHA256 "${SOURCE_DIR}/${kernel_file}" file_digest)
  string(APPEND digest_text "${kernel_file} ${file_digest}\n")
endforeach()
string(SHA256 kernel_set_id "${digest_text}")
string(SUBSTRING "${kernel_set_id}" 0 16 kernel_set_id)

# Only the commit of this very tree counts, not that of a repository that happens to contain an unpacked release.
set(source_id "unknown")
find_program(GIT git)
if(GIT)
  execute_process(COMMAND "${GIT}" -C "${SOURCE_DIR}" rev-parse --show-prefix
    RESULT_VARIABLE status OUTPUT_VARIABLE prefix ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(status EQUAL 0 AND prefix STREQUAL "")
    execute_process(COMMAND "${GIT}" --no-optional-locks -C "${SOURCE_DIR}" describe --always --dirty --abbrev=12
      RESULT_VARIABLE status OUTPUT_VARIABLE described ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
    if(status EQUAL 0 AND NOT described STREQUAL "")
      set(source_id "${described}")
    endif()
  endif()
endif()

file(CONFIGURE OUTPUT "${OUTPUT}" CONTENT [[
/* Written by src/cmake/write_build_info.cmake. */
#ifndef MOE_BUILD_INFO_H
#define MOE_BUILD_INFO_H

#define MOE_BUILD_VERSION "@VERSION@"
#define MOE_BUILD_SOURCE_ID "@source_id@"
#define MOE_BUILD_KERNEL_SET_ID "@kernel_set_id@"
#define MOE_BUILD_COMPILER "@COMPILER@"

#endif
]] @ONLY)
