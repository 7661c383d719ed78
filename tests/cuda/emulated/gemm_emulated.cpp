/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source of the grouped GEMM on an emulated sm_90a (sm90.h): every tile, tokens gathered and in
 * order, each kind of segment, against plain loops in double. Random interleavings show deadlocks,
 * arrivals that do not add up, and copies that come before or after their time.
 * Argument: a number of rounds; the seed of a failing one is printed.
 */
#include "sm90_wgmma.h"

#include "../../../kernels/cuda/gemm.cuh"

namespace
{

struct Tile {
    const char *name;
    int32_t bm, bn, bk, warps, stages, ctas;
    void (*forms[MOE_CUDA_GEMM_NUM_FORMS])(const struct moe_cuda_gemm &args); /* nullptr: none */
};

template <int kForm, int bm, int bn, int bk, int group, int warps, int stages, int ctas>
constexpr auto form_of()
{
    void (*run)(const struct moe_cuda_gemm &) = nullptr;
    if constexpr (MOE_CUDA_GEMM_HAS_FORM(kForm, bm, bn, warps)) {
        run = moe_gemm_run<moe_gemm_tile<bm, bn, bk, group, warps, stages, ctas, kForm>>;
    }
    return run;
}

#define ROW_CPU_C11(...)
#define ROW_CPU_AVX2(...)
#define ROW_SM90_GEMM(...) ROW_OF("sm90.gemm", 1, __VA_ARGS__)
#define ROW_SM90_PAIR(...) ROW_OF("sm90.pair", MOE_KERNEL_CTAS_SM90_PAIR, __VA_ARGS__)
#define ROW_OF(name, ctas, bm, bn, bk, group, warps, stages)                       \
    {name " " #bm,                                                                 \
     bm,                                                                           \
     bn,                                                                           \
     bk,                                                                           \
     warps,                                                                        \
     stages,                                                                       \
     ctas,                                                                         \
     {form_of<MOE_CUDA_GEMM_ROWS, bm, bn, bk, group, warps, stages, ctas>(),       \
      form_of<MOE_CUDA_GEMM_TRANSPOSED, bm, bn, bk, group, warps, stages, ctas>(), \
      form_of<MOE_CUDA_GEMM_PAIRED, bm, bn, bk, group, warps, stages, ctas>()}},
const Tile tiles[] = {
#define MOE_TILE_GEMM(kernel, bm, bn, bk, group_m, warps, stages) \
    ROW_##kernel(bm, bn, bk, group_m, warps, stages)
#include "tiles.def"
};

uint64_t state;

uint64_t draw(uint64_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (state >> 11) % below;
}

float draw_value()
{
    return float(int64_t(draw(2001)) - 1000) / 1000.0f;
}

uint16_t narrow(float value, bool is_half)
{
    return uint16_t(moe_gemm_narrow(value, is_half ? MOE_DTYPE_FP16 : MOE_DTYPE_BF16));
}

float widen(uint16_t bits, bool is_half)
{
    if (is_half) {
        __half value;
        memcpy(&value, &bits, 2);
        return __half2float(value);
    }
    return __int_as_float(int32_t(uint32_t(bits) << 16));
}

enum Kind { SEGMENTS, MASKED, BLOCKS, NUM_KINDS };

struct Problem {
    bool is_half, is_gathered, has_activation, scatters, has_bias, has_weights;
    Kind kind;
    int32_t layout; /* of the weights: a form of the GEMM */
    int32_t num_experts, n, k, num_matrices, div;
    int64_t num_rows, num_tokens;
    std::vector<int64_t> indptr;
    std::vector<int32_t> masked, expert_ids, row_ids;
    int32_t padded, block_size;
    int64_t max_masked;
    std::vector<uint16_t> input, weight, bias, output;
    std::vector<float> row_weights;
    /* SEGMENTS that a sort is still to write: what it sorts. */
    bool is_counted;
    std::vector<int64_t> ids;
    std::vector<int32_t> narrow_ids, expert_map;
    int32_t first_id, num_tokens_device, top_k;
    bool is_sorted; /* by the GEMM itself; row_ids are what it is to find */
    std::vector<int32_t> src2dst;
    std::vector<int32_t> expert_of; /* position -> expert; -1: zeros; -2: nothing */
};

void fill(std::vector<uint16_t> &to, size_t count, bool is_half, float scale)
{
    to.resize(count);
    for (auto &value : to) {
        value = narrow(draw_value() * scale, is_half);
    }
}

/* Ids of routes whose sort makes p.indptr: local experts begin at first_id, or a map tells them;
 * some routes are filtered, and those of the last tokens do not exist. */
void draw_ids(Problem &p)
{
    p.is_counted = true;
    p.first_id = int32_t(draw(3));
    p.top_k = 1 + int32_t(draw(3));
    const int32_t num_ids = p.num_experts + p.first_id + 2;
    for (int64_t expert : p.expert_of) {
        p.ids.push_back(expert + p.first_id);
        while (draw(4) == 0) {
            p.ids.push_back(draw(2) == 0 ? -1 : num_ids - 1 + int64_t(draw(3)));
        }
    }
    for (size_t i = p.ids.size(); i > 1; i--) {
        std::swap(p.ids[i - 1], p.ids[draw(i)]);
    }
    while (p.ids.size() % size_t(p.top_k) != 0) {
        p.ids.push_back(-1);
    }
    p.num_tokens_device = int32_t(p.ids.size()) / p.top_k;
    p.ids.insert(p.ids.end(), size_t(p.top_k) * draw(3), p.first_id);
    p.narrow_ids.assign(p.ids.begin(), p.ids.end());
    if (draw(2) == 0) {
        p.expert_map.assign(size_t(num_ids), -1);
        for (int32_t e = 0; e < p.num_experts; e++) {
            p.expert_map[size_t(e + p.first_id)] = e;
        }
    }
}

/* The GEMM sorts the routes itself: row_ids and src2dst are what a stable sort makes of them. */
void draw_sorted(const Tile &tile, Problem &p)
{
    const auto num_routes = int64_t(p.ids.size());
    const int64_t staging = MOE_CUDA_GEMM_NUM_CONSUMERS(tile.warps) * MOE_CUDA_GEMM_STAGING_BYTES;
    if (tile.ctas > 1 || num_routes > MOE_CUDA_GEMM_MAX_SORTED || num_routes == 0 ||
        MOE_CUDA_GEMM_SORT_BYTES(num_routes, p.num_experts) > staging || draw(3) == 0) {
        return;
    }
    std::vector<int64_t> next(p.indptr);
    p.is_sorted = p.is_gathered = true;
    p.has_weights = false;
    p.row_ids.assign(size_t(p.num_rows), -1);
    p.src2dst.assign(size_t(num_routes) + 1, -7); /* and a guard */
    for (int64_t route = 0; route < num_routes; route++) {
        const int64_t local = p.ids[size_t(route)] - p.first_id;
        const bool exists = route < int64_t(p.num_tokens_device) * p.top_k;
        if (exists && p.ids[size_t(route)] >= 0 && local >= 0 && local < p.num_experts) {
            p.row_ids[size_t(next[size_t(local)]++)] = int32_t(route);
        }
    }
}

/* Places of src2dst that are not those of the sort. */
int64_t compare_places(const Problem &p)
{
    int64_t num_wrong = 0;
    std::vector<int32_t> expected(p.src2dst.size(), -1);
    if (!p.is_sorted) {
        return 0;
    }
    for (size_t row = 0; row < p.row_ids.size(); row++) {
        if (p.row_ids[row] >= 0) {
            expected[size_t(p.row_ids[row])] = int32_t(row);
        }
    }
    expected.back() = -7;
    for (size_t i = 0; i < expected.size(); i++) {
        num_wrong += expected[i] != p.src2dst[i];
    }
    return num_wrong;
}

struct moe_cuda_gemm_routes make_routes(Problem &p)
{
    struct moe_cuda_gemm_routes routes = {};
    const bool is_wide = draw(2) == 0;
    routes.topk_ids = is_wide ? static_cast<const void *>(p.ids.data()) : p.narrow_ids.data();
    routes.ids_dtype = is_wide ? MOE_IDS_INT64 : MOE_IDS_INT32;
    routes.num_tokens_device = &p.num_tokens_device;
    routes.num_routes = int32_t(p.ids.size());
    routes.top_k = p.top_k;
    routes.src2dst = p.is_sorted ? p.src2dst.data() : nullptr;
    routes.filter.num_ids = p.num_experts + p.first_id + 2;
    routes.filter.num_experts = p.num_experts;
    const bool has_map = !p.expert_map.empty();
    routes.filter.expert_map = has_map ? p.expert_map.data() : nullptr;
    routes.filter.expert_begin = has_map ? 0 : p.first_id;
    routes.filter.expert_end = has_map ? routes.filter.num_ids : p.first_id + p.num_experts;
    return routes;
}

Problem draw_problem(const Tile &tile)
{
    Problem p = {};
    p.is_half = draw(2) == 0;
    const bool gathers = tile.bm <= MOE_CUDA_GEMM_GATHERED_BLOCK_M;
    p.kind = Kind(draw(gathers ? NUM_KINDS : uint64_t(BLOCKS)));
    p.has_activation = draw(2) == 0;
    p.num_matrices = p.has_activation || draw(4) == 0 ? 2 : 1;
    p.has_bias = draw(4) == 0;
    p.has_weights = draw(4) == 0;
    p.num_experts = 1 + int32_t(draw(draw(4) == 0 ? 300 : 4));
    p.layout = int32_t(
        draw(p.num_matrices == 2 ? MOE_CUDA_GEMM_PAIRED + 1 : MOE_CUDA_GEMM_TRANSPOSED + 1));
    p.layout = tile.forms[p.layout] != nullptr ? p.layout : MOE_CUDA_GEMM_ROWS;
    p.n = 8 * (1 + int32_t(draw(uint64_t(tile.bn) / 8 + 8)));
    p.k = draw(2) == 0 ? 64 * (1 + int32_t(draw(5))) : 8 * (1 + int32_t(draw(40)));
    const int64_t most = draw(3) == 0 ? 12 : tile.bm * (tile.bm > 32 ? 2 : 3) + 5;
    const auto rows = [&] { return draw(5) == 0 ? 0 : int64_t(draw(uint64_t(most) + 1)); };
    if (p.kind == SEGMENTS) {
        p.indptr.push_back(0);
        for (int32_t e = 0; e < p.num_experts; e++) {
            p.indptr.push_back(p.indptr.back() + rows());
            p.expert_of.insert(p.expert_of.end(), size_t(p.indptr.back() - p.indptr[size_t(e)]), e);
        }
        p.num_rows = p.indptr.back();
        if (draw(2) == 0) {
            draw_ids(p);
        }
    } else if (p.kind == MASKED) {
        p.max_masked = most;
        p.num_rows = most * p.num_experts;
        p.expert_of.assign(size_t(p.num_rows), -2);
        for (int32_t e = 0; e < p.num_experts; e++) {
            p.masked.push_back(int32_t(rows()));
            for (int64_t i = 0; i < p.masked.back(); i++) {
                p.expert_of[size_t(e * most + i)] = e;
            }
        }
    } else {
        p.block_size = int32_t(16 << draw(5));
        const int32_t num_blocks = 1 + int32_t(draw(4));
        p.padded = num_blocks * p.block_size;
        p.num_rows = p.padded;
        for (int32_t b = 0; b < num_blocks; b++) {
            p.expert_ids.push_back(draw(5) == 0 ? -1 : int32_t(draw(uint64_t(p.num_experts))));
            p.expert_of.insert(p.expert_of.end(), size_t(p.block_size), p.expert_ids.back());
        }
    }
    p.num_rows = p.num_rows > 0 ? p.num_rows : 1;
    p.expert_of.resize(size_t(p.num_rows), -2);
    if (p.is_counted) {
        draw_sorted(tile, p);
    }
    p.is_gathered = p.is_sorted || p.kind == BLOCKS || (gathers && draw(2) == 0);
    p.div = 1;
    p.num_tokens = p.num_rows;
    if (p.is_sorted) {
        p.div = p.top_k;
        p.num_tokens = int64_t(p.ids.size()) / p.top_k;
    } else if (p.is_gathered) {
        p.div = 1 + int32_t(draw(3));
        p.scatters = draw(3) == 0;
        p.num_tokens = (p.num_rows + p.div - 1) / p.div;
        for (int64_t i = 0; i < p.num_rows; i++) {
            p.row_ids.push_back(int32_t(i));
        }
        for (int64_t i = p.num_rows - 1; i > 0; i--) {
            std::swap(p.row_ids[size_t(i)], p.row_ids[size_t(draw(uint64_t(i) + 1))]);
        }
        for (auto &id : p.row_ids) {
            id = draw(12) == 0 ? (draw(2) == 0 ? -1 : int32_t(p.num_rows)) : id;
        }
    }
    fill(p.input, size_t(p.num_tokens * p.k), p.is_half, 1.0f);
    fill(p.weight, size_t(p.num_experts) * size_t(p.num_matrices * p.n) * size_t(p.k), p.is_half,
         0.5f);
    fill(p.bias, size_t(p.num_experts * p.num_matrices * p.n), p.is_half, 1.0f);
    for (int64_t i = 0; i < p.num_rows; i++) {
        p.row_weights.push_back(draw_value());
    }
    return p;
}

/* Where weight (matrix, channel, column) of an expert's stands in p.weight. */
size_t weight_at(const Problem &p, int64_t expert, int64_t matrix, int64_t channel, int64_t column)
{
    const int64_t all = int64_t(p.num_matrices) * p.n;
    const int64_t row =
        p.layout == MOE_CUDA_GEMM_PAIRED ? channel * 2 + matrix : matrix * p.n + channel;
    return size_t(expert * all * p.k +
                  (p.layout == MOE_CUDA_GEMM_ROWS ? row * p.k + column : column * all + row));
}

sm90::Map make_map(const void *base, const uint64_t (&dims)[4], const uint64_t (&strides)[3],
                   uint32_t rows, uint32_t blocks)
{
    sm90::Map map = {};
    map.base = static_cast<const char *>(base);
    memcpy(map.dims, dims, sizeof(dims));
    memcpy(map.strides, strides, sizeof(strides));
    map.box[0] = 64;
    map.box[1] = rows;
    map.box[2] = blocks;
    map.box[3] = 1;
    return map;
}

struct moe_cuda_gemm make_args(const Tile &tile, Problem &p, bool in_order)
{
    struct moe_cuda_gemm args;
    memset(&args, 0, sizeof(args));
    struct moe_op_gemm &op = args.op;
    const uint64_t n = uint64_t(p.n), k = uint64_t(p.k), all = n * uint64_t(p.num_matrices);
    op.num_segments = op.num_experts = p.num_experts;
    op.seg_indptr = p.kind == SEGMENTS ? p.indptr.data() : nullptr;
    op.masked_m = p.kind == MASKED ? p.masked.data() : nullptr;
    op.max_masked_rows = p.max_masked;
    op.expert_ids = p.kind == BLOCKS ? p.expert_ids.data() : nullptr;
    op.num_tokens_post_pad = &p.padded;
    op.block_size = p.block_size;
    op.num_rows = p.num_rows;
    op.num_row_ids = p.is_sorted ? int64_t(p.ids.size()) : p.num_rows;
    op.row_ids = p.is_gathered && !p.is_sorted ? p.row_ids.data() : nullptr;
    op.row_ids_div = p.div;
    op.scatter = p.scatters;
    op.row_weights = p.has_weights ? p.row_weights.data() : nullptr;
    op.input = p.input.data();
    op.input_stride = p.k;
    op.input_dtype = op.output_dtype = p.is_half ? MOE_DTYPE_FP16 : MOE_DTYPE_BF16;
    op.output = p.output.data();
    op.output_stride = p.n * (p.has_activation ? 1 : p.num_matrices);
    op.n = p.n;
    op.k = p.k;
    op.num_matrices = p.num_matrices;
    op.has_activation = p.has_activation;
    op.act.activation = MOE_ACTIVATION_SILU;
    args.is_k_blocked = k % MOE_CUDA_GEMM_BOX_K == 0;
    args.is_output_vectored = draw(4) > 0;
    args.is_early = int32_t(draw(2));
    if (p.is_counted) {
        args.routes = make_routes(p);
        p.indptr.assign(p.indptr.size(), -3); /* nobody has written it */
    }
    for (int32_t m = 0; m < p.num_matrices; m++) {
        const uint16_t *base = p.weight.data() + weight_at(p, 0, m, 0, 0);
        op.bias[m].base = p.has_bias ? p.bias.data() + uint64_t(m) * n : nullptr;
        op.bias[m].dtype = op.input_dtype;
        op.bias[m].expert_stride = int64_t(all);
        op.bias[m].row_stride = 1;
        const uint32_t rows = uint32_t(MOE_CUDA_GEMM_SLAB_ROWS(tile.bn, tile.warps));
        const auto experts = uint64_t(p.num_experts);
        const sm90::Map map =
            p.layout != MOE_CUDA_GEMM_ROWS
                ? make_map(base, {p.layout == MOE_CUDA_GEMM_PAIRED ? all : n, k, 1, experts},
                           {2 * all, 2 * all, 2 * all * k}, uint32_t(tile.bk), 1)
            : args.is_k_blocked
                ? make_map(base, {64, n, k / 64, experts}, {2 * k, 128, 2 * all * k}, rows,
                           uint32_t(MOE_CUDA_GEMM_BOX_BLOCKS(tile.bn, tile.bk, tile.warps)))
                : make_map(base, {k, n, 1, experts}, {2 * k, 2 * k, 2 * all * k}, rows, 1);
        memcpy(&args.weight[m], &map, sizeof(map));
    }
    if (in_order) {
        const sm90::Map map =
            make_map(op.input, {k, uint64_t(p.num_rows), 1, 1}, {2 * k, 2 * k, 2 * k},
                     uint32_t(MOE_CUDA_GEMM_TOKEN_BOX_ROWS(tile.bm)), 1);
        memcpy(&args.tokens, &map, sizeof(map));
        args.token_box_rows = MOE_CUDA_GEMM_TOKEN_BOX_ROWS(tile.bm);
    }
    return args;
}

/* Wrong outputs; the poison stays where nothing is to be written. */
int64_t compare(const Problem &p, int64_t stride)
{
    std::vector<double> expected(p.output.size(), NAN); /* NaN: the poison */
    int64_t num_wrong = 0;
    for (int64_t row = 0; row < p.num_rows; row++) {
        const int32_t expert = p.expert_of[size_t(row)];
        const int32_t id = p.is_gathered ? p.row_ids[size_t(row)] : int32_t(row);
        if (expert == -2 || id < 0 || (!p.is_sorted && id >= p.num_rows)) {
            continue;
        }
        const int64_t from = p.is_gathered ? id / p.div : row;
        const int64_t to = p.scatters ? id : row;
        for (int32_t c = 0; c < p.n; c++) {
            double sums[2] = {};
            for (int32_t m = 0; m < p.num_matrices && expert >= 0; m++) {
                for (int32_t i = 0; i < p.k; i++) {
                    sums[m] += double(widen(p.input[size_t(from * p.k + i)], p.is_half)) *
                               double(widen(p.weight[weight_at(p, expert, m, c, i)], p.is_half));
                }
                sums[m] *= p.has_weights ? double(p.row_weights[size_t(id)]) : 1.0;
                sums[m] +=
                    p.has_bias
                        ? double(widen(
                              p.bias[size_t((int64_t(expert) * p.num_matrices + m) * p.n + c)],
                              p.is_half))
                        : 0.0;
            }
            if (p.has_activation) {
                expected[size_t(to * stride + c)] = sums[0] / (1.0 + exp(-sums[0])) * sums[1];
            } else {
                for (int32_t m = 0; m < p.num_matrices; m++) {
                    expected[size_t(to * stride + m * p.n + c)] = sums[m];
                }
            }
        }
    }
    for (size_t i = 0; i < expected.size(); i++) {
        const double got = double(widen(p.output[i], p.is_half));
        num_wrong += std::isnan(expected[i])
                         ? p.output[i] != 0xa5a5
                         : !(fabs(got - expected[i]) <= 0.02 + 0.01 * fabs(expected[i]));
    }
    return num_wrong;
}

int64_t run(const Tile &tile, uint64_t seed)
{
    state = seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
    Problem p = draw_problem(tile);
    const bool gathers = tile.bm <= MOE_CUDA_GEMM_GATHERED_BLOCK_M;
    const bool in_order = tile.ctas > 1 && !p.is_gathered && (!gathers || draw(4) > 0);
    const int64_t stride = p.n * (p.has_activation ? 1 : p.num_matrices);
    p.output.assign(size_t(p.num_rows * stride), 0xa5a5);
    const struct moe_cuda_gemm args = make_args(tile, p, in_order);
    const auto num_clusters = uint32_t(1 + draw(3));
    for (uint32_t c = 0; c < num_clusters; c++) {
        sm90::run_cluster(c * uint32_t(tile.ctas), num_clusters * uint32_t(tile.ctas), tile.ctas,
                          32 * tile.warps, seed + c, [&] { tile.forms[p.layout](args); });
    }
    const int64_t num_wrong = compare(p, stride) + compare_places(p);
    if (num_wrong > 0) {
        printf("%s, seed %llu: %lld of %zu wrong (kind %d, rows %lld, n %d, k %d, matrices %d, "
               "activation %d, gathered %d, sorted %d, scatter %d, in order %d, layout %d)\n",
               tile.name, (unsigned long long)seed, (long long)num_wrong, p.output.size(), p.kind,
               (long long)p.num_rows, p.n, p.k, p.num_matrices, p.has_activation, p.is_gathered,
               p.is_sorted, p.scatters, in_order, p.layout);
    }
    return num_wrong > 0;
}

} // namespace

int main(int argc, char **argv)
{
    const int num_rounds = argc > 1 ? atoi(argv[1]) : 3;
    const uint64_t first = argc > 2 ? strtoull(argv[2], nullptr, 10) : 1;
    int64_t num_failed = 0, num_run = 0;
    for (const Tile &tile : tiles) {
        for (int round = 0; round < num_rounds; round++, num_run++) {
            num_failed += run(tile, first + uint64_t(round));
        }
        printf("%s: %lld of %lld failed so far\n", tile.name, (long long)num_failed,
               (long long)num_run);
        fflush(stdout);
    }
    return num_failed > 0;
}
