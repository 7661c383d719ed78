/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "cli_fixture.h"

#include <sys/stat.h>

#include "moe_plugin.h"

static struct fixture_folder folder;
static char path[FIXTURE_PATH_BYTES];

static int set_up(void **state)
{
    (void)state;
    fixture_create(&folder);
    fixture_join(&folder, "a.safetensors", path);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    fixture_destroy(&folder);
    return 0;
}

static void assert_refused(const char *part)
{
    struct moe_safetensors *file = NULL;
    struct moe_cli_error error = {.message = ""};
    assert_int_equal(moe_safetensors_open(path, &file, &error), -1);
    assert_null(file);
    fixture_assert_contains(error.message, part);
    fixture_assert_contains(error.message, path);
}

static struct moe_safetensors *open_good(void)
{
    struct moe_safetensors *file = NULL;
    struct moe_cli_error error = {.message = ""};
    if (moe_safetensors_open(path, &file, &error) != 0) {
        fail_msg("%s", error.message);
    }
    return file;
}

/* Two tensors with a hole between them, one empty tensor, one number, one of a type that nobody
 * knows. */
static const char good_header[] =
    "{\"__metadata__\":{\"format\":\"pt\",\"who\":\"caf\\u00e9\"},"
    "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
    "\"a\":{\"data_offsets\":[16,32],\"shape\":[4],\"dtype\":\"F32\"},"
    "\"empty\":{\"dtype\":\"F64\",\"shape\":[7,0],\"data_offsets\":[3,3]},"
    "\"number\":{\"dtype\":\"I32\",\"shape\":[],\"data_offsets\":[32,36]},"
    "\"new\":{\"dtype\":\"F3_X\",\"shape\":[5],\"data_offsets\":[36,38]}}   ";
enum { good_data_bytes = 38 };

static void reads_what_is_there(void **state)
{
    (void)state;
    fixture_write_raw(path, good_header, good_data_bytes);
    struct moe_safetensors *file = open_good();
    assert_string_equal(moe_safetensors_path(file), path);
    assert_int_equal(moe_safetensors_num_tensors(file), 5);
    assert_string_equal(moe_safetensors_tensor(file, 0)->name, "a");
    assert_string_equal(moe_safetensors_tensor(file, 4)->name, "number");

    const struct moe_safetensors_tensor *b = moe_safetensors_find(file, "b");
    assert_non_null(b);
    assert_int_equal(b->dtype, MOE_SAFETENSORS_BF16);
    assert_int_equal(b->moe_dtype, MOE_DTYPE_BF16);
    assert_int_equal(b->rank, 2);
    assert_int_equal(b->shape[0], 2);
    assert_int_equal(b->shape[1], 3);
    assert_int_equal(b->num_elements, 6);
    assert_int_equal(b->data_bytes, 12);
    for (unsigned i = 0; i < 12; ++i) {
        assert_int_equal(((const unsigned char *)b->data)[i], i);
    }
    const struct moe_safetensors_tensor *a = moe_safetensors_find(file, "a");
    assert_int_equal(((const unsigned char *)a->data)[0], 16);
    assert_int_equal(a->moe_dtype, MOE_DTYPE_FP32);
    assert_int_equal(moe_safetensors_find(file, "empty")->num_elements, 0);
    const struct moe_safetensors_tensor *number = moe_safetensors_find(file, "number");
    assert_int_equal(number->rank, 0);
    assert_int_equal(number->num_elements, 1);
    assert_int_equal(number->moe_dtype, 0);
    const struct moe_safetensors_tensor *unknown = moe_safetensors_find(file, "new");
    assert_int_equal(unknown->dtype, MOE_SAFETENSORS_UNKNOWN);
    assert_int_equal(unknown->moe_dtype, 0);
    assert_string_equal(unknown->dtype_name, "F3_X");

    assert_null(moe_safetensors_find(file, "c"));
    assert_null(moe_safetensors_find(file, ""));
    assert_null(moe_safetensors_find(file, "__metadata__"));
    assert_string_equal(moe_safetensors_find_metadata(file, "format"), "pt");
    assert_string_equal(moe_safetensors_find_metadata(file, "who"), "caf\xc3\xa9");
    assert_null(moe_safetensors_find_metadata(file, "b"));
    moe_safetensors_close(file);
}

static void reads_an_empty_file_of_the_format(void **state)
{
    (void)state;
    fixture_write_raw(path, "{}", 0);
    struct moe_safetensors *file = open_good();
    assert_int_equal(moe_safetensors_num_tensors(file), 0);
    assert_null(moe_safetensors_find(file, "a"));
    assert_null(moe_safetensors_find_metadata(file, "format"));
    moe_safetensors_close(file);
    moe_safetensors_close(NULL);
}

static void every_type_has_its_size(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t num_elements;
        int num_bytes;
    } types[] = {{"F64", 3, 24},    {"F32", 3, 12},    {"F16", 3, 6},  {"BF16", 3, 6},
                 {"F8_E4M3", 3, 3}, {"F8_E5M2", 3, 3}, {"I64", 3, 24}, {"I32", 3, 12},
                 {"I16", 3, 6},     {"I8", 3, 3},      {"U64", 3, 24}, {"U32", 3, 12},
                 {"U16", 3, 6},     {"U8", 3, 3},      {"BOOL", 3, 3}, {"F8_E8M0", 3, 3},
                 {"F4", 4, 2},      {"F6_E2M3", 4, 3}, {"C64", 3, 24}, {"F6_E3M2", 4, 3}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; ++i) {
        for (int excess = -1; excess <= 1; ++excess) {
            char header[256];
            snprintf(header, sizeof header,
                     "{\"x\":{\"dtype\":\"%s\",\"shape\":[%" PRId64 "],\"data_offsets\":[0,%d]}}",
                     types[i].name, types[i].num_elements, types[i].num_bytes + excess);
            fixture_write_raw(path, header, 64);
            if (excess == 0) {
                moe_safetensors_close(open_good());
            } else {
                assert_refused("does not fit");
            }
        }
    }
}

/* Four bits do not end on a byte. */
static void half_a_byte_is_refused(void **state)
{
    (void)state;
    fixture_write_raw(path, "{\"x\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2);
    assert_refused("does not fit");
}

#define TENSOR(name, dtype, shape, offsets) \
    "\"" name "\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}"

struct hostile {
    const char *header; /* with 16 bytes of data behind it */
    const char *part;   /* of the sentence */
};

static const struct hostile hostile_headers[] = {
    {"", "does not begin with '{'"},
    {"[]", "does not begin with '{'"},
    {" {}", "does not begin with '{'"},
    {"{", "1:"},
    {"{}{}", "1:"},
    {"{\"x\":}", "1:"},
    {"{'x':{}}", "1:"},
    {"{x:{}}", "1:"},
    {"{\"x\":[]}", "tensor 'x': its entry is not a JSON object"},
    {"{\"x\":\"y\"}", "tensor 'x': its entry is not a JSON object"},
    {"{\"x\":{}}", "is missing from its entry"},
    {"{\"x\":{\"dtype\":\"U8\",\"shape\":[1]}}", "is missing from its entry"},
    {"{\"x\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", "is missing from its entry"},
    {"{\"x\":{\"shape\":[1],\"data_offsets\":[0,1]}}", "is missing from its entry"},
    {"{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"more\":1}}",
     "unknown member 'more'"},
    {"{\"x\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", "dtype"},
    {"{" TENSOR("x", "\"U8\"", "[1]", "[0,1]") "," TENSOR("x", "\"U8\"", "[1]", "[1,2]") "}", "x"},
    {"{" TENSOR("x", "1", "[1]", "[0,1]") "}", "dtype is not a string"},
    {"{" TENSOR("x", "null", "[1]", "[0,1]") "}", "dtype is not a string"},
    {"{" TENSOR("x", "\"U8\"", "1", "[0,1]") "}", "shape is not a list"},
    {"{" TENSOR("x", "\"U8\"", "[-1]", "[0,1]") "}", "shape has an entry"},
    {"{" TENSOR("x", "\"U8\"", "[1.5]", "[0,1]") "}", "shape has an entry"},
    {"{" TENSOR("x", "\"U8\"", "[\"1\"]", "[0,1]") "}", "shape has an entry"},
    {"{" TENSOR("x", "\"U8\"", "[[1]]", "[0,1]") "}", "shape has an entry"},
    {"{" TENSOR("x", "\"U8\"", "[99999999999999999999]", "[0,1]") "}", "shape has an entry"},
    {"{" TENSOR("x", "\"U8\"", "[1,1,1,1,1,1,1,1,1]", "[0,1]") "}", "9 dimensions"},
    {"{" TENSOR("x", "\"U8\"", "[4294967296,4294967296]", "[0,0]") "}", "overflows"},
    {"{" TENSOR("x", "\"U8\"", "[4611686018427387904,4]", "[0,0]") "}", "overflows"},
    {"{" TENSOR("x", "\"F32\"", "[4611686018427387904]", "[0,0]") "}", "does not fit"},
    {"{" TENSOR("x", "\"F64\"", "[2305843009213693952]", "[0,0]") "}", "does not fit"},
    {"{" TENSOR("x", "\"U8\"", "[1]", "0") "}", "data_offsets is not a pair"},
    {"{" TENSOR("x", "\"U8\"", "[1]", "[0]") "}", "data_offsets is not a pair"},
    {"{" TENSOR("x", "\"U8\"", "[1]", "[0,1,2]") "}", "data_offsets is not a pair"},
    {"{" TENSOR("x", "\"U8\"", "[1]", "[-1,0]") "}", "data_offsets is not a pair"},
    {"{" TENSOR("x", "\"U8\"", "[1]", "[0,\"1\"]") "}", "data_offsets is not a pair"},
    {"{" TENSOR("x", "\"U8\"", "[1]", "[18446744073709551615,0]") "}",
     "data_offsets is not a pair"},
    {"{" TENSOR("x", "\"U8\"", "[1]", "[2,1]") "}", "do not lie within"},
    {"{" TENSOR("x", "\"U8\"", "[1]", "[16,17]") "}", "do not lie within"},
    {"{" TENSOR("x", "\"U8\"", "[1]", "[9223372036854775806,9223372036854775807]") "}",
     "do not lie within"},
    {"{" TENSOR("x", "\"new\"", "[1]", "[0,17]") "}", "do not lie within"},
    {"{" TENSOR("x", "\"U8\"", "[3]", "[0,2]") "}", "does not fit"},
    {"{" TENSOR("x", "\"U8\"", "[8]", "[0,8]") "," TENSOR("y", "\"U8\"", "[8]", "[7,15]") "}",
     "'x' and 'y' overlap"},
    {"{" TENSOR("x", "\"U8\"", "[16]", "[0,16]") "," TENSOR("y", "\"U8\"", "[1]", "[4,5]") "}",
     "'x' and 'y' overlap"},
    {"{" TENSOR("x", "\"U8\"", "[8]", "[0,8]") "," TENSOR("e", "\"U8\"", "[0]", "[4,4]") "," TENSOR(
         "y", "\"U8\"", "[8]", "[4,12]") "}",
     "overlap"},
    {"{" TENSOR("x", "\"U8\"", "[8]", "[0,8]") "," TENSOR("y", "\"U8\"", "[8]", "[0,8]") "}",
     "overlap"},
    {"{\"__metadata__\":[]}", "__metadata__ is not a JSON object"},
    {"{\"__metadata__\":{\"a\":1}}", "__metadata__ 'a' is not a string"},
    {"{\"__metadata__\":{\"a\":{}}}", "__metadata__ 'a' is not a string"},
};

static void hostile_headers_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof hostile_headers / sizeof hostile_headers[0]; ++i) {
        fixture_write_raw(path, hostile_headers[i].header, 16);
        assert_refused(hostile_headers[i].part);
    }
}

static void deep_nesting_is_refused(void **state)
{
    (void)state;
    enum { depth = 100000 };
    char *header = malloc(depth + 16);
    assert_non_null(header);
    snprintf(header, depth, "{\"x\":");
    memset(header + 5, '[', depth);
    header[5 + depth] = '\0';
    fixture_write_raw(path, header, 0);
    free(header);
    assert_refused("1:");
}

static void bad_lengths_are_refused(void **state)
{
    (void)state;
    static const uint64_t lengths[] = {3,          100000000, 100000001, UINT32_MAX,
                                       UINT64_MAX, INT64_MAX, 1u << 31,  UINT64_MAX - 7};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; ++i) {
        unsigned char bytes[10] = {0};
        fixture_put_length(bytes, lengths[i]);
        bytes[8] = '{';
        bytes[9] = '}';
        fixture_write(path, bytes, sizeof bytes);
        assert_refused(lengths[i] > 100000000 ? "above the format's limit" : "past the end");
    }
}

static void every_truncation_is_refused(void **state)
{
    (void)state;
    fixture_write_raw(path, good_header, good_data_bytes);
    size_t num_bytes;
    unsigned char *bytes = fixture_read(path, &num_bytes);
    for (size_t kept = 0; kept < num_bytes; ++kept) {
        fixture_write(path, bytes, kept);
        assert_refused("");
    }
    free(bytes);
}

/* Bytes changed at random: each file is refused, or all it describes can be read. The file ends
 * with a page, so that a read past its end faults. */
static void random_damage_is_survived(void **state)
{
    (void)state;
    enum { file_bytes = 4096, num_rounds = 3000 };
    static unsigned char good[file_bytes];
    static unsigned char bytes[file_bytes];
    fixture_put_length(good, strlen(good_header));
    memcpy(good + 8, good_header, sizeof good_header); /* the NUL is a byte of data */
    uint64_t random = 20240607;
    int num_opened = 0;
    for (int round = 0; round < num_rounds; ++round) {
        memcpy(bytes, good, file_bytes);
        for (int i = 0; i <= round % 3; ++i) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            const size_t at = (size_t)(random >> 33) % (8 + strlen(good_header));
            static const unsigned char likely[] = "0123456789-{}[]\",:eE.";
            const unsigned byte = (unsigned)(random >> 20) & 0xFF;
            bytes[at] = round % 2 == 0 ? likely[byte % (sizeof likely - 1)] : (unsigned char)byte;
        }
        fixture_write(path, bytes, file_bytes);
        struct moe_safetensors *file = NULL;
        struct moe_cli_error error = {.message = ""};
        if (moe_safetensors_open(path, &file, &error) != 0) {
            assert_true(strlen(error.message) > 0);
            continue;
        }
        num_opened += 1;
        uint64_t sum = 0;
        for (size_t i = 0; i < moe_safetensors_num_tensors(file); ++i) {
            const struct moe_safetensors_tensor *tensor = moe_safetensors_tensor(file, i);
            for (uint64_t at = 0; at < tensor->data_bytes; ++at) {
                sum += ((const unsigned char *)tensor->data)[at];
            }
        }
        assert_true(sum < UINT64_MAX); /* uses it, so that the reads stay */
        moe_safetensors_close(file);
    }
    assert_in_range(num_opened, 1, num_rounds - 1);
}

static void other_things_than_files_are_refused(void **state)
{
    (void)state;
    assert_refused("cannot open");
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_refused("not a regular file");
    assert_int_equal(remove(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_refused("not a regular file");
    assert_int_equal(rmdir(path), 0);
    fixture_write(path, "", 0);
    assert_refused("too few");
}

static void shapes_are_written(void **state)
{
    (void)state;
    const int64_t shape[] = {2, 0, 9223372036854775807};
    char text[MOE_SAFETENSORS_SHAPE_BYTES];
    assert_string_equal(moe_safetensors_format_shape(shape, 0, text, sizeof text), "[]");
    assert_string_equal(moe_safetensors_format_shape(shape, 1, text, sizeof text), "[2]");
    assert_string_equal(moe_safetensors_format_shape(shape, 3, text, sizeof text),
                        "[2, 0, 9223372036854775807]");
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(reads_what_is_there),         TEST(reads_an_empty_file_of_the_format),
        TEST(every_type_has_its_size),     TEST(half_a_byte_is_refused),
        TEST(hostile_headers_are_refused), TEST(deep_nesting_is_refused),
        TEST(bad_lengths_are_refused),     TEST(every_truncation_is_refused),
        TEST(random_damage_is_survived),   TEST(other_things_than_files_are_refused),
        TEST(shapes_are_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
