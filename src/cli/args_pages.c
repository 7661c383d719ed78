/* SPDX-License-Identifier: Apache-2.0 */
#include "args_pages.h"

#include <string.h>

#include "moe_build_info.h"

int moe_args_takes_value(const struct moe_args_option *option)
{
    return option->flag == NULL;
}

const char *moe_args_value_name(const struct moe_args_option *option)
{
    return option->value_name != NULL ? option->value_name : option->choices;
}

/* --json and --help, which every command has. */
static const struct {
    char letter;
    const char *name;
    const char *help;
} common_options[] = {
    {'\0', "json", "print the result as JSON"},
    {'h', "help", "print this text"},
};
enum { num_common_options = sizeof common_options / sizeof common_options[0] };

enum { help_column = 30 };

static void print_option(FILE *out, char letter, const char *name, const char *value_name,
                         const char *help)
{
    int width = letter != '\0' ? fprintf(out, "  -%c, --%s", letter, name)
                               : fprintf(out, "      --%s", name);
    if (value_name != NULL) {
        width += fprintf(out, " %s", value_name);
    }
    if (width >= help_column) {
        fputc('\n', out);
        width = 0;
    }
    fprintf(out, "%*s%s\n", help_column - width, "", help);
}

void moe_args_print_help(const struct moe_args_command *command, FILE *out)
{
    fprintf(out, "usage: moectl %s [options]%s%s\n\n%s\n\noptions:\n", command->name,
            command->operands != NULL ? " " : "",
            command->operands != NULL ? command->operands : "", command->summary);
    for (size_t i = 0; i < command->num_options; ++i) {
        const struct moe_args_option *option = &command->options[i];
        print_option(out, option->letter, option->name,
                     moe_args_takes_value(option) ? moe_args_value_name(option) : NULL,
                     option->help);
    }
    for (size_t i = 0; i < num_common_options; ++i) {
        print_option(out, common_options[i].letter, common_options[i].name, NULL,
                     common_options[i].help);
    }
    if (command->details != NULL) {
        fprintf(out, "\n%s\n", command->details);
    }
}

/* A text in a manual page: minus signs and backslashes as they are, and no line that troff takes
 * for a request. */
static void print_roff(const char *text, FILE *out)
{
    int begins_line = 1;
    for (const char *at = text; *at != '\0'; ++at) {
        if (begins_line && (*at == '.' || *at == '\'')) {
            fputs("\\&", out);
        }
        if (*at == '-') {
            fputs("\\-", out);
        } else if (*at == '\\') {
            fputs("\\e", out);
        } else {
            fputc(*at, out);
        }
        begins_line = *at == '\n';
    }
}

static void print_roff_option(FILE *out, char letter, const char *name, const char *value_name,
                              const char *help)
{
    fputs(".TP\n", out);
    if (letter != '\0') {
        fprintf(out, "\\fB\\-%c\\fR, ", letter);
    }
    fputs("\\fB\\-\\-", out);
    print_roff(name, out);
    fputs("\\fR", out);
    if (value_name != NULL) {
        fputs(" \\fI", out);
        print_roff(value_name, out);
        fputs("\\fR", out);
    }
    fputc('\n', out);
    print_roff(help, out);
    fputc('\n', out);
}

static void print_man_page(const struct moe_args_command *command, FILE *out)
{
    fputs(".TH MOECTL\\-", out);
    print_roff(command->name, out);
    fputs(" 1 \"\" \"moe\\-plugin " MOE_BUILD_VERSION "\"\n.SH NAME\nmoectl\\-", out);
    print_roff(command->name, out);
    fputs(" \\- ", out);
    print_roff(command->summary, out);
    fputs("\n.SH SYNOPSIS\n\\fBmoectl ", out);
    print_roff(command->name, out);
    fputs("\\fR [options]", out);
    if (command->operands != NULL) {
        fputs(" \\fI", out);
        print_roff(command->operands, out);
        fputs("\\fR", out);
    }
    fputs("\n.SH OPTIONS\n", out);
    for (size_t i = 0; i < command->num_options; ++i) {
        const struct moe_args_option *option = &command->options[i];
        print_roff_option(out, option->letter, option->name,
                          moe_args_takes_value(option) ? moe_args_value_name(option) : NULL,
                          option->help);
    }
    for (size_t i = 0; i < num_common_options; ++i) {
        print_roff_option(out, common_options[i].letter, common_options[i].name, NULL,
                          common_options[i].help);
    }
    if (command->details != NULL) {
        fputs(".SH DETAILS\n.nf\n", out); /* lines are broken where the text breaks them */
        print_roff(command->details, out);
        fputs("\n.fi\n", out);
    }
    fputs(".SH SEE ALSO\n\\fBmoectl\\fR(1)\n", out);
}

/* A line per option: its word, and after a tab the kind of its value: nothing for none, "file",
 * "word", or the choices "=a|b". */
static void print_words(const struct moe_args_command *command, FILE *out)
{
    for (size_t i = 0; i < command->num_options; ++i) {
        const struct moe_args_option *option = &command->options[i];
        const char *value_name = moe_args_value_name(option);
        fprintf(out, "--%s", option->name);
        if (option->choices != NULL) {
            fprintf(out, "\t=%s", option->choices);
        } else if (moe_args_takes_value(option)) {
            const int is_path = value_name != NULL && (strstr(value_name, "FILE") != NULL ||
                                                       strstr(value_name, "DIR") != NULL ||
                                                       strcmp(value_name, "SO") == 0);
            fputs(is_path ? "\tfile" : "\tword", out);
        }
        fputc('\n', out);
    }
    for (size_t i = 0; i < num_common_options; ++i) {
        fprintf(out, "--%s\n", common_options[i].name);
    }
}

static const struct {
    const char *name;
    moe_args_page *page;
} pages[] = {{"man", print_man_page}, {"words", print_words}};

moe_args_page *moe_args_find_page(const char *name, struct moe_cli_error *error)
{
    for (size_t i = 0; i < sizeof pages / sizeof pages[0]; ++i) {
        if (strcmp(pages[i].name, name) == 0) {
            return pages[i].page;
        }
    }
    moe_cli_error_set(error, "--help: '%s' is not one of man and words; without a value it is text",
                      name);
    return NULL;
}
