/* SPDX-License-Identifier: Apache-2.0 */
/* The layout of moe_plugin.h as data: what layout.def lists, with the numbers of this compiler. */
#ifndef MOE_TESTS_ABI_LAYOUT_H
#define MOE_TESTS_ABI_LAYOUT_H

#include "moe_plugin.h"

#include <stddef.h>

enum abi_layout_kind { ABI_LAYOUT_STRUCT, ABI_LAYOUT_MEMBER, ABI_LAYOUT_CONSTANT };

struct abi_layout_entry {
    enum abi_layout_kind kind;
    const char *struct_name; /* without "struct "; constants: NULL */
    const char *name;        /* of the member or constant; structs: NULL */
    const char *type;        /* of the member */
    size_t offset;           /* of the member */
    size_t bytes;
    size_t alignment; /* of the struct */
    int64_t value;    /* of the constant */
};

#define STRUCT(struct_name_)               \
    {.kind = ABI_LAYOUT_STRUCT,            \
     .struct_name = #struct_name_,         \
     .bytes = sizeof(struct struct_name_), \
     .alignment = _Alignof(struct struct_name_)},
#define MEMBER(struct_name_, name_, type_)           \
    {.kind = ABI_LAYOUT_MEMBER,                      \
     .struct_name = #struct_name_,                   \
     .name = #name_,                                 \
     .type = #type_,                                 \
     .offset = offsetof(struct struct_name_, name_), \
     .bytes = sizeof(((struct struct_name_ *)0)->name_)},
#define ABI_LAYOUT_ID_(name_, value_, text_) \
    {.kind = ABI_LAYOUT_CONSTANT, .name = #name_, .value = (name_)},
#define LIST(list)      list(ABI_LAYOUT_ID_)
#define CONSTANT(name_) {.kind = ABI_LAYOUT_CONSTANT, .name = #name_, .value = (name_)},
static const struct abi_layout_entry abi_layout[] = {
#include "layout.def"
};

enum { ABI_LAYOUT_NUM_ENTRIES = sizeof(abi_layout) / sizeof(abi_layout[0]) };

/* The types in layout.def are those of the header. */
#define MEMBER(struct_name_, name_, type_)                                                  \
    _Static_assert(                                                                         \
        _Generic(&((struct struct_name_ *)0)->name_, __typeof__(type_) * : 1, default : 0), \
        "struct " #struct_name_ " has a member " #name_ " of type " #type_);
#include "layout.def"

#endif
