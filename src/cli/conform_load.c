/* SPDX-License-Identifier: Apache-2.0 */
/* P1 to P5: the file, loading it, the handshake, unloading it. */
#define _GNU_SOURCE
#include "conform_calls.h"
#include "conform_rules.h"

#include <dirent.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <fenv.h>
#include <locale.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---------------------------------------------------------------- P1 */

struct image {
    const unsigned char *bytes;
    uint64_t num_bytes;
};

/* `num` entries of `entry_bytes` at `offset`, or NULL when they are not all in the file. */
static const void *image_at(const struct image *image, uint64_t offset, uint64_t num,
                            uint64_t entry_bytes)
{
    if (offset > image->num_bytes || num > (image->num_bytes - offset) / entry_bytes) {
        return NULL;
    }
    return image->bytes + offset;
}

static const char *string_at(struct moe_conform *conform, const struct image *image,
                             const Elf64_Shdr *strings, uint64_t offset)
{
    const char *text = image_at(image, strings->sh_offset, strings->sh_size, 1);
    if (text == NULL || offset >= strings->sh_size ||
        memchr(text + offset, '\0', strings->sh_size - offset) == NULL) {
        moe_conform_fail(conform, "its string table is broken");
    }
    return text + offset;
}

static void check_exports(struct moe_conform *conform, const struct image *image,
                          const Elf64_Shdr *table, const Elf64_Shdr *strings)
{
    const uint64_t num_symbols = table->sh_size / sizeof(Elf64_Sym);
    const Elf64_Sym *symbols = image_at(image, table->sh_offset, num_symbols, sizeof *symbols);
    int num_entries = 0;
    if (symbols == NULL) {
        moe_conform_fail(conform, "its symbol table ends behind the file");
    }
    for (uint64_t i = 0; i < num_symbols; ++i) {
        if (symbols[i].st_shndx == SHN_UNDEF || symbols[i].st_shndx == SHN_ABS ||
            ELF64_ST_BIND(symbols[i].st_info) == STB_LOCAL) {
            continue;
        }
        const char *name = string_at(conform, image, strings, symbols[i].st_name);
        if (strcmp(name, MOE_PLUGIN_INIT_SYMBOL) != 0) {
            moe_conform_fail(conform, "it exports '%s'; only " MOE_PLUGIN_INIT_SYMBOL " may be",
                             name);
        }
        num_entries += ELF64_ST_TYPE(symbols[i].st_info) == STT_FUNC;
    }
    if (num_entries != 1) {
        moe_conform_fail(conform, "it exports no function " MOE_PLUGIN_INIT_SYMBOL);
    }
}

static void check_needed(struct moe_conform *conform, const struct image *image,
                         const Elf64_Shdr *table, const Elf64_Shdr *strings)
{
    static const char *const allowed[] = {"libc.", "libm.", "ld-linux", "ld64."};
    const uint64_t num_entries = table->sh_size / sizeof(Elf64_Dyn);
    const Elf64_Dyn *entries = image_at(image, table->sh_offset, num_entries, sizeof *entries);
    if (entries == NULL) {
        moe_conform_fail(conform, "its dynamic section ends behind the file");
    }
    for (uint64_t i = 0; i < num_entries; ++i) {
        int is_allowed = 0;
        if (entries[i].d_tag != DT_NEEDED) {
            continue;
        }
        const char *name = string_at(conform, image, strings, entries[i].d_un.d_val);
        for (size_t a = 0; a < sizeof allowed / sizeof allowed[0]; ++a) {
            is_allowed |= strncmp(name, allowed[a], strlen(allowed[a])) == 0;
        }
        if (!is_allowed) {
            moe_conform_fail(
                conform, "it needs '%s'; libc, libm and the dynamic linker may be needed", name);
        }
    }
}

static struct image read_image(struct moe_conform *conform)
{
    struct stat facts;
    const int fd = open(conform->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &facts) != 0 || !S_ISREG(facts.st_mode) || facts.st_size <= 0) {
        moe_conform_fail(conform, "it is no readable file");
    }
    struct image image = {.num_bytes = (uint64_t)facts.st_size};
    void *bytes = mmap(NULL, image.num_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (bytes == MAP_FAILED) {
        moe_conform_fail(conform, "it cannot be read");
    }
    image.bytes = bytes;
    return image;
}

void moe_conform_check_exports(struct moe_conform *conform)
{
    const struct image image = read_image(conform);
    const Elf64_Ehdr *header = image_at(&image, 0, 1, sizeof *header);
    if (header == NULL || memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 ||
        header->e_ident[EI_CLASS] != ELFCLASS64) {
        moe_conform_fail(conform, "it is no 64-bit ELF file");
    }
    const Elf64_Shdr *sections =
        image_at(&image, header->e_shoff, header->e_shnum, sizeof *sections);
    const Elf64_Shdr *symbols = NULL;
    const Elf64_Shdr *dynamic = NULL;
    for (uint32_t i = 0; sections != NULL && i < header->e_shnum; ++i) {
        symbols = sections[i].sh_type == SHT_DYNSYM ? &sections[i] : symbols;
        dynamic = sections[i].sh_type == SHT_DYNAMIC ? &sections[i] : dynamic;
    }
    if (symbols == NULL || dynamic == NULL || symbols->sh_link >= header->e_shnum ||
        dynamic->sh_link >= header->e_shnum) {
        moe_conform_skip(conform, "the file has no section headers for dynamic symbols");
    }
    check_exports(conform, &image, symbols, &sections[symbols->sh_link]);
    check_needed(conform, &image, dynamic, &sections[dynamic->sh_link]);
}

/* ---------------------------------------------------------------- P2 */

static int count_entries(const char *folder)
{
    int num_entries = 0;
    DIR *entries = opendir(folder);
    while (entries != NULL && readdir(entries) != NULL) {
        ++num_entries;
    }
    if (entries != NULL) {
        closedir(entries);
    }
    return num_entries;
}

enum { NUM_SIGNALS = 64 };

struct process_state {
    int num_files;
    int num_threads;
    int rounding;
    int exceptions;
    char locale[256];
    char folder[4096];
    void (*handlers[NUM_SIGNALS])(int);
};

static void read_state(struct process_state *state)
{
    memset(state, 0, sizeof *state);
    state->rounding = fegetround();
    state->exceptions = fetestexcept(FE_ALL_EXCEPT);
    state->num_files = count_entries("/proc/self/fd");
    state->num_threads = count_entries("/proc/self/task");
    strncpy(state->locale, setlocale(LC_ALL, NULL), sizeof state->locale - 1);
    if (getcwd(state->folder, sizeof state->folder) == NULL) {
        state->folder[0] = '\0';
    }
    for (int number = 1; number < NUM_SIGNALS; ++number) {
        struct sigaction action;
        if (sigaction(number, NULL, &action) == 0) {
            state->handlers[number] = action.sa_handler;
        }
    }
}

void moe_conform_check_process_state(struct moe_conform *conform)
{
    static struct process_state before;
    static struct process_state after;
    read_state(&before);
    moe_conform_open_table(conform);
    read_state(&after);
    const char *changed = before.num_files != after.num_files       ? "the open files"
                          : before.num_threads != after.num_threads ? "the number of threads"
                          : before.rounding != after.rounding       ? "the rounding mode"
                          : before.exceptions != after.exceptions ? "the floating-point exceptions"
                          : strcmp(before.locale, after.locale) != 0 ? "the locale"
                          : strcmp(before.folder, after.folder) != 0 ? "the working directory"
                          : memcmp(before.handlers, after.handlers, sizeof before.handlers) != 0
                              ? "the signal handlers"
                              : NULL;
    if (changed != NULL) {
        moe_conform_fail(conform, "loading changed %s", changed);
    }
}

/* ---------------------------------------------------------------- P3, P4 */

static void check_members(struct moe_conform *conform, const struct moe_plugin_api *api)
{
    const struct {
        const char *name;
        int is_set;
    } members[] = {
#define MEMBER(name) {#name, api->name != NULL}
        MEMBER(name),
        MEMBER(version),
        MEMBER(source_id),
        MEMBER(kernel_set_id),
        MEMBER(device_probe),
        MEMBER(context_create),
        MEMBER(context_destroy),
        MEMBER(context_device),
        MEMBER(config_validate),
        MEMBER(config_reload),
        MEMBER(config_info),
        MEMBER(supports),
        MEMBER(plan_create),
        MEMBER(plan_destroy),
        MEMBER(plan_info),
        MEMBER(plan_op_info),
        MEMBER(explain),
        MEMBER(weights_query),
        MEMBER(weights_prepare),
        MEMBER(weights_bind),
        MEMBER(weights_destroy),
        MEMBER(layer),
        MEMBER(experts),
        MEMBER(status_name),
        MEMBER(status_text),
        MEMBER(tile_info),
        MEMBER(backend_info),
        MEMBER(stats),
        MEMBER(self_test),
#undef MEMBER
    };
    for (size_t i = 0; i < sizeof members / sizeof members[0]; ++i) {
        if (!members[i].is_set) {
            moe_conform_fail(conform, "the table's mandatory member %s is NULL", members[i].name);
        }
    }
}

void moe_conform_check_pure_entry(struct moe_conform *conform)
{
    moe_plugin_init_fn *init = moe_conform_open_entry(conform);
    struct moe_host host;
    moe_conform_services_init(conform, &host);
    const struct moe_host host_before = host;
    struct moe_error error;
    memset(&error, MOE_CONFORM_POISON, sizeof error);
    error.struct_size = sizeof error;
    const struct moe_error error_before = error;
    const struct moe_plugin_api *api = init(&host, &error);
    if (api == NULL) {
        moe_conform_fail(conform, "it refuses its own version: %s", error.message);
    }
    if (memcmp(&error, &error_before, sizeof error) != 0 ||
        memcmp(&host, &host_before, sizeof host) != 0) {
        moe_conform_fail(conform, "it wrote to `error` or `host` although it succeeded");
    }
    if (init(&host, NULL) != api) {
        moe_conform_fail(conform, "a second call gives another table");
    }
    if (conform->allocator.num_calls != 0 || conform->allocator.num_log_lines != 0) {
        moe_conform_fail(conform, "it called the host's services");
    }
    if (api->struct_size < offsetof(struct moe_plugin_api, self_test) + sizeof api->self_test ||
        api->flags != 0 || api->abi_major != MOE_ABI_MAJOR ||
        (MOE_ABI_MAJOR == 0 && api->abi_minor != MOE_ABI_MINOR) ||
        (MOE_ABI_MAJOR == 0 && api->layout_hash != MOE_ABI_LAYOUT_HASH)) {
        moe_conform_fail(conform, "the table's size, version, flags or layout hash is wrong");
    }
    check_members(conform, api);
    MOE_INIT(error);
    if (init(NULL, &error) != NULL || error.message[0] == '\0') {
        moe_conform_fail(conform, "a NULL host is not refused with a sentence");
    }
}

void moe_conform_check_versions(struct moe_conform *conform)
{
    moe_plugin_init_fn *init = moe_conform_open_entry(conform);
    static const struct {
        const char *what;
        uint32_t major_step;
        uint32_t minor_step;
        uint64_t hash_bits;
    } hosts[] = {
        {"the next major version", 1, 0, 0},
        {"the next minor version", 0, 1, 0},
        {"the minor version before", 0, UINT32_MAX, 0},
        {"another layout", 0, 0, 1},
    };
    for (size_t i = 0; i < sizeof hosts / sizeof hosts[0]; ++i) {
        struct moe_host host;
        struct moe_error error;
        if (MOE_ABI_MAJOR > 0 && hosts[i].major_step == 0) {
            continue; /* from 1.0 on minors and layouts may differ */
        }
        moe_conform_services_init(conform, &host);
        MOE_INIT(error);
        host.abi_major += hosts[i].major_step;
        host.abi_minor += hosts[i].minor_step;
        host.layout_hash ^= hosts[i].hash_bits;
        if (init(&host, &error) != NULL) {
            moe_conform_fail(conform, "a host of %s gets the table", hosts[i].what);
        }
        if (error.status != MOE_STATUS_VERSION) {
            moe_conform_fail(conform, "a host of %s is refused with status %d instead of VERSION",
                             hosts[i].what, error.status);
        }
    }
}

/* ---------------------------------------------------------------- P5, P10 */

void moe_conform_check_unload(struct moe_conform *conform)
{
    moe_conform_open(conform, 2);
    moe_conform_call_run(&moe_conform_calls[0], conform);
    moe_conform_close(conform);
    if (conform->allocator.num_live != 0) {
        moe_conform_fail(conform, "%lld blocks of host memory were not given back",
                         (long long)conform->allocator.num_live);
    }
    if (conform->allocator.num_wrong_frees != 0) {
        moe_conform_fail(conform,
                         "memory_free was told another size or alignment than memory_alloc");
    }
    dlclose(conform->image);
    if (dlopen(conform->path, RTLD_NOW | RTLD_NOLOAD) != NULL) {
        moe_conform_fail(conform, "it stays mapped after dlclose");
    }
}

void moe_conform_check_append_only(struct moe_conform *conform)
{
    moe_conform_skip(conform, "not visible in one build: the layout hash of P4 stands for it");
}
