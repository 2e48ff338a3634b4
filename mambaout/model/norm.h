// LayerNorm over the channels (paper section 4), once for each width V of the vectors.

// LayerNorm over the channels of image b. In fp32 `out` begins as x + drop * the branch's last bias,
// to which the last linear adds.
static void NAME(norm_forward)(const struct norm *s, long b) {
    const long C = s->channels;
    for (long p = b * s->positions; p < (b + 1) * s->positions; p++) {
        const float *x = s->x + p * C;
        VEC sum = {}, squares = {};
        for (long c = 0; c < C; c += V) sum += NAME(loadf)(x + c, C - c);
        float mean = NAME(total)(sum) / C;
        for (long c = 0; c < C; c += V) {
            VEC off = NAME(loadf)(x + c, C - c) - mean;
            if (C - c < V) off = NAME(first)(off, C - c);
            squares += off * off;
        }
        float scale = 1 / sqrtf(NAME(total)(squares) / C + s->epsilon);
        s->stats[2 * p] = mean, s->stats[2 * p + 1] = scale;
        for (long c = 0; c < C; c += V) {
            int n = C - c;
            VEC value = NAME(loadf)(x + c, n);
            VEC weight = NAME(loadf)(s->weight + c, n), shift = NAME(loadf)(s->shift + c, n);
            NAME(store)((E *)s->normed + p * C + c, (value - mean) * scale * weight + shift, n);
#if !LOW
            if (s->out) {
                VEC bias = NAME(loadf)(s->bias + c, n);
                NAME(storef)(s->out + p * C + c, value + bias * (s->drop ? s->drop[b] : 1), n);
            }
#endif
        }
    }
}

// out = the gradient of x: that of the sum, `out_grad`, and that of the norm. `normed` is the
// gradient of what the norm gave.
static void NAME(norm_backward)(const struct norm *s, long b) {
    const long C = s->channels;
    float *weight_grad = s->weight_grad + b * C, *shift_grad = s->shift_grad + b * C;
    float *bias_grad = s->out_grad ? s->bias_grad + b * C : 0, drop = s->drop ? s->drop[b] : 1;
    for (long c = 0; c < C; c++) weight_grad[c] = shift_grad[c] = 0;
    for (long c = 0; bias_grad && c < C; c++) bias_grad[c] = 0;
    for (long p = b * s->positions; p < (b + 1) * s->positions; p++) {
        const float *x = s->x + p * C;
        const E *gn = (const E *)s->normed + p * C;
        float mean = s->stats[2 * p], scale = s->stats[2 * p + 1];
        VEC plain = {}, turned = {};
        for (long c = 0; c < C; c += V) {
            int n = C - c;
            VEC grad = NAME(load)(gn + c, n), unit = (NAME(loadf)(x + c, n) - mean) * scale;
            NAME(add)(weight_grad + c, grad * unit, n);
            NAME(add)(shift_grad + c, grad, n);
            grad *= NAME(loadf)(s->weight + c, n);
            plain += grad;
            turned += grad * unit;
        }
        float first = NAME(total)(plain) / C, second = NAME(total)(turned) / C;
        for (long c = 0; c < C; c += V) {
            int n = C - c;
            VEC grad = NAME(load)(gn + c, n) * NAME(loadf)(s->weight + c, n);
            VEC unit = (NAME(loadf)(x + c, n) - mean) * scale, of_out = {};
            if (bias_grad) {
                of_out = NAME(loadf)(s->out_grad + p * C + c, n);
                NAME(add)(bias_grad + c, of_out, n);
            }
            NAME(storef)(s->out + p * C + c, of_out + scale * (grad - first - unit * second), n);
        }
    }
    for (long c = 0; bias_grad && c < C; c++) bias_grad[c] *= drop;
}
