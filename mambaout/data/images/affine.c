/* Pillow's affine transform of an RGB image, bilinear or bicubic, to the bit.

The arithmetic is Pillow's: in doubles, in its order of operations, and without fused multiply-adds
(-ffp-contract=off). What is saved: the channels of a pixel are computed together, there is nothing
to interpolate along a direction in which a place lies on a pixel (an interpolation at 0 gives the
pixel itself), and only near the border are places clamped.
*/

#include <immintrin.h> /* AVX2 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef double Pixel __attribute__((vector_size(32))); /* red, green, blue and one more */

typedef struct {
    const uint8_t *pixels; /* four bytes each */
    int width, height;
} Image;

/* The place that is looked into: the pixel to the left and above, and the parts beyond it. */
typedef struct {
    int x, y;
    double across, down;
    int is_inner; /* every pixel around it is there */
} Place;

INLINE int within(int place, int size) { return place < 0 ? 0 : place >= size ? size - 1 : place; }

/* Row y of the image. */
INLINE const uint8_t *row_at(Image image, int y, int is_inner)
{
    return image.pixels + 4 * (int64_t)(is_inner ? y : within(y, image.height)) * image.width;
}

/* Pixel x of a row. */
INLINE Pixel pixel_at(const uint8_t *row, int x, int width, int is_inner)
{
    int32_t bytes;
    memcpy(&bytes, row + 4 * (int64_t)(is_inner ? x : within(x, width)), 4);
    return (Pixel)_mm256_cvtepi32_pd(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(bytes)));
}

INLINE Pixel linear(Pixel a, Pixel b, double part) { return a + (b - a) * part; }

/* The cubic of parameter -1, where Pillow resizes with that of -0.5. */
INLINE Pixel cubic(Pixel a, Pixel b, Pixel c, Pixel d, double part)
{
    Pixel first = -a + c, second = 2 * (a - b) + c - d, third = -a + b - c + d;
    return b + part * (first + part * (second + part * third));
}

INLINE Pixel linear_in_row(Image image, Place at, int y)
{
    const uint8_t *row = row_at(image, y, at.is_inner);
    Pixel first = pixel_at(row, at.x, image.width, at.is_inner);
    if (at.across == 0) return first;
    return linear(first, pixel_at(row, at.x + 1, image.width, at.is_inner), at.across);
}

INLINE Pixel cubic_in_row(Image image, Place at, int y)
{
    const uint8_t *row = row_at(image, y, at.is_inner);
    Pixel second = pixel_at(row, at.x, image.width, at.is_inner);
    if (at.across == 0) return second;
    Pixel first = pixel_at(row, at.x - 1, image.width, at.is_inner);
    Pixel third = pixel_at(row, at.x + 1, image.width, at.is_inner);
    Pixel fourth = pixel_at(row, at.x + 2, image.width, at.is_inner);
    return cubic(first, second, third, fourth, at.across);
}

INLINE Pixel bilinear(Image image, Place at)
{
    Pixel first = linear_in_row(image, at, at.y);
    if (at.down == 0) return first;
    return linear(first, linear_in_row(image, at, at.y + 1), at.down);
}

INLINE Pixel bicubic(Image image, Place at)
{
    Pixel second = cubic_in_row(image, at, at.y);
    if (at.down == 0) return second;
    Pixel first = cubic_in_row(image, at, at.y - 1);
    Pixel third = cubic_in_row(image, at, at.y + 1);
    return cubic(first, second, third, cubic_in_row(image, at, at.y + 2), at.down);
}

/* Truncated, and 0 to 255. */
INLINE void write_pixel(uint8_t *out, Pixel pixel)
{
    __m128i whole = _mm256_cvttpd_epi32((__m256d)pixel);
    whole = _mm_packus_epi16(_mm_packs_epi32(whole, whole), whole);
    int32_t bytes = _mm_cvtsi128_si32(whole);
    memcpy(out, &bytes, 3);
}

INLINE void transform(
    Image image, const double *map, const uint8_t *fill, int is_bicubic, uint8_t *out)
{
    for (int y = 0; y < image.height; y++)
        for (int x = 0; x < image.width; x++, out += 3) {
            double right = x + 0.5, below = y + 0.5;
            double from_x = map[0] * right + map[1] * below + map[2];
            double from_y = map[3] * right + map[4] * below + map[5];
            if (!(from_x >= 0 && from_x < image.width && from_y >= 0 && from_y < image.height)) {
                memcpy(out, fill, 3);
                continue;
            }
            from_x -= 0.5, from_y -= 0.5;
            double left = floor(from_x), top = floor(from_y);
            Place at = {(int)left, (int)top, from_x - left, from_y - top, 0};
            int is_inner = at.x >= 1 && at.x < image.width - 2 && at.y >= 1 && at.y < image.height - 2;
            if (is_inner) { /* a number that the compiler knows */
                at.is_inner = 1;
                write_pixel(out, is_bicubic ? bicubic(image, at) : bilinear(image, at));
            } else
                write_pixel(out, is_bicubic ? bicubic(image, at) : bilinear(image, at));
        }
}

/* uint8 (height, width, 4) to uint8 (height, width, 3). `map` takes places of the result to places
   of the image, six numbers; `fill` stands where they lie outside. */
__attribute__((visibility("default"))) void affine(
    const uint8_t *pixels, int height, int width, const double *map, const uint8_t *fill,
    int is_bicubic, uint8_t *out)
{
    Image image = {pixels, width, height};
    if (is_bicubic) transform(image, map, fill, 1, out);
    else transform(image, map, fill, 0, out);
}
