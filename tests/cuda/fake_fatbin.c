/* SPDX-License-Identifier: Apache-2.0 */
#include "fake_fatbin.h"

#include <stddef.h>
#include <string.h>

enum { KIND_MACHINE_CODE = 2 };
#define FATBIN_MAGIC UINT32_C(0xba55ed50)

/* As nvcc 13 writes them; what follows in an entry's header is of no matter here. */
struct header {
    uint32_t magic;
    uint16_t version;
    uint16_t header_bytes;
    uint64_t bytes; /* of all entries */
};
struct entry {
    uint16_t kind;
    uint16_t version;
    uint32_t header_bytes;
    uint64_t bytes; /* behind the entry's header */
    uint32_t stored_bytes;
    uint32_t reserved;
    uint16_t minor;
    uint16_t major;
    uint32_t sm;
};

int32_t fake_fatbin_pick(const void *image, int32_t sm)
{
    const unsigned char *at = image;
    struct header header;
    int32_t best = 0;
    memcpy(&header, at, sizeof(header));
    if (header.magic != FATBIN_MAGIC) {
        return 0;
    }
    at += header.header_bytes;
    for (uint64_t left = header.bytes; left >= sizeof(struct entry);) {
        struct entry entry;
        memcpy(&entry, at, sizeof(entry));
        const uint64_t step = entry.header_bytes + entry.bytes;
        const int32_t code_sm = (int32_t)entry.sm;
        if (entry.header_bytes < sizeof(entry) || step > left) {
            return 0;
        }
        if (entry.kind == KIND_MACHINE_CODE && code_sm / 10 == sm / 10 && code_sm <= sm &&
            code_sm > best) {
            best = code_sm;
        }
        at += step;
        left -= step;
    }
    return best;
}
