# SPDX-License-Identifier: Apache-2.0
#
# Decides whether this build has a CUDA backend. Sets MOE_HAVE_CUDA (0 or 1) and moe_cuda_summary (a sentence).

if(NOT MOE_ENABLE_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "MOE_ENABLE_CUDA is \"${MOE_ENABLE_CUDA}\"; valid: AUTO, ON, OFF.")
endif()

# Compiles a kernel for sm_90a; an nvcc that is too old or has no host compiler fails here, not in the middle of a build.
function(moe_probe_nvcc result_var reason_var)
  find_program(MOE_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(NOT MOE_NVCC)
    set(${result_var} 0 PARENT_SCOPE)
    set(${reason_var} "nvcc was not found" PARENT_SCOPE)
    return()
  endif()
  set(probe_dir "${PROJECT_BINARY_DIR}/CMakeFiles/cuda_probe")
  file(WRITE "${probe_dir}/probe.cu" "extern \"C\" __global__ void moe_probe(float *x) { x[threadIdx.x] += 1.0f; }\n")
  execute_process(
    COMMAND "${MOE_NVCC}" -fatbin -gencode=arch=compute_90a,code=sm_90a -o "${probe_dir}/probe.fatbin" "${probe_dir}/probe.cu"
    RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(status EQUAL 0)
    set(${result_var} 1 PARENT_SCOPE)
    set(${reason_var} "${MOE_NVCC} compiles for sm_90a" PARENT_SCOPE)
  else()
    string(REGEX REPLACE "\n.*" "" output "${output}")
    set(${result_var} 0 PARENT_SCOPE)
    set(${reason_var} "${MOE_NVCC} does not compile for sm_90a (${output})" PARENT_SCOPE)
  endif()
endfunction()

file(GLOB moe_cuda_kernel_sources CONFIGURE_DEPENDS kernels/cuda/*.cu)
set(MOE_HAVE_CUDA 0)
if(MOE_ENABLE_CUDA STREQUAL "OFF")
  set(moe_cuda_summary "off (MOE_ENABLE_CUDA=OFF)")
else()
  moe_probe_nvcc(moe_nvcc_works moe_nvcc_reason)
  if(NOT moe_nvcc_works)
    set(moe_cuda_summary "off (${moe_nvcc_reason})")
  elseif(NOT moe_cuda_kernel_sources)
    set(moe_cuda_summary "off (${moe_nvcc_reason}, but this version has no CUDA kernels)")
  else()
    set(MOE_HAVE_CUDA 1)
    set(moe_cuda_summary "on (${moe_nvcc_reason})")
  endif()
  if(MOE_ENABLE_CUDA STREQUAL "ON" AND NOT MOE_HAVE_CUDA)
    message(FATAL_ERROR "MOE_ENABLE_CUDA=ON, but the CUDA backend is ${moe_cuda_summary}. Use AUTO or OFF.")
  endif()
endif()

# Machine code that goes into the plugin: one fatbin per operation and the architectures it has code for. nvcc's report on
# registers and spills is kept beside it (build/cuda/<op>.ptxas.txt) and read by the build and by a test.
set(MOE_CUDA_ARCHITECTURES "80;90a;100;120" CACHE STRING "Architectures of the CUDA kernels")
set(MOE_CUDA_DIR "${PROJECT_BINARY_DIR}/cuda")
set(moe_cuda_flags -std=c++17 -O3 -fmad=false -Xfatbin -compress-all -Xptxas -v -lineinfo)
# What ptxas calls a GEMM whose warp-group multiplications wait for each other: right, and far too slow. The build fails.
set(moe_ptxas_serialized C7508 C7510 C7514 C7519)
set(moe_cuda_identity "") # what, besides the sources, decides the machine code
if(MOE_HAVE_CUDA)
  get_filename_component(moe_cuda_root "${MOE_NVCC}" DIRECTORY)
  get_filename_component(moe_cuda_root "${moe_cuda_root}" DIRECTORY)
  set(MOE_CUDA_INCLUDE_DIR "${moe_cuda_root}/include")
  if(NOT EXISTS "${MOE_CUDA_INCLUDE_DIR}/cuda.h")
    message(FATAL_ERROR "${MOE_NVCC} has no ${MOE_CUDA_INCLUDE_DIR}/cuda.h beside it. Use MOE_ENABLE_CUDA=OFF.")
  endif()
  execute_process(COMMAND "${MOE_NVCC}" --version OUTPUT_VARIABLE moe_nvcc_version)
  string(REGEX REPLACE ".*(V[0-9.]+).*" "\\1" moe_nvcc_version "${moe_nvcc_version}")
  set(moe_cuda_identity "nvcc ${moe_nvcc_version} ${moe_cuda_flags} for ${MOE_CUDA_ARCHITECTURES}")
endif()

# Sets `result_var` to the generated C file that embeds the fatbins as moe_cuda_modules (src/cuda_state.h).
function(moe_add_cuda_modules result_var)
  file(GLOB headers CONFIGURE_DEPENDS kernels/cuda/*.cuh kernels/cuda/*.h kernels/*.h kernels/*.def abi/*.h)
  set(gencode "")
  foreach(arch IN LISTS MOE_CUDA_ARCHITECTURES)
    list(APPEND gencode "-gencode=arch=compute_${arch},code=sm_${arch}")
  endforeach()
  set(text "/* SPDX-License-Identifier: Apache-2.0 */\n/* Generated: the fatbins of kernels/cuda. */\n")
  string(APPEND text "#include \"cuda_state.h\"\n\n")
  set(rows "")
  set(fatbins "")
  foreach(source IN LISTS moe_cuda_kernel_sources)
    get_filename_component(op "${source}" NAME_WE)
    set(fatbin "${MOE_CUDA_DIR}/${op}.fatbin")
    add_custom_command(OUTPUT "${fatbin}"
      COMMAND "${CMAKE_COMMAND}" -E make_directory "${MOE_CUDA_DIR}"
      COMMAND sh -c "\"$0\" \"$@\" >\"${MOE_CUDA_DIR}/${op}.ptxas.txt\" 2>&1 || { cat \"${MOE_CUDA_DIR}/${op}.ptxas.txt\"; exit 1; }"
        "${MOE_NVCC}" -fatbin ${moe_cuda_flags} ${gencode} -Iabi -Ikernels -Ikernels/cuda -o "${fatbin}" "kernels/cuda/${op}.cu"
      WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
      DEPENDS "${source}" ${headers}
      COMMENT "Compiling kernels/cuda/${op}.cu" VERBATIM)
    string(APPEND text "__asm__(\".section .rodata\\n.balign 64\\nmoe_cuda_image_${op}:\\n.incbin \\\"${fatbin}\\\"\\n.previous\");\n")
    string(APPEND text "extern const unsigned char moe_cuda_image_${op}[] __attribute__((visibility(\"hidden\")));\n")
    string(APPEND rows "    {\"${op}\", moe_cuda_image_${op}},\n")
    list(APPEND fatbins "${fatbin}")
  endforeach()
  string(APPEND text "\nconst struct moe_cuda_module moe_cuda_modules[] = {\n${rows}};\n")
  string(APPEND text "const int32_t moe_cuda_num_modules = sizeof(moe_cuda_modules) / sizeof(moe_cuda_modules[0]);\n")
  set(checked "${MOE_CUDA_DIR}/ptxas.checked")
  list(JOIN moe_ptxas_serialized "|" serialized)
  add_custom_command(OUTPUT "${checked}"
    COMMAND sh -c "! grep -EH \"$1\" \"$0\"/*.ptxas.txt >&2 && touch \"$2\"" "${MOE_CUDA_DIR}" "${serialized}" "${checked}"
    DEPENDS ${fatbins}
    COMMENT "Looking for serialized warp-group multiplications" VERBATIM)
  set(output "${MOE_GENERATED_DIR}/moe_cuda_modules.c")
  file(CONFIGURE OUTPUT "${output}" CONTENT "${text}" @ONLY)
  set_source_files_properties("${output}" PROPERTIES OBJECT_DEPENDS "${fatbins};${checked}")
  set(${result_var} "${output}" PARENT_SCOPE)
endfunction()
