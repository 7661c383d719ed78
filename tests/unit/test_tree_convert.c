/* SPDX-License-Identifier: Apache-2.0 */
#include "test_tree.h"

#include "support_random.h"

#include <inttypes.h>
#include <math.h>

static struct moe_tree_node plain(const char *text)
{
    struct moe_tree_node node = {.kind = MOE_NODE_SCALAR, .line = 1, .column = 1};

    node.text = text;
    node.text_bytes = strlen(text);
    return node;
}

static struct moe_tree_node quoted(const char *text)
{
    struct moe_tree_node node = plain(text);

    node.quoted = 1;
    return node;
}

static const struct moe_tree_node sequence = {.kind = MOE_NODE_SEQUENCE};

static void check_int64(const char *text, int64_t value)
{
    struct moe_tree_node node = plain(text);
    int64_t out = 0;

    assert_int_equal(moe_tree_to_int64(&node, INT64_MIN, INT64_MAX, &out), 0);
    assert_true(out == value);
}

static void test_int64(void **state)
{
    static const char *const wrong[] = {"",
                                        "-",
                                        "+1",
                                        "01",
                                        "-01",
                                        "1.0",
                                        "1e3",
                                        "0x10",
                                        "1_000",
                                        " 1",
                                        "1 ",
                                        "abc",
                                        "1:30",
                                        "--1",
                                        "½",
                                        "inf",
                                        "true",
                                        "~",
                                        "0o7",
                                        "1,000",
                                        "9223372036854775808",
                                        "-9223372036854775809",
                                        "18446744073709551616",
                                        "99999999999999999999999999"};
    struct moe_tree_node node = plain("64");
    struct moe_tree_node string = quoted("64");
    int64_t out = 77;

    (void)state;
    check_int64("0", 0);
    check_int64("-0", 0);
    check_int64("64", 64);
    check_int64("-1", -1);
    check_int64("9223372036854775807", INT64_MAX);
    check_int64("-9223372036854775808", INT64_MIN);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct moe_tree_node bad = plain(wrong[i]);

        assert_int_equal(moe_tree_to_int64(&bad, INT64_MIN, INT64_MAX, &out), -1);
    }
    assert_int_equal(moe_tree_to_int64(&node, 65, 100, &out), -1);
    assert_int_equal(moe_tree_to_int64(&node, 0, 63, &out), -1);
    assert_int_equal(moe_tree_to_int64(&string, 0, 100, &out), -1);
    assert_int_equal(moe_tree_to_int64(&sequence, 0, 100, &out), -1);
    assert_int_equal(moe_tree_to_int64(NULL, 0, 100, &out), -1);
    assert_int_equal(out, 77);
    assert_int_equal(moe_tree_to_int64(&node, 64, 64, &out), 0);
    assert_int_equal(out, 64);
}

/* The exact bits, so that -0 and the last place count. */
static void check_double(const char *text, double value)
{
    struct moe_tree_node node = plain(text);
    double out = 12345;
    uint64_t out_bits;
    uint64_t value_bits;
    int status = moe_tree_to_double(&node, &out);

    memcpy(&out_bits, &out, sizeof out);
    memcpy(&value_bits, &value, sizeof value);
    if (status != 0 || out_bits != value_bits) {
        fail_msg("%s gives %a, not %a", text, out, value);
    }
}

static void check_no_double(const char *text)
{
    struct moe_tree_node node = plain(text);
    double out = 77;

    if (moe_tree_to_double(&node, &out) != -1 || out != 77) {
        fail_msg("%s gives %a", text, out);
    }
}

static void test_double(void **state)
{
    static const char *const wrong[] = {"",
                                        "-",
                                        "+1",
                                        ".5",
                                        "1.",
                                        "1e",
                                        "1e+",
                                        "01",
                                        "nan",
                                        "inf",
                                        "Infinity",
                                        "0x1p3",
                                        "1,5",
                                        " 1",
                                        "1 ",
                                        "1f",
                                        "1e1.5",
                                        "1e309",
                                        "-1e309",
                                        "1e-400",
                                        "2e-324",
                                        "1e99999999999999999999",
                                        "1e-99999999999999999999"};
    struct moe_tree_node string = quoted("1.5");
    double out = 77;

    (void)state;
    check_double("0", 0.0);
    check_double("-0", -0.0);
    check_double("0e99999999999999999999", 0.0);
    check_double("1", 1.0);
    check_double("-2.5e-3", -0x1.47ae147ae147bp-9);
    check_double("0.1", 0x1.999999999999ap-4);
    check_double("1e23", 0x1.52d02c7e14af6p+76);
    check_double("9007199254740993", 9007199254740992.0); /* ties to even */
    check_double("9007199254740995", 9007199254740996.0);
    check_double("9007199254740993.00000000000000000000000000000000000001", 9007199254740994.0);
    check_double("1.7976931348623157e308", 0x1.fffffffffffffp1023);
    check_double("1.7976931348623158e308", 0x1.fffffffffffffp1023);
    check_no_double("1.797693134862315808e308"); /* rounds to 2^1024 */
    check_double("2.2250738585072014e-308", 0x1p-1022);
    check_double("2.2250738585072011e-308", 0x0.fffffffffffffp-1022);
    check_double("4.9406564584124654e-324", 0x1p-1074);
    check_double("2.4703282292062328e-324", 0x1p-1074); /* just above half of it */
    check_no_double("2.4703282292062327e-324");         /* just below */
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        check_no_double(wrong[i]);
    }
    assert_int_equal(moe_tree_to_double(&string, &out), -1);
    assert_int_equal(moe_tree_to_double(&sequence, &out), -1);
    assert_int_equal(moe_tree_to_double(NULL, &out), -1);
    assert_true(out == 77);
}

/* Long texts: zeros in front and behind, and a digit beyond all that are kept. */
static void test_long_doubles(void **state)
{
    size_t text_bytes;
    char *text = repeat_text("0.", "0", 100000, "125e100000", &text_bytes);

    (void)state;
    check_double(text, 0.125);
    free(text);
    text = repeat_text("125", "0", 100000, "e-100003", &text_bytes);
    check_double(text, 0.125);
    free(text);
    text = repeat_text("9007199254740993.", "0", 5000, "1", &text_bytes);
    check_double(text, 9007199254740994.0);
    free(text);
}

/* Against the C library, which in the "C" locale rounds correctly: random bits, printed in full and
 * cut to random lengths, and random digits. */
static void test_double_against_strtod(void **state)
{
    struct support_random random;

    (void)state;
    support_random_seed(&random, 20240607);
    for (int i = 0; i < 20000; i++) {
        uint64_t bits = support_random_u64(&random);
        char text[512];
        double value;

        if (i % 4 == 0) {
            bits &= UINT64_C(0x800FFFFFFFFFFFFF); /* subnormal */
        }
        memcpy(&value, &bits, sizeof value);
        if (!isfinite(value)) {
            continue;
        }
        snprintf(text, sizeof text, "%.*e", (int)(support_random_u64(&random) % 25), value);
        value = strtod(text, NULL);
        if (isfinite(value) && value != 0.0) {
            check_double(text, value);
        }
        snprintf(text, sizeof text, "%" PRIu64 ".%" PRIu64 "e%d", support_random_u64(&random),
                 support_random_u64(&random), (int)(support_random_u64(&random) % 680) - 340);
        value = strtod(text, NULL);
        if (isfinite(value) && value != 0.0) {
            check_double(text, value);
        }
    }
}

static void test_bool_null_and_text(void **state)
{
    static const char *const wrong[] = {"", "True", "TRUE", "yes", "no", "on", "1", "0", "truee"};
    struct moe_tree_node is_true = plain("true");
    struct moe_tree_node is_false = plain("false");
    struct moe_tree_node string = quoted("true");
    int out = 77;

    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct moe_tree_node bad = plain(wrong[i]);

        assert_int_equal(moe_tree_to_bool(&bad, &out), -1);
    }
    assert_int_equal(moe_tree_to_bool(&string, &out), -1);
    assert_int_equal(moe_tree_to_bool(&sequence, &out), -1);
    assert_int_equal(moe_tree_to_bool(NULL, &out), -1);
    assert_int_equal(out, 77);
    assert_int_equal(moe_tree_to_bool(&is_true, &out), 0);
    assert_int_equal(out, 1);
    assert_int_equal(moe_tree_to_bool(&is_false, &out), 0);
    assert_int_equal(out, 0);

    assert_true(moe_tree_is_null(&(struct moe_tree_node){.kind = MOE_NODE_SCALAR, .text = ""}));
    string = plain("null");
    assert_true(moe_tree_is_null(&string));
    string = plain("~");
    assert_true(moe_tree_is_null(&string));
    string = quoted("null");
    assert_false(moe_tree_is_null(&string));
    assert_true(moe_tree_is_text(&string, "null"));
    assert_false(moe_tree_is_text(&string, "nul"));
    assert_false(moe_tree_is_text(&sequence, ""));
    assert_false(moe_tree_is_text(NULL, ""));
    assert_false(moe_tree_is_null(&sequence));
    assert_false(moe_tree_is_null(NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_int64),
        cmocka_unit_test(test_double),
        cmocka_unit_test(test_long_doubles),
        cmocka_unit_test(test_double_against_strtod),
        cmocka_unit_test(test_bool_null_and_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
