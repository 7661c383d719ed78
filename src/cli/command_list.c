/* SPDX-License-Identifier: Apache-2.0 */
#include "abi_names.h"
#include "args.h"
#include "command.h"
#include "host_report.h"
#include "terminal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char details[] =
    "The names are those that configuration files use. A tile of a kernel that this build does not "
    "have is\n"
    "listed as not built: a file may name it, and on_unavailable says what happens then.";

/* The plugin's table of tiles, on the heap. */
struct tiles {
    struct moe_tile_info *infos;
    int32_t num_tiles;
};

static enum moe_args_outcome parse(int argc, char **argv, struct moe_plugin_host_options *options,
                                   struct moe_args_result *args)
{
    *options = moe_plugin_host_default_options();
    const struct moe_args_option rows[] = {MOE_PLUGIN_HOST_ROW_PLUGIN(*options)};
    const struct moe_args_command command = {.name = moe_command_list.name,
                                             .summary = moe_command_list.summary,
                                             .details = details,
                                             .options = rows,
                                             .num_options = sizeof rows / sizeof rows[0]};
    return moe_args_parse(&command, argc, argv, args, stdout, stderr);
}

static int read_tiles(const struct moe_plugin_host *host, struct tiles *tiles,
                      struct moe_cli_error *error)
{
    for (;;) {
        struct moe_tile_info info;
        MOE_INIT(info);
        if (host->api->tile_info(tiles->num_tiles, &info, NULL) != MOE_STATUS_OK) {
            return 0;
        }
        struct moe_tile_info *grown =
            realloc(tiles->infos, ((size_t)tiles->num_tiles + 1) * sizeof *grown);
        if (grown == NULL) {
            return moe_cli_fail_memory(error, "reading the list of tiles");
        }
        tiles->infos = grown;
        tiles->infos[tiles->num_tiles++] = info;
    }
}

/* Whether tile `tile_idx` is the first of its kernel. */
static int begins_kernel(const struct tiles *tiles, int32_t tile_idx)
{
    for (int32_t i = 0; i < tile_idx; ++i) {
        if (strcmp(tiles->infos[i].kernel, tiles->infos[tile_idx].kernel) == 0) {
            return 0;
        }
    }
    return 1;
}

static int32_t count_tiles(const struct tiles *tiles, const char *kernel)
{
    int32_t count = 0;
    for (int32_t i = 0; i < tiles->num_tiles; ++i) {
        count += strcmp(tiles->infos[i].kernel, kernel) == 0;
    }
    return count;
}

/* Operations that a tile serves: router and both GEMMs share theirs. */
static int serves(const struct moe_tile_info *info, int32_t op)
{
    const int is_gemm = op == MOE_OP_ROUTER || op == MOE_OP_GEMM1 || op == MOE_OP_GEMM2;
    return is_gemm ? info->op == MOE_OP_GEMM1 : info->op == op;
}

static int32_t count_op_tiles(const struct tiles *tiles, int32_t op)
{
    int32_t count = 0;
    for (int32_t i = 0; i < tiles->num_tiles; ++i) {
        count += serves(&tiles->infos[i], op);
    }
    return count;
}

static void print_heading(const char *text)
{
    printf("%s%s%s\n", moe_terminal_style(stdout, MOE_TERMINAL_BOLD), text,
           moe_terminal_style(stdout, MOE_TERMINAL_PLAIN));
}

static void print_tiles(const struct tiles *tiles)
{
    print_heading("operations");
    for (int32_t op = 0; op < MOE_NUM_OPS; ++op) {
        const int32_t num_tiles = count_op_tiles(tiles, op);
        if (num_tiles > 0) {
            printf("  %-17s %" PRId32 " tile%s\n", moe_abi_op_name(op), num_tiles,
                   num_tiles == 1 ? "" : "s");
        } else {
            printf("  %-17s %s\n", moe_abi_op_name(op),
                   op == MOE_OP_EXPERTS || op == MOE_OP_LAYER ? "made of the others" : "no tile");
        }
    }
    print_heading("\nkernels");
    for (int32_t i = 0; i < tiles->num_tiles; ++i) {
        const struct moe_tile_info *info = &tiles->infos[i];
        if (begins_kernel(tiles, i)) {
            printf("  %-17s %s, %" PRId32 " tiles, %s\n", info->kernel,
                   moe_abi_backend_name(info->backend), count_tiles(tiles, info->kernel),
                   info->built ? "built" : "not built");
        }
    }
    print_heading("\ntiles");
    for (int32_t i = 0; i < tiles->num_tiles; ++i) {
        const struct moe_tile_info *info = &tiles->infos[i];
        printf("  %-17s %s%s\n",
               info->op == MOE_OP_GEMM1 ? "router, gemm1/2" : moe_abi_op_name(info->op), info->name,
               info->built ? "" : " (not built)");
    }
}

static void put_tile(struct moe_cli_json *json, const struct moe_tile_info *info)
{
    moe_cli_json_begin_object(json, NULL);
    moe_cli_json_begin_array(json, "ops");
    for (int32_t op = 0; op < MOE_NUM_OPS; ++op) {
        if (serves(info, op)) {
            moe_cli_json_put_text(json, NULL, moe_abi_op_name(op));
        }
    }
    moe_cli_json_end_array(json);
    moe_cli_json_put_text(json, "kernel", info->kernel);
    moe_cli_json_put_text(json, "name", info->name);
    moe_cli_json_put_text(json, "backend", moe_abi_backend_name(info->backend));
    moe_cli_json_put_text(json, "isa", info->isa);
    moe_cli_json_put_int(json, "min_sm", info->min_sm);
    moe_cli_json_put_bool(json, "built", info->built);
    moe_cli_json_put_int(json, "BLOCK_SIZE_M", info->block_size_m);
    moe_cli_json_put_int(json, "BLOCK_SIZE_N", info->block_size_n);
    moe_cli_json_put_int(json, "BLOCK_SIZE_K", info->block_size_k);
    moe_cli_json_put_int(json, "GROUP_SIZE_M", info->group_size_m);
    moe_cli_json_put_int(json, "num_warps", info->num_warps);
    moe_cli_json_put_int(json, "num_stages", info->num_stages);
    moe_cli_json_put_int(json, "BLOCK_SIZE", info->block_size);
    moe_cli_json_put_int(json, "smem_bytes", info->smem_bytes);
    moe_cli_json_end_object(json);
}

static int write_tiles(const struct moe_plugin_host *host, const struct tiles *tiles)
{
    struct moe_cli_json json;
    moe_cli_json_init(&json, stdout);
    moe_cli_json_begin_object(&json, NULL);
    moe_host_report_put_plugin(&json, host);
    moe_cli_json_begin_array(&json, "ops");
    for (int32_t op = 0; op < MOE_NUM_OPS; ++op) {
        moe_cli_json_begin_object(&json, NULL);
        moe_cli_json_put_text(&json, "name", moe_abi_op_name(op));
        moe_cli_json_put_int(&json, "num_tiles", count_op_tiles(tiles, op));
        moe_cli_json_end_object(&json);
    }
    moe_cli_json_end_array(&json);
    moe_cli_json_begin_array(&json, "tiles");
    for (int32_t i = 0; i < tiles->num_tiles; ++i) {
        put_tile(&json, &tiles->infos[i]);
    }
    moe_cli_json_end_array(&json);
    moe_cli_json_end_object(&json);
    return moe_cli_json_finish(&json) == 0 ? MOE_EXIT_OK : MOE_EXIT_USAGE;
}

static int list_main(int argc, char **argv)
{
    struct moe_plugin_host_options options;
    struct moe_args_result args;
    const enum moe_args_outcome outcome = parse(argc, argv, &options, &args);
    if (outcome != MOE_ARGS_RUN) {
        return outcome == MOE_ARGS_HELP ? MOE_EXIT_OK : MOE_EXIT_USAGE;
    }
    struct moe_plugin_host host = {.api = NULL};
    struct tiles tiles = {.infos = NULL};
    struct moe_cli_error error = {.message = ""};
    int status = MOE_EXIT_USAGE;
    if (moe_plugin_host_load(&options, &host, &error) != 0 ||
        read_tiles(&host, &tiles, &error) != 0) {
        fprintf(stderr, "moectl %s: %s\n", moe_command_list.name, error.message);
    } else if (args.wants_json) {
        status = write_tiles(&host, &tiles);
    } else {
        print_tiles(&tiles);
        status = MOE_EXIT_OK;
    }
    free(tiles.infos);
    moe_plugin_host_finish(&host);
    return status;
}

const struct moe_command moe_command_list = {
    .name = "list",
    .summary = "List the operations, kernels and tiles of a plugin.",
    .main = list_main,
};
