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

static inline VEC NAME(four_totals)(const VEC *from) {
    return NAME(pairs)(NAME(pairs)(from[0], from[1]), NAME(pairs)(from[2], from[3]));
}

// The totals of V vectors.
static inline VEC NAME(totals)(const VEC *from) {
    VEC low = NAME(fours)(NAME(four_totals)(from), NAME(four_totals)(from + 4));
#if V == 16
    VEC high = NAME(fours)(NAME(four_totals)(from + 8), NAME(four_totals)(from + 12));
    return NAME(fours)(low, high);
#else
    return low;
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
            if (way & 2) {
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

static void NAME(scan_backward)(const struct scan *s, long b, long part, long c, void *room) {
    const long C = s->channels, N = s->states, L = s->height * s->width;
    const long padded = (N + V - 1) / V * V;
    const int n = fewer(C - c, V);
    // `back`: the gradient of the state, as it goes to the position before.
    VEC *decay = room, *back = decay + N, *decay_grad = back + N;
    VEC *of_into = decay_grad + N, *of_out = of_into + padded, *factors = of_out + padded;
    VEC *states = factors + PIECE * N, lengths[PIECE], values[PIECE];
    memset(of_into, 0, 2 * padded * sizeof(VEC));
    const float *x = s->x + b * L * C + c, *out_grad = s->out_grad + b * L * C + c;
    float *x_grad = s->x_grad + b * L * C + c;
    // The first block of a part writes the sums, the others add to them.
    const int is_first = c == part * blocks_of_part(s) * V;
    for (int way = 0; way < s->ways; way++) {
        const long first = (way * s->images + b) * L;
        const float *step = s->step + first * C + c;
        const float *into = s->into + first * N, *out_of = s->out_of + first * N;
        const long sums = ((part * s->ways + way) * s->images + b) * L * N;
        float *step_grad = s->step_grad + first * C + c;
        float *into_grad = s->into_grad + sums, *out_of_grad = s->out_of_grad + sums;
        NAME(copy_states)(decay, s->decay + way * N * C + c, N, C, n);
        memset(back, 0, 2 * N * sizeof(VEC));  // and decay_grad
        for (long begin = (L - 1) / PIECE * PIECE; begin >= 0; begin -= PIECE) {
            const int count = fewer(L - begin, PIECE);
            NAME(copy_states)(states, NAME(kept_at)(s, way, b, begin / PIECE, c), N, C, n);
            for (int i = 0; i < count; i++) {
                const long at = position(s, way, begin + i);
                VEC length = NAME(loadf)(step + at * C, n);
                VEC input = length * NAME(loadf)(x + at * C, n);
                VEC *h = states + i * N;
                if (way & 2) {
                    const long next = position(s, way, begin + (i + AHEAD < count ? i + AHEAD : i));
                    __builtin_prefetch(step + next * C);
                    __builtin_prefetch(x + next * C);
                    __builtin_prefetch(into + next * N);
                }
                lengths[i] = length;
                values[i] = NAME(loadf)(x + at * C, n);
                for (long k = 0; k < N; k++) {
                    VEC factor = NAME(power_of_2)(length * decay[k]);
                    factors[i * N + k] = factor;
                    h[N + k] = factor * h[k] + input * into[at * N + k];
                }
            }
            for (int i = count - 1; i >= 0; i--) {
                const long at = position(s, way, begin + i);
                VEC length = lengths[i], value = values[i];
                if (way & 2) {
                    const long next = position(s, way, begin + (i - AHEAD >= 0 ? i - AHEAD : i));
                    __builtin_prefetch(out_grad + next * C);
                    __builtin_prefetch(step_grad + next * C, 1);
                    __builtin_prefetch(x_grad + next * C, 1);
                    __builtin_prefetch(out_of + next * N);
                    __builtin_prefetch(into_grad + next * N, 1);
                    __builtin_prefetch(out_of_grad + next * N, 1);
                }
                VEC input = length * value, out = NAME(loadf)(out_grad + at * C, n);
                VEC input_grad = {}, exponent_grad = {};
                const VEC *h = states + i * N;
                for (long k = 0; k < N; k++) {
                    VEC grad = back[k] + out * out_of[at * N + k];
                    of_out[k] = out * h[N + k];
                    of_into[k] = grad * input;
                    input_grad += grad * into[at * N + k];
                    back[k] = grad * factors[i * N + k];
                    VEC through = back[k] * h[k];
                    exponent_grad += through * decay[k];
                    decay_grad[k] += through * length;
                }
                if (n < V)  // a nan in a lane past the last channel would be added
                    for (long k = 0; k < N; k++) {
                        of_out[k] = NAME(first)(of_out[k], n);
                        of_into[k] = NAME(first)(of_into[k], n);
                    }
                for (long k = 0; k < N; k += V) {
                    NAME(put)(into_grad + at * N + k, NAME(totals)(of_into + k), fewer(N - k, V), is_first);
                    NAME(put)(out_of_grad + at * N + k, NAME(totals)(of_out + k), fewer(N - k, V), is_first);
                }
                exponent_grad = exponent_grad * (float)M_LN2 + input_grad * value;
                NAME(storef)(step_grad + at * C, exponent_grad, n);
                NAME(put)(x_grad + at * C, input_grad * length, n, way == 0);
            }
        }
        float *to = s->decay_grad + (b * s->ways + way) * N * C + c;
        for (long k = 0; k < N; k++) NAME(storef)(to + k * C, decay_grad[k], n);
    }
}
