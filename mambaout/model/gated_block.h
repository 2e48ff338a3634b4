// A block's gated branch, once for each width V of the vectors and each tile of T positions.

// A table's function: each lane's polynomial is that of its interval, at `t` from the middle of it.
static inline VEC NAME(polynomial)(const float (*table)[INTERVALS], INTS interval, VEC t) {
    VEC value = {};
    for (int power = DEGREE; power >= 0; power--) {
#if V == INTERVALS
        VEC entries;
        memcpy(&entries, table[power], sizeof entries);
        value = value * t + __builtin_shuffle(entries, interval);
#else
        VEC first, second;
        memcpy(&first, table[power], sizeof first);
        memcpy(&second, table[power] + V, sizeof second);
        value = value * t + __builtin_shuffle(first, second, interval);
#endif
    }
    return value;
}

// Phi(x), the normal distribution up to x, so that GELU is x Phi(x); `slope`: GELU's derivative.
static inline VEC NAME(gelu)(VEC x, VEC *slope) {
    VEC size = (VEC)((BITS)x & 0x7fffffff);
    INTS inside = size < (float)RANGE, negative = x < 0;
    VEC place = (VEC)((INTS)size & inside) * (INTERVALS / (float)RANGE);
    INTS interval = __builtin_convertvector(place, INTS);
    VEC t = place - __builtin_convertvector(interval, VEC) - .5f;
    VEC tail = (VEC)((INTS)NAME(polynomial)(tables.tail, interval, t) & inside);
    if (slope) {
        VEC rise = (VEC)((INTS)NAME(polynomial)(tables.slope, interval, t) & inside);
        *slope = (VEC)(((INTS)rise & negative) | ((INTS)(1.f - rise) & ~negative));
    }
    return (VEC)(((INTS)tail & negative) | ((INTS)(1.f - tail) & ~negative));
}

// Adds T outputs of a row of the depthwise convolution, from x on: rows[] are its K padded rows, of
// which `first` to `last` lie on the map.
static inline void NAME(filter)(const VEC *const rows[K], int first, int last, const VEC *weight,
                                int x, VEC sums[T]) {
    for (int ky = first; ky < last; ky++) {
        const VEC *row = rows[ky] + x, *taps = weight + ky * K;
#pragma GCC unroll 32
        for (int j = 0; j < T + K - 1; j++) {
            VEC value = row[j];
#pragma GCC unroll 32
            for (int kx = 0; kx < K; kx++)
                if (j - kx >= 0 && j - kx < T) sums[j - kx] += value * taps[kx];
        }
    }
}

static void NAME(copy_weight)(const float *weight, VEC *to, long C, int n, int turned) {
    for (int k = 0; k < K * K; k++)
        to[k] = NAME(loadf)(weight + (turned ? K * K - 1 - k : k) * C, n);
}

// Output channels c to c + V of image b, those behind the convolution. The last K rows of its input
// are in a ring, so that they stay in the first cache.
static void NAME(forward_mixed)(const struct gated *s, long b, long c, void *room) {
    const long C = s->mixed, R = s->hidden - C, D = s->hidden;
    const int H = s->height, W = s->width, n = C - c < V ? C - c : V;
    const int padded = (W + T - 1) / T * T + K - 1;
    VEC *weight = room, *ring = weight + K * K;
    NAME(copy_weight)(s->weight + c, weight, C, n, 0);
    const VEC bias = NAME(loadf)(s->bias + c, n), gate_bias = NAME(loadf)(s->first_bias + R + c, n);
    const VEC mixed_bias = NAME(loadf)(s->first_bias + D + R + c, n);
    const float drop = s->drop ? s->drop[b] : 1;
    memset(ring, 0, (size_t)K * padded * sizeof(VEC));
    const E *h = (const E *)s->h + b * H * W * 2 * D;
    E *y = (E *)s->y + b * H * W * D + R + c, *v = s->v ? (E *)s->v + b * H * W * C + c : 0;
    for (int in = 0; in < H + K / 2; in++) {
        VEC *fresh = ring + in % K * padded + K / 2;
        if (in < H) {
            const E *from = h + (long)in * W * 2 * D + D + R + c;
            for (int x = 0; x < W; x++) fresh[x] = NAME(load)(from + x * 2 * D, n) + mixed_bias;
        }
        int out = in - K / 2, first = out < K / 2 ? K / 2 - out : 0;
        int last = H - out < K / 2 + 1 ? H - out + K / 2 : K;
        if (out < 0) continue;
        const VEC *rows[K];
        for (int ky = 0; ky < K; ky++) rows[ky] = ring + (in + 1 + ky) % K * padded;
        for (int x = 0; x < W; x += T) {
            VEC sums[T];
            for (int i = 0; i < T; i++) sums[i] = bias;
            if (first || last < K) NAME(filter)(rows, first, last, weight, x, sums);
            else NAME(filter)(rows, 0, K, weight, x, sums);  // the compiler knows the number
            for (int i = 0; i < T && x + i < W; i++) {
                long at = (long)out * W + x + i;
                VEC gate = NAME(load)(h + at * 2 * D + R + c, n) + gate_bias;
                if (v) NAME(store)(v + at * C, sums[i], n);
                NAME(store)(y + at * D, gate * NAME(gelu)(gate, 0) * sums[i] * drop, n);
            }
        }
    }
}

// Output channels `first` to `last` of image b, which no convolution touches.
static void NAME(forward_rest)(const struct gated *s, long b, long first, long last) {
    const long D = s->hidden, P = (long)s->height * s->width;
    const E *h = (const E *)s->h + b * P * 2 * D;
    E *y = (E *)s->y + b * P * D;
    const float *bias = s->first_bias, drop = s->drop ? s->drop[b] : 1;
    for (long p = 0; p < P; p++)
        for (long c = first; c < last; c += V) {
            int n = last - c;
            VEC gate = NAME(load)(h + p * 2 * D + c, n) + NAME(loadf)(bias + c, n);
            VEC rest = NAME(load)(h + p * 2 * D + D + c, n) + NAME(loadf)(bias + D + c, n);
            NAME(store)(y + p * D + c, gate * NAME(gelu)(gate, 0) * rest * drop, n);
        }
}

// Adds to the weight's gradient from one row of outputs: `rows` are the K padded rows it came from,
// of which `first` to `last` lie on the map.
static inline void NAME(add_taps)(const VEC *const rows[K], int first, int last, const VEC *grads,
                                  int W, VEC *taps) {
    for (int ky = first; ky < last; ky++) {
        VEC sums[K];
        for (int kx = 0; kx < K; kx++) sums[kx] = taps[ky * K + kx];
        for (int x = 0; x < W; x += T) {
            const VEC *row = rows[ky] + x;
            VEC of[T];
            for (int i = 0; i < T; i++) of[i] = grads[x + i];
#pragma GCC unroll 32
            for (int j = 0; j < T + K - 1; j++) {
                VEC value = row[j];
#pragma GCC unroll 32
                for (int kx = 0; kx < K; kx++)
                    if (j - kx >= 0 && j - kx < T) sums[kx] += value * of[j - kx];
            }
        }
        for (int kx = 0; kx < K; kx++) taps[ky * K + kx] = sums[kx];
    }
}

// The gradients of forward_mixed, and y again. The ring of `grads` holds the convolution's output's.
static void NAME(backward_mixed)(const struct gated *s, long b, long c, void *room) {
    const long C = s->mixed, R = s->hidden - C, D = s->hidden, P = (long)s->height * s->width;
    const int H = s->height, W = s->width, n = C - c < V ? C - c : V;
    const int padded = (W + T - 1) / T * T + K - 1;
    VEC *weight = room, *taps = weight + K * K, *ring = taps + K * K, *grads = ring + K * padded;
    NAME(copy_weight)(s->weight + c, weight, C, n, 1);
    memset(taps, 0, K * K * sizeof(VEC));
    memset(ring, 0, (size_t)2 * K * padded * sizeof(VEC));
    VEC bias_sum = {}, gate_sum = {}, mixed_sum = {};
    const VEC gate_bias = NAME(loadf)(s->first_bias + R + c, n);
    const VEC mixed_bias = NAME(loadf)(s->first_bias + D + R + c, n);
    const float drop = s->drop ? s->drop[b] : 1;
    const E *h = (const E *)s->h + b * P * 2 * D, *gy = (const E *)s->y_grad + b * P * D + R + c;
    const E *v = (const E *)s->v + b * P * C + c;
    E *gh = (E *)s->h_grad + b * P * 2 * D, *y = (E *)s->y + b * P * D + R + c;
    for (int in = 0; in < H + K / 2; in++) {
        VEC *fresh = ring + in % K * padded + K / 2, *grad = grads + in % K * padded + K / 2;
        if (in < H) {
            for (int x = 0; x < W; x++) {
                long at = (long)in * W + x;
                const E *from = h + at * 2 * D + R + c;
                VEC gate = NAME(load)(from, n) + gate_bias, slope, share = NAME(gelu)(gate, &slope);
                VEC mixed = NAME(load)(v + at * C, n), out = NAME(load)(gy + at * D, n) * drop;
                VEC opened = gate * share, of_mixed = out * opened, of_gate = out * mixed * slope;
                NAME(store)(y + at * D, opened * mixed * drop, n);
                NAME(store)(gh + at * 2 * D + R + c, of_gate, n);
                fresh[x] = NAME(load)(from + D, n) + mixed_bias;
                grad[x] = of_mixed;
                bias_sum += of_mixed;
                gate_sum += of_gate;
            }
        }
        int out = in - K / 2, first = out < K / 2 ? K / 2 - out : 0;
        int last = H - out < K / 2 + 1 ? H - out + K / 2 : K;
        if (out < 0) continue;
        const VEC *rows[K], *of[K];
        for (int ky = 0; ky < K; ky++) {
            rows[ky] = ring + (in + 1 + ky) % K * padded;
            of[ky] = grads + (in + 1 + ky) % K * padded;
        }
        for (int x = 0; x < W; x += T) {
            VEC sums[T] = {};
            if (first || last < K) NAME(filter)(of, first, last, weight, x, sums);
            else NAME(filter)(of, 0, K, weight, x, sums);
            for (int i = 0; i < T && x + i < W; i++) {
                NAME(store)(gh + ((long)out * W + x + i) * 2 * D + D + R + c, sums[i], n);
                mixed_sum += sums[i];
            }
        }
        if (first || last < K) NAME(add_taps)(rows, first, last, of[K / 2] + K / 2, W, taps);
        else NAME(add_taps)(rows, 0, K, of[K / 2] + K / 2, W, taps);
    }
    for (int k = 0; k < K * K; k++)
        NAME(storef)(s->weight_grad + (b * K * K + k) * C + c, taps[k], n);
    NAME(storef)(s->bias_grad + b * C + c, bias_sum, n);
    NAME(storef)(s->first_bias_grad + b * 2 * D + R + c, gate_sum, n);
    NAME(storef)(s->first_bias_grad + b * 2 * D + D + R + c, mixed_sum, n);
}

static void NAME(backward_rest)(const struct gated *s, long b, long first, long last) {
    const long D = s->hidden, P = (long)s->height * s->width;
    const E *h = (const E *)s->h + b * P * 2 * D, *gy = (const E *)s->y_grad + b * P * D;
    E *gh = (E *)s->h_grad + b * P * 2 * D, *y = (E *)s->y + b * P * D;
    float *sums = s->first_bias_grad + b * 2 * D;
    const float *bias = s->first_bias, drop = s->drop ? s->drop[b] : 1;
    for (long c = first; c < last; c++) sums[c] = sums[D + c] = 0;
    for (long p = 0; p < P; p++)
        for (long c = first; c < last; c += V) {
            int n = last - c;
            const E *from = h + p * 2 * D + c;
            VEC gate = NAME(load)(from, n) + NAME(loadf)(bias + c, n), slope;
            VEC share = NAME(gelu)(gate, &slope), out = NAME(load)(gy + p * D + c, n) * drop;
            VEC rest = NAME(load)(from + D, n) + NAME(loadf)(bias + D + c, n);
            VEC opened = gate * share, of_rest = out * opened, of_gate = out * rest * slope;
            NAME(store)(y + p * D + c, opened * rest * drop, n);
            NAME(store)(gh + p * 2 * D + c, of_gate, n);
            NAME(store)(gh + p * 2 * D + D + c, of_rest, n);
            NAME(add)(sums + c, of_gate, n);
            NAME(add)(sums + D + c, of_rest, n);
        }
}

static void NAME(task)(const struct gated *s, long b, long unit, void *room) {
    long mixed = (s->mixed + V - 1) / V, R = s->hidden - s->mixed;
    if (unit < mixed) {
        if (s->y_grad) NAME(backward_mixed)(s, b, unit * V, room);
        else NAME(forward_mixed)(s, b, unit * V, room);
        return;
    }
    long first = (unit - mixed) * REST, last = first + REST < R ? first + REST : R;
    if (s->y_grad) NAME(backward_rest)(s, b, first, last);
    else NAME(forward_rest)(s, b, first, last);
}
