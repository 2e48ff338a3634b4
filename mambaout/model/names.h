// What the C files of this folder share: names for each precision, width and tile (vectors.h).
#pragma once
#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))
#define JOIN_(name, low, v, t) name##_##low##_##v##_##t
#define JOIN(name, low, v, t) JOIN_(name, low, v, t)
#define NAME(name) JOIN(name, LOW, V, T)
#define VEC NAME(vec)
#define INTS NAME(ints)
#define BITS NAME(bits)
#define HALVES NAME(halves)
#if LOW
typedef unsigned short E;
#else
typedef float E;
#endif

// The width for so many channels: wide vectors are faster where they are full.
static inline int lanes_for(long channels) {
#ifdef __AVX512F__
    return channels % 16 == 0 || channels > 40 ? 16 : 8;
#else
    return 8;
#endif
}
