// The selective scan (S6 of Mamba, arXiv 2312.00752, algorithm 2) in 1, 2 or 4 directions, for a CPU.
//
//     h = exp(step decay) h + step x into        out = sum of the states of out_of h
//
// Every tensor has its positions in the order of the map, row by row. Only the order in which
// a direction visits them differs: way 0 row by row, 2 column by column, 1 and 3 backwards.
// A task is some channels of an image in all directions: a part, one or more blocks of V channels.
// What is summed over parts is given for each, so that the number of threads moves no bit. `kept` is the state before each
// PIECE (comes with -D) of positions: the backward pass computes a piece's other states again.
#include "names.h"

#define AHEAD 4  // positions; a map's rows often share few places of the cache, so not many
#define TASKS 32  // wanted

struct scan {
    long images, height, width, ways, channels, states, parts, threads;
    const float *x, *step, *decay;  // (images, L, channels), (ways, ..), (ways, states, channels);
                                    // decay is log2(e) times Mamba's A
    const float *into, *out_of;     // (ways, images, L, states)
    float *kept, *out;              // (ways, images, pieces, states, channels) or none; as x
    const float *out_grad;          // none: forward
    float *x_grad, *step_grad;
    float *decay_grad;               // (images, ways, states, channels): of A
    float *into_grad, *out_of_grad;  // (parts, ways, images, L, states)
};

static long blocks_of(long channels) {
    return (channels + lanes_for(channels) - 1) / lanes_for(channels);
}

static long blocks_of_part(const struct scan *s) {
    return (blocks_of(s->channels) + s->parts - 1) / s->parts;
}

static inline long position(const struct scan *s, int way, unsigned t) {
    unsigned width = s->width, height = s->height;
    if (way & 1) t = width * height - 1 - t;
    return way & 2 ? t % height * width + t / height : t;
}

static inline int fewer(long a, long b) { return a < b ? a : b; }

#define T 0
#define V 8
#include "vectors.h"
#include "scan.h"
#undef V
#ifdef __AVX512F__
#define V 16
#include "vectors.h"
#include "scan.h"
#undef V
#define CHOOSE(name, lanes) (lanes == 16 ? JOIN(name, LOW, 16, 0) : JOIN(name, LOW, 8, 0))
#else
#define CHOOSE(name, lanes) JOIN(name, LOW, 8, 0)
#endif

// How many parts an image's channels have: few parts have small sums, many can use more threads.
API long parts(long images, long channels) {
    long blocks = blocks_of(channels), together = images * blocks / TASKS;
    together = together < 1 ? 1 : fewer(together, blocks);
    return (blocks + together - 1) / together;
}

// -1: there is no memory.
API int scan(const struct scan *s) {
    long lanes = lanes_for(s->channels), blocks = blocks_of(s->channels);
    long together = blocks_of_part(s);
    void (*block)(const struct scan *, long, long, long, void *) =
        s->out_grad ? CHOOSE(scan_backward, lanes) : CHOOSE(scan_forward, lanes);
    long padded = (s->states + lanes - 1) / lanes * lanes;
    size_t room = (2 * PIECE + 6) * padded * lanes * sizeof(float);
    int failed = 0;
#pragma omp parallel num_threads(s->threads) if (s->threads > 1)
    {
        void *own = aligned_alloc(64, room);
        if (!own) {
#pragma omp atomic write
            failed = -1;
        }
#pragma omp for schedule(dynamic)
        for (long i = 0; i < s->images * s->parts; i++) {
            long part = i % s->parts, first = part * together;
            for (long j = first; own && j < fewer(first + together, blocks); j++)
                block(s, i / s->parts, part, j * lanes, own);
        }
        free(own);
    }
    return failed;
}
