/* SPDX-License-Identifier: Apache-2.0 */
#include "table_check.h"

#include "loader_status.h"

#include <inttypes.h>
#include <string.h>

enum { STRING_BYTES_LIMIT = 256, TABLE_BYTES_LIMIT = 65536 };

/* Functions of the table in its order. X(member, is_mandatory) */
#define TABLE_FUNCTIONS(X) \
    X(device_probe, 1)     \
    X(context_create, 1)   \
    X(context_destroy, 1)  \
    X(context_device, 1)   \
    X(config_validate, 1)  \
    X(config_reload, 1)    \
    X(config_info, 1)      \
    X(supports, 1)         \
    X(plan_create, 1)      \
    X(plan_destroy, 1)     \
    X(plan_info, 1)        \
    X(plan_op_info, 1)     \
    X(explain, 1)          \
    X(weights_query, 1)    \
    X(weights_prepare, 1)  \
    X(weights_bind, 1)     \
    X(weights_destroy, 1)  \
    X(layer, 1)            \
    X(experts, 1)          \
    X(router, 0)           \
    X(gating, 0)           \
    X(align_block_size, 0) \
    X(ep_preprocess, 0)    \
    X(pre_reorder, 0)      \
    X(quantize, 0)         \
    X(activation, 0)       \
    X(grouped_gemm, 0)     \
    X(post_reorder, 0)     \
    X(sum_reduce, 0)       \
    X(route, 0)            \
    X(align_capacity, 0)   \
    X(status_name, 1)      \
    X(status_text, 1)      \
    X(tile_info, 1)        \
    X(backend_info, 1)     \
    X(stats, 1)            \
    X(self_test, 1)

/* Strings of the table. X(member) */
#define TABLE_STRINGS(X) X(name) X(version) X(source_id) X(kernel_set_id)

/* The table of 0.1 ends with this member; larger ones have grown since. */
#define INTRODUCTION_BYTES \
    (offsetof(struct moe_plugin_api, self_test) + sizeof(((struct moe_plugin_api *)0)->self_test))

struct table_member {
    const char *name;
    size_t offset;
    int is_mandatory;
};

#define FUNCTION_ROW(member, is_mandatory) \
    {#member, offsetof(struct moe_plugin_api, member), is_mandatory},
#define STRING_ROW(member) {#member, offsetof(struct moe_plugin_api, member), 1},

static const struct table_member functions[] = {TABLE_FUNCTIONS(FUNCTION_ROW)};
static const struct table_member strings[] = {TABLE_STRINGS(STRING_ROW)};

#define NUM_FUNCTIONS (sizeof(functions) / sizeof(functions[0]))
#define NUM_STRINGS   (sizeof(strings) / sizeof(strings[0]))

_Static_assert(offsetof(struct moe_plugin_api, device_probe) + NUM_FUNCTIONS * sizeof(void *) ==
                   sizeof(struct moe_plugin_api),
               "TABLE_FUNCTIONS names every function of the table");
_Static_assert(offsetof(struct moe_plugin_api, name) + NUM_STRINGS * sizeof(char *) ==
                   offsetof(struct moe_plugin_api, device_probe),
               "TABLE_STRINGS names every string of the table");

struct table_view {
    const unsigned char *bytes;
    size_t num_bytes;
    const struct moe_mapped *mapped;
    const char *name;
    struct moe_error *error;
};

#define REFUSE(view, ...) \
    moe_loader_status_set((view)->error, MOE_LOADER_STATUS_BAD_TABLE, "%s: " __VA_ARGS__)

static uintptr_t read_pointer(const struct table_view *view, size_t offset)
{
    uintptr_t pointer;
    memcpy(&pointer, view->bytes + offset, sizeof(pointer));
    return pointer;
}

static int32_t check_place(struct table_view *view)
{
    if (view->bytes == NULL) {
        return REFUSE(view, "moe_plugin_init returned no function table and left no reason",
                      view->name);
    }
    if ((uintptr_t)view->bytes % _Alignof(struct moe_plugin_api) != 0) {
        return REFUSE(view, "the function table at %p is not aligned to %zu bytes", view->name,
                      (const void *)view->bytes, _Alignof(struct moe_plugin_api));
    }
    uint32_t struct_size;
    if (!moe_mapped_can_read(view->mapped, view->bytes, sizeof(struct_size))) {
        return REFUSE(view, "the function table at %p lies outside the plugin's image", view->name,
                      (const void *)view->bytes);
    }
    memcpy(&struct_size, view->bytes, sizeof(struct_size));
    if (struct_size < INTRODUCTION_BYTES || struct_size > TABLE_BYTES_LIMIT) {
        return REFUSE(view, "the function table has struct_size %" PRIu32 "; it must be %zu to %d",
                      view->name, struct_size, INTRODUCTION_BYTES, TABLE_BYTES_LIMIT);
    }
    if (!moe_mapped_can_read(view->mapped, view->bytes, struct_size)) {
        return REFUSE(view,
                      "the function table of %" PRIu32 " bytes ends outside the plugin's image",
                      view->name, struct_size);
    }
    view->num_bytes = struct_size;
    return MOE_STATUS_OK;
}

static int32_t check_versions(const struct table_view *view)
{
    struct moe_plugin_api table;
    memset(&table, 0, sizeof(table));
    memcpy(&table, view->bytes, view->num_bytes < sizeof(table) ? view->num_bytes : sizeof(table));
    if (table.abi_major != MOE_ABI_MAJOR || table.abi_minor != MOE_ABI_MINOR) {
        return REFUSE(
            view, "the function table is of ABI %" PRIu32 ".%" PRIu32 "; this loader knows %d.%d",
            view->name, table.abi_major, table.abi_minor, MOE_ABI_MAJOR, MOE_ABI_MINOR);
    }
    if (table.layout_hash != MOE_ABI_LAYOUT_HASH) {
        return REFUSE(view,
                      "the function table has layout %016" PRIx64 "; this loader's ABI %d.%d has "
                      "%016" PRIx64,
                      view->name, table.layout_hash, MOE_ABI_MAJOR, MOE_ABI_MINOR,
                      MOE_ABI_LAYOUT_HASH);
    }
    if (table.flags != 0) {
        return REFUSE(view, "the function table has flags 0x%" PRIx32 "; ABI %d.%d knows none",
                      view->name, table.flags, MOE_ABI_MAJOR, MOE_ABI_MINOR);
    }
    return MOE_STATUS_OK;
}

static int32_t check_string(const struct table_view *view, const struct table_member *member)
{
    const char *text = (const char *)read_pointer(view, member->offset);
    if (text == NULL) {
        return REFUSE(view, "the string %s of the function table is NULL", view->name,
                      member->name);
    }
    size_t num_bytes = moe_mapped_readable_bytes(view->mapped, text);
    if (num_bytes == 0) {
        return REFUSE(view, "the string %s of the function table lies outside the plugin's image",
                      view->name, member->name);
    }
    num_bytes = num_bytes < STRING_BYTES_LIMIT ? num_bytes : STRING_BYTES_LIMIT;
    if (memchr(text, '\0', num_bytes) == NULL) {
        return REFUSE(view, "the string %s of the function table has no end within %zu bytes",
                      view->name, member->name, num_bytes);
    }
    return MOE_STATUS_OK;
}

static int32_t check_function(const struct table_view *view, const struct table_member *member)
{
    uintptr_t address = read_pointer(view, member->offset);
    if (address == 0) {
        return member->is_mandatory
                   ? REFUSE(view, "the mandatory member %s of the function table is NULL",
                            view->name, member->name)
                   : MOE_STATUS_OK;
    }
    if (!moe_mapped_can_execute(view->mapped, address)) {
        return REFUSE(view, "the member %s of the function table points outside the plugin's code",
                      view->name, member->name);
    }
    return MOE_STATUS_OK;
}

int32_t moe_table_check(const void *table, const struct moe_mapped *mapped, const char *name,
                        struct moe_error *error)
{
    struct moe_loader_shown shown = moe_loader_status_show(name);
    struct table_view view = {.bytes = table, .mapped = mapped, .name = shown.text, .error = error};
    int32_t status = check_place(&view);
    if (status == MOE_STATUS_OK) {
        status = check_versions(&view);
    }
    for (size_t i = 0; i < NUM_STRINGS && status == MOE_STATUS_OK; i++) {
        status = check_string(&view, &strings[i]);
    }
    for (size_t i = 0; i < NUM_FUNCTIONS && status == MOE_STATUS_OK; i++) {
        status = check_function(&view, &functions[i]);
    }
    return status;
}
