// LayerNorm over the channels of maps (images, positions, channels), for a CPU. LOW comes with -D.
// Sums over positions are given for each image, so that the number of threads moves no bit.
#include "names.h"

struct norm {
    long images, positions, channels, threads;
    double epsilon;
    const float *x, *weight, *shift, *bias, *drop;  // (.., channels), (channels) thrice, (images)
    void *normed;                                   // (.., channels)
    float *stats, *out;                             // (.., 2): mean, 1 / deviation; (.., channels)
    const float *out_grad;                          // none: nothing is added to the norm
    float *weight_grad, *shift_grad, *bias_grad;    // (images, channels); none: forward
};

#define T 0
#define V 8
#include "vectors.h"
#include "norm.h"
#undef V
#ifdef __AVX512F__
#define V 16
#include "vectors.h"
#include "norm.h"
#define CHOOSE(name, lanes) (lanes == 16 ? JOIN(name, LOW, 16, 0) : JOIN(name, LOW, 8, 0))
#else
#define CHOOSE(name, lanes) JOIN(name, LOW, 8, 0)
#endif

API void norm(const struct norm *s) {
    long lanes = lanes_for(s->channels);
    void (*work)(const struct norm *, long) =
        s->weight_grad ? CHOOSE(norm_backward, lanes) : CHOOSE(norm_forward, lanes);
#pragma omp parallel for num_threads(s->threads) if (s->threads > 1)
    for (long b = 0; b < s->images; b++) work(s, b);
}
