/* SPDX-License-Identifier: Apache-2.0 */
/* Members of quantization that are wrong one at a time, for test_arguments.c: in calls that
 * quantize nothing, and in calls that do. test_arguments.c defines REFUSE, LATER and what else is
 * used here. */
#ifndef MOE_TESTS_ABI_QUANTIZATION_H
#define MOE_TESTS_ABI_QUANTIZATION_H

#define REFUSE_QUANTIZED(form, type)                                                        \
    REFUSE(form, type, input_scales, ADDRESS, "input_scales"),                              \
        REFUSE(form, type, output_scales, ADDRESS, "output_scales"),                        \
        REFUSE(form, type, output_scale_stride, 1, "output_scale_stride"),                  \
        REFUSE(form, type, quantization.dtype, MOE_DTYPE_FP8_E4M3, "quantization"),         \
        REFUSE(form, type, quantization.scale_dtype, MOE_DTYPE_FP32, "quantization"),       \
        REFUSE(form, type, quantization.scale_layout, MOE_SCALE_ROW_MAJOR, "quantization"), \
        REFUSE(form, type, quantization.group_rows, 1, "quantization"),                     \
        REFUSE(form, type, quantization.group_k, 128, "quantization"),                      \
        REFUSE(form, type, quantization.zero_point, 1, "quantization"),                     \
        REFUSE(form, type, quantization.packing, 1, "quantization"),                        \
        REFUSE(form, type, quantization.dynamic, 1, "quantization")

#define BAD_QUANTIZATION                                                                           \
    REFUSE_STRIDE("quantize", moe_quantize_args, token_stride),                                    \
        REFUSE_STRIDE("quantize", moe_quantize_args, output_stride),                               \
        REFUSE("quantize", moe_quantize_args, input_scales, ADDRESS, "input_scales"),              \
        REFUSE("quantize", moe_quantize_args, output_scale_stride, -1, "output_scale_stride"),     \
        REFUSE("quantize", moe_quantize_args, output_scale_stride, INT64_MAX,                      \
               "output_scale_stride"),                                                             \
        LATER("quantize", moe_quantize_args, quantization.dtype, 0, "quantization.dtype"),         \
        LATER("quantize", moe_quantize_args, quantization.dtype, MOE_DTYPE_INT8,                   \
              "quantization.dtype"),                                                               \
        REFUSE("quantize", moe_quantize_args, quantization.scale_dtype, 0, "scale_dtype"),         \
        REFUSE("quantize", moe_quantize_args, quantization.scale_dtype, MOE_DTYPE_UE8M0,           \
               "row_major"),                                                                       \
        REFUSE("quantize", moe_quantize_args, quantization.scale_layout, 0, "scale_layout"),       \
        REFUSE("quantize", moe_quantize_args, quantization.scale_layout, 4, "scale_layout"),       \
        REFUSE("quantize", moe_quantize_args, quantization.scale_layout, MOE_SCALE_UE8M0_PACKED,   \
               "ue8m0"),                                                                           \
        LATER("quantize", moe_quantize_args, quantization.group_rows, 0, "group_rows"),            \
        LATER("quantize", moe_quantize_args, quantization.group_rows, 128, "group_rows"),          \
        REFUSE("quantize", moe_quantize_args, quantization.group_k, -1, "group_k"),                \
        REFUSE("quantize", moe_quantize_args, quantization.zero_point, 1, "zero_point"),           \
        REFUSE("quantize", moe_quantize_args, quantization.packing, 1, "packing"),                 \
        REFUSE("quantize", moe_quantize_args, quantization.dynamic, 0, "static"),                  \
        REFUSE("quantize", moe_quantize_args, quantization.dynamic, 2, "dynamic"),                 \
        REFUSE("pre_reorder, quantized", moe_pre_reorder_args, output_scales, ADDRESS, "static"),  \
        REFUSE("pre_reorder, quantized", moe_pre_reorder_args, output_scale_stride, 1, "static"),  \
        REFUSE("pre_reorder, quantized", moe_pre_reorder_args, quantization.group_k, 8,            \
               "group_k"),                                                                         \
        REFUSE("pre_reorder, quantized", moe_pre_reorder_args, quantization.group_rows, 1,         \
               "topk_ids"),                                                                        \
        REFUSE("pre_reorder, quantized", moe_pre_reorder_args, quantization.scale_dtype,           \
               MOE_DTYPE_UE8M0, "fp32"),                                                           \
        REFUSE("pre_reorder, quantized", moe_pre_reorder_args, quantization.dtype, 0, "topk_ids"), \
        REFUSE_FILTER("pre_reorder, quantized", moe_pre_reorder_args)

#endif
