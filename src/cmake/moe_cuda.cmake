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
