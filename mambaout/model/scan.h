// A block of V channels of the selective scan, once for each width V of the vectors.

// 2^z for z up to 0, to 1.1e-7, and nearer where z is near 0: there the states add up many of these.
static inline VEC NAME(power_of_2)(VEC z) {
#if V == 16
    z = (VEC)_mm512_max_ps(_mm512_set1_ps(-200), (__m512)z);  // gives z if z is nan
    VEC whole = (VEC)_mm512_roundscale_ps((__m512)z, 0);
#else
    z = (VEC)_mm256_max_ps(_mm256_set1_ps(-127), (__m256)z);
    VEC whole = (VEC)_mm256_round_ps((__m256)z, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#endif
    VEC part = z - whole;
    VEC power = part * 0.00133006057f + 0.00966969142f;
    power = power * part + 0.0555055834f;
    power = power * part + 0.24022282f;
    power = power * part + 0.69314718f;
    power = power * part + 1;
#if V == 16
    return (VEC)_mm512_scalef_ps((__m512)power, (__m512)whole);
#else
    return power * (VEC)((__builtin_convertvector(whole, INTS) + 127) << 23);  // at -127: 0
#endif
}

// Adds lanes of `a` and of `b` in pairs, so that each has half as many: by 1 and 2 inside four
// lanes, by 4 and 8 whole fours. The sums of V vectors come out in order.
static inline VEC NAME(pairs)(VEC a, VEC b) {
#if V == 16
    return (VEC)_mm512_shuffle_ps((__m512)a, (__m512)b, 0x88) +
           (VEC)_mm512_shuffle_ps((__m512)a, (__m512)b, 0xdd);
#else
    return (VEC)_mm256_shuffle_ps((__m256)a, (__m256)b, 0x88) +
           (VEC)_mm256_shuffle_ps((__m256)a, (__m256)b, 0xdd);
#endif
}

static inline VEC NAME(fours)(VEC a, VEC b) {
#if V == 16
    return (VEC)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0x88) +
           (VEC)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xdd);
#else
    return (VEC)_mm256_permute2f128_ps((__m256)a, (__m256)b, 0x20) +
           (VEC)_mm256_permute2f128_ps((__m256)a, (__m256)b, 0x31);
#endif
}

static inline VEC NAME(four_sums)(const VEC *of) {
    return NAME(pairs)(NAME(pairs)(of[0], of[1]), NAME(pairs)(of[2], of[3]));
}

// The totals of V vectors, from the sums of each four of them.
static inline VEC NAME(totals)(const VEC *sums) {
#if V == 16
    return NAME(fours)(NAME(fours)(sums[0], sums[1]), NAME(fours)(sums[2], sums[3]));
#else
    return NAME(fours)(sums[0], sums[1]);
#endif
}

static inline void NAME(copy_states)(VEC *to, const float *from, long states, long C, int n) {
    for (long k = 0; k < states; k++) to[k] = NAME(loadf)(from + k * C, n);
}

static inline float *NAME(kept_at)(const struct scan *s, long way, long b, long piece, long c) {
    long pieces = (s->height * s->width + PIECE - 1) / PIECE;
    return s->kept + (((way * s->images + b) * pieces + piece) * s->states) * s->channels + c;
}

static inline void NAME(put)(float *to, VEC x, int n, int is_first) {
    if (is_first) NAME(storef)(to, x, n);
    else NAME(add)(to, x, n);
}

static void NAME(scan_forward)(const struct scan *s, long b, long part, long c, void *room) {
    const long C = s->channels, N = s->states, L = s->height * s->width;
    const int n = fewer(C - c, V);
    VEC *decay = room, *h = decay + N;
    const float *x = s->x + b * L * C + c;
    float *out = s->out + b * L * C + c;
    for (int way = 0; way < s->ways; way++) {
        const long first = (way * s->images + b) * L;
        const float *step = s->step + first * C + c;
        const float *into = s->into + first * N, *out_of = s->out_of + first * N;
        NAME(copy_states)(decay, s->decay + way * N * C + c, N, C, n);
        memset(h, 0, N * sizeof(VEC));
        for (long t = 0; t < L; t++) {
            if (s->kept && t % PIECE == 0) {
                float *to = NAME(kept_at)(s, way, b, t / PIECE, c);
                for (long k = 0; k < N; k++) NAME(storef)(to + k * C, h[k], n);
            }
            const long at = position(s, way, t);
            VEC length = NAME(loadf)(step + at * C, n), input = length * NAME(loadf)(x + at * C, n);
            VEC sum = {};
            if (way & 2) {  // these lie far apart: the processor does not guess the next one
                const long next = position(s, way, t + AHEAD < L ? t + AHEAD : t);
                __builtin_prefetch(step + next * C);
                __builtin_prefetch(x + next * C);
                __builtin_prefetch(out + next * C, 1);
                __builtin_prefetch(into + next * N);
                __builtin_prefetch(out_of + next * N);
            }
            for (long k = 0; k < N; k++) {
                VEC factor = NAME(power_of_2)(length * decay[k]);
                h[k] = factor * h[k] + input * into[at * N + k];
                sum += h[k] * out_of[at * N + k];
            }
            NAME(put)(out + at * C, sum, n, way == 0);
        }
    }
}

// What the backward pass knows of a piece of `count` positions.
struct NAME(piece) {
    int count, n;  // channels that are not past the last
    long at[PIECE];
    VEC *length, *value, *input, *out;  // step, x, step x and the output's gradient
    VEC *input_grad, *exponent_grad;
    VEC *of_into, *of_out;  // (PIECE, padded / 4): sums of four states' vectors
};

// Computes `m` states from the k-th on again, four at most.
static inline __attribute__((always_inline)) void NAME(again)(const struct NAME(piece) *p, const float *into, long N, int m,
                               const VEC *decay, const VEC *start, VEC *factors, VEC *states) {
    VEC h[4];
    for (int j = 0; j < m; j++) states[j] = h[j] = start[j];
    for (int i = 0; i < p->count; i++) {
        const VEC length = p->length[i], input = p->input[i];
        const float *from = into + p->at[i] * N;
#pragma GCC unroll 4
        for (int j = 0; j < m; j++) {
            VEC factor = NAME(power_of_2)(length * decay[j]);
            factors[4 * i + j] = factor;
            states[4 * i + 4 + j] = h[j] = factor * h[j] + input * from[j];
        }
    }
}

// Goes back through these states. `back` is the state's gradient, as it goes to the position before.
static inline __attribute__((always_inline)) void NAME(go_back)(const struct NAME(piece) *p, const float *into,
                                 const float *out_of, long N, int m, long sums, const VEC *decay,
                                 VEC *back, VEC *decay_grad, const VEC *factors,
                                 const VEC *states) {
    VEC after[4], gone[4], total[4];
    for (int j = 0; j < m; j++) {
        after[j] = states[4 * p->count + j];
        gone[j] = back[j];
        total[j] = decay_grad[j];
    }
    for (int i = p->count - 1; i >= 0; i--) {
        const VEC length = p->length[i], input = p->input[i], out = p->out[i];
        const float *b = into + p->at[i] * N, *c = out_of + p->at[i] * N;
        VEC input_grad = p->input_grad[i], exponent_grad = p->exponent_grad[i];
        VEC of_into[4] = {}, of_out[4] = {};
#pragma GCC unroll 4
        for (int j = 0; j < m; j++) {
            VEC grad = gone[j] + out * c[j], before = states[4 * i + j];
            of_out[j] = out * after[j];
            of_into[j] = grad * input;
            input_grad += grad * b[j];
            gone[j] = grad * factors[4 * i + j];
            VEC through = gone[j] * before;
            exponent_grad += through * decay[j];
            total[j] += through * length;
            after[j] = before;
        }
        if (p->n < V)  // a nan in a lane past the last channel would be added
            for (int j = 0; j < m; j++) {
                of_out[j] = NAME(first)(of_out[j], p->n);
                of_into[j] = NAME(first)(of_into[j], p->n);
            }
        p->input_grad[i] = input_grad;
        p->exponent_grad[i] = exponent_grad;
        p->of_into[i * sums] = NAME(four_sums)(of_into);
        p->of_out[i * sums] = NAME(four_sums)(of_out);
    }
    for (int j = 0; j < m; j++) {
        back[j] = gone[j];
        decay_grad[j] = total[j];
    }
}

static void NAME(scan_backward)(const struct scan *s, long b, long part, long c, void *room) {
    const long C = s->channels, N = s->states, L = s->height * s->width;
    const long padded = (N + V - 1) / V * V, sums = padded / 4;
    const int n = fewer(C - c, V);
    VEC *decay = room, *back = decay + padded, *decay_grad = back + padded;
    VEC *start = decay_grad + padded, *factors = start + padded, *states = factors + PIECE * 4;
    struct NAME(piece) p = {.n = n, .length = states + (PIECE + 1) * 4};
    p.value = p.length + PIECE, p.input = p.value + PIECE, p.out = p.input + PIECE;
    p.input_grad = p.out + PIECE, p.exponent_grad = p.input_grad + PIECE;
    VEC *of_into = p.exponent_grad + PIECE, *of_out = of_into + PIECE * sums;
    memset(of_into, 0, 2 * PIECE * sums * sizeof(VEC));
    const float *x = s->x + b * L * C + c, *out_grad = s->out_grad + b * L * C + c;
    float *x_grad = s->x_grad + b * L * C + c;
    // The first block of a part writes the sums, the others add to them.
    const int is_first = c == part * blocks_of_part(s) * V;
    for (int way = 0; way < s->ways; way++) {
        const long first = (way * s->images + b) * L;
        const float *step = s->step + first * C + c;
        const float *into = s->into + first * N, *out_of = s->out_of + first * N;
        const long place = ((part * s->ways + way) * s->images + b) * L * N;
        float *step_grad = s->step_grad + first * C + c;
        float *into_grad = s->into_grad + place, *out_of_grad = s->out_of_grad + place;
        NAME(copy_states)(decay, s->decay + way * N * C + c, N, C, n);
        memset(back, 0, 2 * padded * sizeof(VEC));  // and decay_grad
        for (long begin = (L - 1) / PIECE * PIECE; begin >= 0; begin -= PIECE) {
            p.count = fewer(L - begin, PIECE);
            NAME(copy_states)(start, NAME(kept_at)(s, way, b, begin / PIECE, c), N, C, n);
            for (int i = 0; i < p.count; i++) p.at[i] = position(s, way, begin + i);
            for (int i = 0; i < p.count; i++) {
                const long at = p.at[i];
                p.length[i] = NAME(loadf)(step + at * C, n);
                p.value[i] = NAME(loadf)(x + at * C, n);
                p.input[i] = p.length[i] * p.value[i];
                p.out[i] = NAME(loadf)(out_grad + at * C, n);
                p.input_grad[i] = p.exponent_grad[i] = (VEC){};
                if (way & 2) {  // these lie far apart: the processor does not guess the next one
                    const long next = position(s, way, begin ? begin - PIECE + i : i);
                    __builtin_prefetch(step_grad + at * C, 1);
                    __builtin_prefetch(x_grad + at * C, 1);
                    __builtin_prefetch(into_grad + at * N, 1);
                    __builtin_prefetch(out_of_grad + at * N, 1);
                    __builtin_prefetch(step + next * C);
                    __builtin_prefetch(x + next * C);
                    __builtin_prefetch(out_grad + next * C);
                    __builtin_prefetch(into + next * N);
                    __builtin_prefetch(out_of + next * N);
                }
            }
            for (long k = 0; k < N; k += 4) {
                const float *in = into + k, *out = out_of + k;
                p.of_into = of_into + k / 4, p.of_out = of_out + k / 4;
                if (N - k >= 4) {
                    NAME(again)(&p, in, N, 4, decay + k, start + k, factors, states);
                    NAME(go_back)(&p, in, out, N, 4, sums, decay + k, back + k, decay_grad + k,
                                  factors, states);
                } else {
                    NAME(again)(&p, in, N, N - k, decay + k, start + k, factors, states);
                    NAME(go_back)(&p, in, out, N, N - k, sums, decay + k, back + k, decay_grad + k,
                                  factors, states);
                }
            }
            for (int i = 0; i < p.count; i++) {
                const long at = p.at[i];
                for (long k = 0; k < N; k += V) {
                    VEC to_into = NAME(totals)(of_into + i * sums + k / 4);
                    VEC to_out = NAME(totals)(of_out + i * sums + k / 4);
                    NAME(put)(into_grad + at * N + k, to_into, fewer(N - k, V), is_first);
                    NAME(put)(out_of_grad + at * N + k, to_out, fewer(N - k, V), is_first);
                }
                VEC of_step = p.exponent_grad[i] * (float)M_LN2 + p.input_grad[i] * p.value[i];
                NAME(storef)(step_grad + at * C, of_step, n);
                NAME(put)(x_grad + at * C, p.input_grad[i] * p.length[i], n, way == 0);
            }
        }
        float *to = s->decay_grad + (b * s->ways + way) * N * C + c;
        for (long k = 0; k < N; k++) NAME(storef)(to + k * C, decay_grad[k], n);
    }
}
