/* SPDX-License-Identifier: Apache-2.0 */
#include "sha256.h"

#include <string.h>

enum { BLOCK_BYTES = 64, LENGTH_BYTES = 8, NUM_ROUNDS = 64 };

/* First 32 bits of the fractional parts of the cube roots of the first 64 primes. */
static const uint32_t round_constants[NUM_ROUNDS] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate_right(uint32_t value, int bits)
{
    return value >> bits | value << (32 - bits);
}

static uint32_t read_big_endian(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 |
           (uint32_t)bytes[3];
}

static void expand_block(const uint8_t block[BLOCK_BYTES], uint32_t schedule[NUM_ROUNDS])
{
    for (int i = 0; i < 16; i++) {
        schedule[i] = read_big_endian(block + 4 * i);
    }
    for (int i = 16; i < NUM_ROUNDS; i++) {
        uint32_t near = schedule[i - 2];
        uint32_t far = schedule[i - 15];
        uint32_t near_mix = rotate_right(near, 17) ^ rotate_right(near, 19) ^ near >> 10;
        uint32_t far_mix = rotate_right(far, 7) ^ rotate_right(far, 18) ^ far >> 3;
        schedule[i] = schedule[i - 16] + far_mix + schedule[i - 7] + near_mix;
    }
}

static void add_block(uint32_t state[8], const uint8_t block[BLOCK_BYTES])
{
    uint32_t schedule[NUM_ROUNDS];
    expand_block(block, schedule);
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < NUM_ROUNDS; i++) {
        uint32_t e_mix = rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25);
        uint32_t choice = (e & f) ^ (~e & g);
        uint32_t step = h + e_mix + choice + round_constants[i] + schedule[i];
        uint32_t a_mix = rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22);
        uint32_t majority = (a & b) ^ (a & c) ^ (b & c);
        h = g;
        g = f;
        f = e;
        e = d + step;
        d = c;
        c = b;
        b = a;
        a = step + a_mix + majority;
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
    state[4] += e;
    state[5] += f;
    state[6] += g;
    state[7] += h;
}

void moe_sha256_digest(const void *bytes, size_t num_bytes, uint8_t digest[MOE_SHA256_BYTES])
{
    /* First 32 bits of the fractional parts of the square roots of the first 8 primes. */
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    const uint8_t *next = bytes;
    size_t rest = num_bytes;
    for (; rest >= BLOCK_BYTES; rest -= BLOCK_BYTES, next += BLOCK_BYTES) {
        add_block(state, next);
    }

    /* The rest, one set bit, zeros, and the length in bits: one block, or two if it does not fit.
     */
    uint8_t tail[2 * BLOCK_BYTES] = {0};
    if (rest > 0) {
        memcpy(tail, next, rest);
    }
    tail[rest] = 0x80;
    size_t tail_bytes = rest + 1 + LENGTH_BYTES <= BLOCK_BYTES ? BLOCK_BYTES : 2 * BLOCK_BYTES;
    uint64_t num_bits = (uint64_t)num_bytes * 8;
    for (size_t i = 0; i < LENGTH_BYTES; i++) {
        tail[tail_bytes - 1 - i] = (uint8_t)(num_bits >> (8 * i));
    }
    for (size_t at = 0; at < tail_bytes; at += BLOCK_BYTES) {
        add_block(state, tail + at);
    }
    for (int i = 0; i < MOE_SHA256_BYTES; i++) {
        digest[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
    }
}

void moe_sha256_hex(const void *bytes, size_t num_bytes, char hex[MOE_SHA256_HEX_BYTES])
{
    uint8_t digest[MOE_SHA256_BYTES];
    moe_sha256_digest(bytes, num_bytes, digest);
    for (int i = 0; i < MOE_SHA256_BYTES; i++) {
        hex[2 * i] = "0123456789abcdef"[digest[i] >> 4];
        hex[2 * i + 1] = "0123456789abcdef"[digest[i] & 15];
    }
    hex[2 * MOE_SHA256_BYTES] = '\0';
}
