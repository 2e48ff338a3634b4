// What a Gated CNN block does beside its two linears (paper section 4, Figure 2), for a CPU:
//
//     y = drop * GELU(gate) * [rest, depthwise(mixed)]    gated, of [gate | rest | mixed] = fc1(n)
//     out = x + drop * (fc2(y) + bias)                    joined, where fc2 is in bfloat16
//
// The norm, n = norm(x), is in norm.c.
// Maps are (images, height, width, channels). Sums over positions are given for each image, so that
// the number of threads moves no bit. LOW (0 or 1) and K, the kernel's side, come with -D.
#include "names.h"

#define REST 128      // channels of a task that has no convolution
#define INTERVALS 16  // of |x| below RANGE, each with polynomials of its own
#define DEGREE 5
#define RANGE 6  // past it GELU is 0 or x, to 6e-9

struct gated {
    long images, height, width, hidden, mixed, threads;
    const float *weight, *bias, *first_bias, *drop;  // (K*K, mixed), (mixed), (2 hidden), (images)
    const void *h;                                   // (.., 2 hidden): fc1(n) without its bias
    void *y, *v;                                     // (.., hidden), (.., mixed): depthwise(mixed)
    const void *y_grad;                              // none: forward
    void *h_grad;
    float *weight_grad, *bias_grad, *first_bias_grad;  // (images, ..) as above
};

static struct { float tail[DEGREE + 1][INTERVALS], slope[DEGREE + 1][INTERVALS]; } tables;

static double tail_of(double x) { return .5 * erfc(x * M_SQRT1_2); }  // Phi(-x)
static double slope_of(double x) {                                    // GELU'(-x)
    return tail_of(x) - x * exp(-.5 * x * x) / sqrt(2 * M_PI);
}

// Polynomials through the Chebyshev points of each interval; t is -0.5 to 0.5 across it.
static void fill(float (*table)[INTERVALS], double (*function)(double)) {
    for (int i = 0; i < INTERVALS; i++) {
        double at[DEGREE + 1], difference[DEGREE + 1], sum[DEGREE + 1] = {0};
        for (int j = 0; j <= DEGREE; j++) {
            at[j] = .5 * cos(M_PI * (j + .5) / (DEGREE + 1));
            difference[j] = function((i + .5 + at[j]) * RANGE / INTERVALS);
        }
        for (int j = 1; j <= DEGREE; j++)  // Newton's form
            for (int k = DEGREE; k >= j; k--)
                difference[k] = (difference[k] - difference[k - 1]) / (at[k] - at[k - j]);
        for (int j = DEGREE; j >= 0; j--) {
            for (int k = DEGREE; k > 0; k--) sum[k] = sum[k - 1] - at[j] * sum[k];
            sum[0] = difference[j] - at[j] * sum[0];
        }
        for (int j = 0; j <= DEGREE; j++) table[j][i] = sum[j];
    }
}

__attribute__((constructor)) static void fill_tables(void) {
    fill(tables.tail, tail_of);
    fill(tables.slope, slope_of);
}


#define V 8
#include "gated_tiles.h"
#undef V
#ifdef __AVX512F__
#define V 16
#include "gated_tiles.h"
#undef V
#define CHOOSE(lanes, tile) (lanes == 16 ? OF_TILE(16, tile) : OF_TILE(8, tile))
#else
#define CHOOSE(lanes, tile) OF_TILE(8, tile)
#endif
#define OF_TILE(v, tile) \
    (tile == 4 ? JOIN(task, LOW, v, 4) : tile == 7 ? JOIN(task, LOW, v, 7) : JOIN(task, LOW, v, 8))

// The tile that pads a row least.
static long tile_for(long width) {
    static const long tiles[] = {8, 7, 4};
    long best = 8;
    for (int i = 1; i < 3; i++)
        if ((width + tiles[i] - 1) / tiles[i] * tiles[i] < (width + best - 1) / best * best)
            best = tiles[i];
    return best;
}

// -1: there is no memory.
API int gated(const struct gated *s) {
    long lanes = lanes_for(s->mixed), width = s->width;
    long tile = tile_for(width);
    void (*task)(const struct gated *, long, long, void *) = CHOOSE(lanes, tile);
    long units = (s->mixed + lanes - 1) / lanes + (s->hidden - s->mixed + REST - 1) / REST;
    // Weight and its gradient, and two rings of K rows; a row is padded to whole tiles.
    size_t room = (2 * K * K + 2 * K * (width + tile + K)) * lanes * sizeof(float);
    int failed = 0;
#pragma omp parallel num_threads(s->threads) if (s->threads > 1)
    {
        void *own = aligned_alloc(64, (room + 63) / 64 * 64);
        if (!own) {
#pragma omp atomic write
            failed = -1;
        }
#pragma omp for schedule(dynamic)
        for (long i = 0; i < s->images * units; i++)
            if (own) task(s, i / units, i % units, own);
        free(own);
    }
    return failed;
}

#if LOW
API void joined(const float *x, const E *branch, const float *bias, const float *drop, float *out,
                long images, long positions, long channels, long threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long b = 0; b < images; b++) {
        float scale = drop ? drop[b] : 1;
        for (long p = b * positions; p < (b + 1) * positions; p++)
            for (long c = 0; c < channels; c++) {
                union { unsigned bits; float value; } wide = {(unsigned)branch[p * channels + c] << 16};
                out[p * channels + c] = x[p * channels + c] + scale * (wide.value + bias[c]);
            }
    }
}
#endif
