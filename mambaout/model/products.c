// Matrix products in fp32 for a CPU. All matrices lie in memory row by row, without gaps.
//
//     packed:   a weight as panels of WIDE columns, (inner, WIDE) each, with zeros past the last
//     product:  out (rows, columns) = left (rows, inner) x packed, or out + that with `add`
//     outer:    out (inner, columns) += left^T (inner, rows) x right (rows, columns)
//
// A tile of results stays in registers while the sum runs over the inner side, or over BLOCK rows.
// The order of a sum does not depend on the number of threads.
#include "names.h"

#define LOW 0
#define T 0
#ifdef __AVX512F__
#define V 16
#define TALL 12  // rows of a tile: 12 x 2 vectors of 32 registers
#else
#define V 8
#define TALL 6  // of 16 registers
#endif
#include "vectors.h"

#define WIDE (2 * V)
#define NEAR (1 << 16)  // floats of `left` that stay in the second cache: 256 kB
#define BLOCK 256       // rows that `outer` sums up at a time
#define GROUP 16        // panels of a task
#define SQUARE 16
#define TILE static inline __attribute__((always_inline))

struct product {
    long rows, columns, inner, threads, add;
    const float *left, *right;
    float *out;
};

// Adds to `tall` rows of `out`, or sets them. left(i, k) is at left[i * down + k * along], and row k
// of the right side at right + k * step. Without `whole`, right has no values past column n.
TILE void tile(int tall, int vectors, const float *left, long down, long along, const float *right,
               long step, long inner, float *out, long columns, int n, int add, int whole) {
    VEC sums[TALL][2];
#pragma GCC unroll 16
    for (int i = 0; i < tall; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) sums[i][j] = (VEC){};
    for (long k = 0; k < inner; k++) {
        VEC values[2];
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++)
            values[j] = NAME(loadf)(right + k * step + j * V, whole ? V : n - j * V);
#pragma GCC unroll 16
        for (int i = 0; i < tall; i++) {
            float factor = left[i * down + k * along];
#pragma GCC unroll 2
            for (int j = 0; j < vectors; j++) sums[i][j] += factor * values[j];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < tall; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) {
            float *to = out + i * columns + j * V;
            if (add) NAME(add)(to, sums[i][j], n - j * V);
            else NAME(storef)(to, sums[i][j], n - j * V);
        }
}

TILE void tiles(long rows, int vectors, const float *left, long down, long along,
                const float *right, long step, long inner, float *out, long columns, int n, int add,
                int whole) {
#define ROWS(tall)                                                                              \
    for (; i + tall <= rows; i += tall)                                                         \
        tile(tall, vectors, left + i * down, down, along, right, step, inner, out + i * columns, \
             columns, n, add, whole)
    long i = 0;
    ROWS(TALL);
    ROWS(4);
    ROWS(1);
}

static inline long least(long a, long b) { return a < b ? a : b; }

// to[c * step + r] = from (rows, columns)[r][c], in squares that stay in the first cache.
static void transpose(const float *from, float *to, long rows, long columns, long step) {
    for (long row = 0; row < rows; row += SQUARE)
        for (long column = 0; column < columns; column += SQUARE)
            for (long r = row; r < least(rows, row + SQUARE); r++)
                for (long c = column; c < least(columns, column + SQUARE); c++)
                    to[c * step + r] = from[r * columns + c];
}

// weight (inner, columns), or (columns, inner) if `turned`.
API void packed(const float *weight, float *to, long inner, long columns, long turned) {
    for (long c = 0; c < columns; c += WIDE, to += inner * WIDE) {
        long n = least(columns - c, WIDE);
        if (n < WIDE) memset(to, 0, inner * WIDE * sizeof *to);
        if (turned) transpose(weight + c * inner, to, n, inner, WIDE);
        else
            for (long k = 0; k < inner; k++)
                memcpy(to + k * WIDE, weight + k * columns + c, n * sizeof *to);
    }
}

// to (columns, rows) = from (rows, columns), turned.
API void turned(const float *from, float *to, long rows, long columns) {
    transpose(from, to, rows, columns, rows);
}

API long panel(void) { return WIDE; }

API void product(const struct product *s) {
    const long N = s->columns, K = s->inner, panels = (N + WIDE - 1) / WIDE;
    long tall = NEAR / K / TALL * TALL, groups = (panels + GROUP - 1) / GROUP;
    tall = tall < TALL ? TALL : least(tall, 16 * TALL);
    long tasks = (s->rows + tall - 1) / tall * groups;
#pragma omp parallel for num_threads(s->threads) schedule(dynamic) if (s->threads > 1)
    for (long task = 0; task < tasks; task++) {
        long row = task / groups * tall, rows = least(tall, s->rows - row);
        long first = task % groups * GROUP * WIDE, last = least(N, first + GROUP * WIDE);
        const float *left = s->left + row * K;
        for (long c = first; c < last; c += WIDE) {
            int n = least(N - c, WIDE);
            const float *right = s->right + c * K;
            float *out = s->out + row * N + c;
            if (n > V && s->add) tiles(rows, 2, left, K, 1, right, WIDE, K, out, N, n, 1, 1);
            else if (n > V) tiles(rows, 2, left, K, 1, right, WIDE, K, out, N, n, 0, 1);
            else tiles(rows, 1, left, K, 1, right, WIDE, K, out, N, n, s->add, 1);
        }
    }
}

API void outer(const struct product *s) {
    const long M = s->inner, N = s->columns, panels = (N + WIDE - 1) / WIDE;
    long group = panels / (2 * s->threads);
    group = group < 1 ? 1 : least(group, 4);
    long tasks = (panels + group - 1) / group;
#pragma omp parallel for num_threads(s->threads) schedule(dynamic) if (s->threads > 1)
    for (long task = 0; task < tasks; task++) {
        long first = task * group * WIDE, last = least(N, first + group * WIDE);
        for (long row = 0; row < s->rows; row += BLOCK) {
            long rows = least(BLOCK, s->rows - row);
            const float *left = s->left + row * M;
            for (long c = first; c < last; c += WIDE) {
                int n = least(N - c, WIDE);
                const float *right = s->right + row * N + c;
                float *out = s->out + c;
                if (n == WIDE) tiles(M, 2, left, 1, M, right, N, rows, out, N, n, 1, 1);
                else if (n > V) tiles(M, 2, left, 1, M, right, N, rows, out, N, n, 1, 0);
                else tiles(M, 1, left, 1, M, right, N, rows, out, N, n, 1, 0);
            }
        }
    }
}
