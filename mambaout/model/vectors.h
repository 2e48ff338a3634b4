// Vectors of V floats, loaded and stored as E, the type of what matrix products take and give: float
// or (LOW) bfloat16. n, the number of channels left, cuts them: past it a vector is 0 and nothing is
// written. NAME(x) is x with LOW, V and T in its name; T tells apart what else is made more than once.

// may_alias: a load through a pointer. gcc 12 splits a memcpy in two, which is ten times slower.
typedef float VEC __attribute__((vector_size(V * 4), aligned(4), may_alias));
typedef int INTS __attribute__((vector_size(V * 4), aligned(4)));
typedef unsigned BITS __attribute__((vector_size(V * 4), aligned(4)));
typedef unsigned short HALVES __attribute__((vector_size(V * 2), aligned(2)));

static inline INTS NAME(below)(int n) {  // all bits of the first n lanes
    INTS lanes;
    for (int i = 0; i < V; i++) lanes[i] = i;
    return lanes < n;
}

// The first n lanes from memory, the others 0; n >= V is a whole vector.
static inline VEC NAME(loadf)(const float *from, int n) {
    if (n >= V) return *(const VEC *)from;
#if defined __AVX512VL__ && V == 16
    return (VEC)_mm512_maskz_loadu_ps((1 << n) - 1, from);
#elif defined __AVX512VL__
    return (VEC)_mm256_maskz_loadu_ps((1 << n) - 1, from);
#else
    return (VEC)_mm256_maskload_ps(from, (__m256i)NAME(below)(n));
#endif
}

static inline void NAME(storef)(float *to, VEC x, int n) {
    if (n >= V) { *(VEC *)to = x; return; }
#if defined __AVX512VL__ && V == 16
    _mm512_mask_storeu_ps(to, (1 << n) - 1, (__m512)x);
#elif defined __AVX512VL__
    _mm256_mask_storeu_ps(to, (1 << n) - 1, (__m256)x);
#else
    _mm256_maskstore_ps(to, (__m256i)NAME(below)(n), (__m256)x);
#endif
}

#if LOW
static inline VEC NAME(load)(const E *from, int n) {
    HALVES halves = {};
    if (n >= V) memcpy(&halves, from, sizeof halves);
#if defined __AVX512VL__ && defined __AVX512BW__ && V == 16
    else halves = (HALVES)_mm256_maskz_loadu_epi16((1 << n) - 1, from);
#elif defined __AVX512VL__ && defined __AVX512BW__
    else halves = (HALVES)_mm_maskz_loadu_epi16((1 << n) - 1, from);
#else
    else memcpy(&halves, from, n * sizeof *from);
#endif
    return (VEC)(__builtin_convertvector(halves, BITS) << 16);
}

static inline void NAME(store)(E *to, VEC x, int n) {  // to the nearest, halves to even
    BITS bits = (BITS)x;
    HALVES halves = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, HALVES);
    if (n >= V) memcpy(to, &halves, sizeof halves);
#if defined __AVX512VL__ && defined __AVX512BW__ && V == 16
    else _mm256_mask_storeu_epi16(to, (1 << n) - 1, (__m256i)halves);
#elif defined __AVX512VL__ && defined __AVX512BW__
    else _mm_mask_storeu_epi16(to, (1 << n) - 1, (__m128i)halves);
#else
    else memcpy(to, &halves, n * sizeof *to);
#endif
}
#else
static inline VEC NAME(load)(const E *from, int n) { return NAME(loadf)(from, n); }
static inline void NAME(store)(E *to, VEC x, int n) { NAME(storef)(to, x, n); }
#endif

static inline void NAME(add)(float *to, VEC x, int n) {
    NAME(storef)(to, NAME(loadf)(to, n) + x, n);
}

static inline VEC NAME(first)(VEC x, int n) {  // the others 0
    return (VEC)((INTS)x & NAME(below)(n));
}

static inline float NAME(total)(VEC x) {
    float lanes[V];
    memcpy(lanes, &x, sizeof x);
    for (int half = V / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}
