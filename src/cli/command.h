/* SPDX-License-Identifier: Apache-2.0 */
/* The subcommands of moectl: each is one command_<name>.c, and a row of the table in moectl.c. */
#ifndef MOE_COMMAND_H
#define MOE_COMMAND_H

struct moe_command {
    const char *name;                   /* "run" */
    const char *summary;                /* one line, for `moectl --help` and the command's own */
    int (*main)(int argc, char **argv); /* argv[0] is the name; returns one of enum moe_exit */
};

extern const struct moe_command moe_command_bench;
extern const struct moe_command moe_command_conform;
extern const struct moe_command moe_command_explain;
extern const struct moe_command moe_command_info;
extern const struct moe_command moe_command_list;
extern const struct moe_command moe_command_run;
extern const struct moe_command moe_command_swap_demo;
extern const struct moe_command moe_command_validate;

#endif
