/* From a JPEG's coefficients to RGB, in libjpeg's integers: inverse DCT, chroma's size, colours.

The inverse DCT is Loeffler, Ligtenberg and Moschytz's (ICASSP 1989) in 13-bit fixed point.
*/

#pragma once

#include <immintrin.h> /* AVX2 */

#include "jpeg_header.h"

/* The planes that blocks go to, and which MCUs they hold. */
typedef struct {
    uint8_t *plane[3];
    size_t stride[3];
    int x0, y0, x1, y1;
} Target;

/* -- the inverse DCT ---------------------------------------------------------------------------- */

typedef struct {
    int16_t *coefficients; /* 64 and what is written past the block's end */
    const uint16_t *quant;
    uint8_t *out; /* NULL: none */
    size_t stride;
} Block;

static void fill_flat(const Block *b)
{
    int16_t level = (int16_t)((uint32_t)b->coefficients[0] * b->quant[0]);
    int value = ((level * 4 + 16) >> 5) + 128;
    value = value < 0 ? 0 : value > 255 ? 255 : value;
    for (int y = 0; y < 8; y++) memset(b->out + (size_t)y * b->stride, value, 8);
}

/* What each input is worth to the outputs, times 2^13. The sums of libjpeg's rounded constants: its
   own order of operations gives the same integers. */
#define EVEN_2 10703, 4433   /* of inputs 2 and 6 to the first and last, and to the inner two */
#define EVEN_6 4433, -10704
#define ODD_1 11363, 9633, 6437, 2260 /* of inputs 1, 3, 5 and 7 to each pair from outside in */
#define ODD_3 9633, -2259, -11362, -6436
#define ODD_5 6437, -11362, 2261, 9633
#define ODD_7 2260, -6436, 9633, -11363

#define BOTH(c, d) _mm256_set1_epi32((int)((uint32_t)(uint16_t)(c) | (uint32_t)(d) << 16))
#define AT(i, ...) AT_##i(__VA_ARGS__)
#define AT_0(a, ...) a
#define AT_1(a, b, ...) b
#define AT_2(a, b, c, ...) c
#define AT_3(a, b, c, d) d
#define ODD(i) \
    _mm256_add_epi32( \
        _mm256_madd_epi16(x13, BOTH(AT(i, ODD_1), AT(i, ODD_3))), \
        _mm256_madd_epi16(x57, BOTH(AT(i, ODD_5), AT(i, ODD_7))))
#define OUT(i, e, o) \
    out[i] = _mm256_srai_epi32(_mm256_add_epi32(e, o), shift); \
    out[7 - i] = _mm256_srai_epi32(_mm256_sub_epi32(e, o), shift)

/* Of pairs of inputs in 32 bits: 0 and 4, 2 and 6, 1 and 3, 5 and 7. */
INLINE void transform(__m256i x04, __m256i x26, __m256i x13, __m256i x57, __m256i *out, int shift)
{
    __m256i half = _mm256_set1_epi32(1 << (shift - 1));
    __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(x04, BOTH(8192, 8192)), half);
    __m256i less = _mm256_add_epi32(_mm256_madd_epi16(x04, BOTH(8192, -8192)), half);
    __m256i outer = _mm256_madd_epi16(x26, BOTH(AT(0, EVEN_2), AT(0, EVEN_6)));
    __m256i inner = _mm256_madd_epi16(x26, BOTH(AT(1, EVEN_2), AT(1, EVEN_6)));
    OUT(0, _mm256_add_epi32(sum, outer), ODD(0));
    OUT(1, _mm256_add_epi32(less, inner), ODD(1));
    OUT(2, _mm256_sub_epi32(less, inner), ODD(2));
    OUT(3, _mm256_sub_epi32(sum, outer), ODD(3));
}

#define PAIR(half, i, j) _mm256_unpack##half##_epi16(s[i], s[j])

/* Along the registers: eight rows of eight 16-bit numbers each. */
INLINE void transform_rows(__m256i s[8], int shift)
{
    __m256i lo[8], hi[8];
    transform(PAIR(lo, 0, 4), PAIR(lo, 2, 6), PAIR(lo, 1, 3), PAIR(lo, 5, 7), lo, shift);
    transform(PAIR(hi, 0, 4), PAIR(hi, 2, 6), PAIR(hi, 1, 3), PAIR(hi, 5, 7), hi, shift);
    for (int i = 0; i < 8; i++) s[i] = _mm256_packs_epi32(lo[i], hi[i]);
}

INLINE void transpose(__m256i s[8])
{
    for (int n = 0; n < 3; n++) {
        __m256i t[8];
        for (int i = 0; i < 4; i++) {
            t[2 * i] = PAIR(lo, i, i + 4);
            t[2 * i + 1] = PAIR(hi, i, i + 4);
        }
        memcpy(s, t, sizeof t);
    }
}

/* Two blocks at once, one in each half of the registers. */
static void inverse_dct(const Block *a, const Block *b)
{
    __m256i s[8], packed[4];
    for (int y = 0; y < 8; y++) {
        const Block *both[2] = {a, b};
        __m128i row[2];
        for (int n = 0; n < 2; n++)
            row[n] = _mm_mullo_epi16(
                _mm_loadu_si128((const __m128i *)(both[n]->coefficients + 8 * y)),
                _mm_loadu_si128((const __m128i *)(both[n]->quant + 8 * y)));
        s[y] = _mm256_set_m128i(row[1], row[0]);
    }
    transform_rows(s, 11);
    transpose(s);
    transform_rows(s, 18);
    for (int i = 0; i < 4; i++) packed[i] = _mm256_packs_epi16(s[2 * i], s[2 * i + 1]);
    for (int n = 0; n < 3; n++) { /* transposes, and leaves rows 2i and 2i + 1 in packed[i] */
        __m256i t[4];
        for (int i = 0; i < 2; i++) {
            t[2 * i] = _mm256_unpacklo_epi8(packed[i], packed[i + 2]);
            t[2 * i + 1] = _mm256_unpackhi_epi8(packed[i], packed[i + 2]);
        }
        memcpy(packed, t, sizeof t);
    }
    for (int i = 0; i < 4; i++) {
        __m256i rows = _mm256_xor_si256(packed[i], _mm256_set1_epi8(-128)); /* adds 128 */
        __m128d of_a = _mm_castsi128_pd(_mm256_castsi256_si128(rows));
        __m128d of_b = _mm_castsi128_pd(_mm256_extracti128_si256(rows, 1));
        uint8_t *to_a = a->out + 2 * (size_t)i * a->stride;
        uint8_t *to_b = b->out + 2 * (size_t)i * b->stride;
        _mm_storel_pd((double *)(void *)to_a, of_a);
        _mm_storeh_pd((double *)(void *)(to_a + a->stride), of_a);
        _mm_storel_pd((double *)(void *)to_b, of_b);
        _mm_storeh_pd((double *)(void *)(to_b + b->stride), of_b);
    }
}

/* -- colours ------------------------------------------------------------------------------------- */

#define RUN 64 /* pixels at once; as much may be read past a row's end */

INLINE uint8_t clamped(int16_t value) { return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value); }

/* round(a * factor / 2^16) for |a| up to 128. The compiler has one instruction for the product's
   upper half. */
INLINE int16_t times(int16_t a, int16_t factor)
{
    int16_t doubled = (int16_t)((int32_t)(int16_t)(2 * a) * factor >> 16);
    return (int16_t)((doubled + 1) >> 1);
}

/* JFIF's YCbCr to RGB: R = Y + 1.402 Cr, G = Y - 0.34414 Cb - 0.71414 Cr, B = Y + 1.772 Cb. */
static void to_rgb(
    uint8_t *restrict out, const uint8_t *restrict y, const uint8_t *restrict cb,
    const uint8_t *restrict cr, int width)
{
    uint8_t red[RUN], green[RUN], blue[RUN];
    for (int first = 0; first < width; first += RUN) {
        for (int i = 0; i < RUN; i++) {
            int16_t luma = y[first + i];
            int16_t b = (int16_t)(cb[first + i] - 128), r = (int16_t)(cr[first + i] - 128);
            red[i] = clamped((int16_t)(luma + r + times(r, 26345)));
            blue[i] = clamped((int16_t)(luma + 2 * b + times(b, -14942)));
            int16_t less = (int16_t)((-22554 * b + 18734 * r + 32768) >> 16);
            green[i] = clamped((int16_t)(luma - r + less));
        }
        uint8_t *to = out + 3 * (size_t)first;
        int count = width - first;
        if (count >= RUN) /* a number that the compiler knows */
            for (int i = 0; i < RUN; i++)
                to[3 * i] = red[i], to[3 * i + 1] = green[i], to[3 * i + 2] = blue[i];
        else
            for (int i = 0; i < count; i++)
                to[3 * i] = red[i], to[3 * i + 1] = green[i], to[3 * i + 2] = blue[i];
    }
}

/* A row of chroma at twice its width, libjpeg's triangle filter where `smooth`: three quarters of
   the nearer sample and one of the farther, in each direction that is halved. `far` is the nearer
   of the rows beside `near`, or NULL. `sums` has room before and after. */
static void widen(
    uint8_t *restrict out, const uint8_t *restrict near, const uint8_t *restrict far,
    int16_t *restrict sums, int count, int smooth)
{
    if (!smooth) {
        for (int i = 0; i < count; i++) out[2 * i] = out[2 * i + 1] = near[i];
        return;
    }
    if (far) for (int i = 0; i < count; i++) sums[i] = (int16_t)(3 * near[i] + far[i]);
    else for (int i = 0; i < count; i++) sums[i] = near[i];
    sums[-1] = sums[0], sums[count] = sums[count - 1];
    int bits = far ? 4 : 2, first = far ? 8 : 1, second = far ? 7 : 2;
    for (int i = 0; i < count; i++) {
        out[2 * i] = (uint8_t)((3 * sums[i] + sums[i - 1] + first) >> bits);
        out[2 * i + 1] = (uint8_t)((3 * sums[i] + sums[i + 1] + second) >> bits);
    }
}

typedef struct {
    int left, top, width, height;
} Box;

/* The box of the planes, as (height, width) or (height, width, 3). */
static void write_pixels(
    const Header *h, const Target *t, Box box, int smooth, uint8_t *out, uint8_t *room)
{
    int across = box.left - t->x0 * h->mcu_width, down = box.top - t->y0 * h->mcu_height;
    int is_halved = h->mcu_width == 16, is_halved_down = h->mcu_height == 16;
    int chroma_left = 8 * t->x0, chroma_width = (h->width + 1) / 2;
    int chroma_height = is_halved_down ? (h->height + 1) / 2 : h->height;
    int count = is_halved ? 8 * (t->x1 - t->x0) : 0;
    if (is_halved && count > chroma_width - chroma_left) count = chroma_width - chroma_left;
    size_t wide = 2 * (size_t)count + RUN;
    int16_t *sums = (int16_t *)(void *)(room + (2 * wide + 63) / 64 * 64) + RUN;
    for (int y = 0; y < box.height; y++) {
        const uint8_t *luma = t->plane[0] + (size_t)(down + y) * t->stride[0] + across;
        if (h->num_components == 1) {
            memcpy(out + (size_t)y * (size_t)box.width, luma, (size_t)box.width);
            continue;
        }
        const uint8_t *chroma[2];
        for (int c = 1; c < 3; c++) {
            const uint8_t *first = t->plane[c];
            size_t stride = t->stride[c];
            if (!is_halved) {
                chroma[c - 1] = first + (size_t)(down + y) * stride + across;
                continue;
            }
            int row = (box.top + y) >> is_halved_down, top_row = 8 * t->y0;
            const uint8_t *near = first + (size_t)(row - top_row) * stride, *far = NULL;
            if (is_halved_down && smooth) {
                int beside = (box.top + y) & 1 ? row + 1 : row - 1;
                if (beside < 0 || beside >= chroma_height) beside = row;
                far = first + (size_t)(beside - top_row) * stride;
            }
            uint8_t *row_out = room + (size_t)(c - 1) * wide;
            widen(row_out, near, far, sums, count, smooth);
            chroma[c - 1] = row_out + across;
        }
        to_rgb(out + 3 * (size_t)y * (size_t)box.width, luma, chroma[0], chroma[1], box.width);
    }
}
