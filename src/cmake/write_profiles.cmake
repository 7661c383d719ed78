# SPDX-License-Identifier: Apache-2.0
#
# cmake -DLIST=file-of-paths -DOUTPUT=moe_profiles.c -P write_profiles.cmake
# Writes the array that src/profiles.h declares. The last element is a sentinel, so that no profile at all is valid C too.

file(STRINGS "${LIST}" profile_files)
set(texts "")
set(rows "")
set(num_profiles 0)
foreach(profile_file IN LISTS profile_files)
  cmake_path(GET profile_file FILENAME name)
  file(READ "${profile_file}" hex HEX)
  file(SIZE "${profile_file}" num_bytes)
  string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
  string(REPLACE "0x0a," "0x0a,\n    " bytes "${bytes}") # a line of the profile is a line here
  string(APPEND texts "static const unsigned char text_${num_profiles}[] = {\n    ${bytes}0x00};\n\n")
  string(APPEND rows "    {\"${name}\", (const char *)text_${num_profiles}, ${num_bytes}u},\n")
  math(EXPR num_profiles "${num_profiles} + 1")
endforeach()

file(WRITE "${OUTPUT}"
"/* Written by src/cmake/write_profiles.cmake. */
#include \"profiles.h\"

${texts}const struct moe_profile_text moe_profiles[] = {
${rows}    {0, 0, 0u},
};
const size_t moe_num_profiles = ${num_profiles}u;
")
