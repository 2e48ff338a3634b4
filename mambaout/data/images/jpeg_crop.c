/* The pixels of a box of a baseline JPEG, and no more work than they need.

Gives what libjpeg-turbo gives with its accurate integer DCT, to the bit: the whole image decoded,
then the box cut out. (Coefficients that no encoder writes can make sums wrap in libjpeg-turbo's 16
bits that do not here.) Where a file has restart markers and their places are known (jpeg.py), only
the segments that the box touches are read. Blocks outside of the box get no inverse DCT.

Most of a JPEG decoder's time goes into Huffman codes, each of which begins where the one before
ends: a chain of dependent steps that leaves most of a core idle. Restart segments do not depend on
each other, so three of them are read in turns, symbol by symbol (`read_three`), and a table gives
code and value of a symbol in one look.

Memory: nothing outside of the buffers given is read or written, whatever the file holds. A block
takes at most 27 + 63 * 26 bits, so it is enough that SPARE zero bytes follow each segment's data
and that a block only begins inside of it.
*/

#include "jpeg_header.h"
#include "jpeg_pixels.h"

#define SPARE 320     /* zero bytes after a segment's data */
#define SEGMENT 65536 /* bytes that a segment has at most, by its index's uint16 */

/* -- reading the scan --------------------------------------------------------------------------- */

/* What is to be read, and how far it is. */
typedef struct {
    const Header *header;
    const Target *target;
    const uint8_t *file;
    size_t size;
    const uint8_t *lengths; /* of the segments; NULL: one, the whole scan */
    int row_segments, x0, x1; /* of a row of MCUs: all, and those that the box touches */
    int x, y; /* the next segment */
    size_t place; /* where it begins */
    Block late; /* waits for another block, to be transformed with it */
    int16_t *free; /* coefficients that no stream and no block uses */
    int is_damaged;
} Work;

/* A segment that is being read. */
typedef struct {
    const uint8_t *data;
    uint64_t position, end; /* in bits */
    const Huffman *ac;
    int64_t k; /* of the next coefficient */
    int16_t *coefficients;
    int block, mcus, mcu_x, mcu_y; /* its block in the MCU, its MCUs left, its MCU */
    int previous[3]; /* DC of each component */
    uint8_t *room;
    Work *work;
} Stream;

INLINE uint64_t bits_at(const uint8_t *data, uint64_t position)
{
    uint64_t word;
    memcpy(&word, data + (position >> 3), 8);
    return __builtin_bswap64(word) << (position & 7); /* 57 of them count */
}

/* The number that the first `size` of the bits stand for; 0 for none. */
INLINE int coded_value(uint64_t bits, uint32_t size)
{
    int is_negative = (int)~((int64_t)bits >> 63);
    return (int)((bits >> 1) >> (63 - size)) + (is_negative & (1 - (1 << size)));
}

/* The data from `*from` to a marker or the end, without the zero that follows each 0xFF in it; its
   bytes. `*from` becomes the marker's place. */
static size_t unstuff(uint8_t *out, const uint8_t **from, const uint8_t *end)
{
    uint8_t *o = out;
    const uint8_t *at = *from;
    while (at < end) {
        const uint8_t *mark = memchr(at, 0xFF, (size_t)(end - at));
        size_t plain = (size_t)((mark ? mark : end) - at);
        memcpy(o, at, plain);
        o += plain, at += plain;
        if (end - at < 2 || at[1] != 0) break;
        *o++ = 0xFF;
        at += 2;
    }
    memset(o, 0, SPARE);
    *from = at;
    return (size_t)(o - out);
}

static int is_end_of_image(const uint8_t *at, const uint8_t *end)
{
    while (end - at > 2 && at[0] == 0xFF && at[1] == 0xFF) at++; /* fill bytes */
    return end - at >= 2 && at[0] == 0xFF && at[1] == 0xD9;
}

static size_t length_at(const uint8_t *lengths, size_t index)
{
    uint16_t length;
    memcpy(&length, lengths + 2 * index, 2);
    return length;
}

/* 0: there is none left, or it is damaged. */
static int next_segment(Stream *s)
{
    Work *w = s->work;
    const Header *h = w->header;
    const Target *t = w->target;
    if (w->y >= t->y1) return 0;
    if (w->lengths) {
        size_t index = (size_t)w->y * (size_t)w->row_segments + (size_t)w->x;
        size_t length = length_at(w->lengths, index++);
        if (length < 2 || w->place > w->size || length > w->size - w->place) {
            w->is_damaged = 1;
            return 0;
        }
        const uint8_t *from = w->file + w->place;
        s->end = 8 * unstuff(s->room, &from, from + length - 2); /* a marker's two bytes follow */
        s->mcu_x = w->x * h->restart, s->mcu_y = w->y;
        s->mcus = t->x1 - s->mcu_x < h->restart ? t->x1 - s->mcu_x : h->restart;
        w->place += length;
        if (++w->x == w->x1) {
            if (++w->y < t->y1)
                for (int n = w->row_segments - w->x1 + w->x0; n; n--)
                    w->place += length_at(w->lengths, index++);
            w->x = w->x0;
        }
    } else {
        const uint8_t *from = w->file + h->scan, *end = w->file + w->size;
        s->end = 8 * unstuff(s->room, &from, end);
        if (!is_end_of_image(from, end)) { /* libjpeg warns, and Pillow may refuse the file */
            w->is_damaged = 1;
            return 0;
        }
        s->mcu_x = s->mcu_y = 0;
        s->mcus = (t->y1 - 1) * h->columns + t->x1;
        w->y = t->y1;
    }
    s->data = s->room;
    s->position = 0;
    s->block = 0;
    memset(s->previous, 0, sizeof s->previous);
    return 1;
}

INLINE int component_of(const Header *h, int block)
{
    return block < h->luma_blocks ? 0 : block - h->luma_blocks + 1;
}

/* Read a block's DC. 0: the segment is damaged. */
static int begin_block(Stream *s)
{
    const Header *h = s->work->header;
    int c = component_of(h, s->block);
    const Component *k = &h->component[c];
    const Huffman *dc = &h->dc[k->dc];
    uint64_t bits = bits_at(s->data, s->position);
    uint32_t entry = dc->code[bits >> (64 - CODE_BITS)];
    if (!entry) entry = long_code(dc, bits, 0);
    if (!entry || s->position >= s->end) {
        s->work->is_damaged = 1;
        return 0;
    }
    memset(s->coefficients, 0, 64 * sizeof *s->coefficients);
    /* Sums that a damaged file makes too large wrap. */
    s->previous[c] =
        (int)((unsigned)s->previous[c] + (unsigned)coded_value(bits << (entry & 63), entry >> 24));
    s->coefficients[0] = (int16_t)s->previous[c];
    s->position += entry >> 8 & 63;
    s->ac = &h->ac[k->ac];
    s->k = 1;
    return 1;
}

/* Its coefficients are all there. */
static void end_block(Stream *s)
{
    Work *w = s->work;
    const Target *t = w->target;
    if (s->mcu_y < t->y0 || s->mcu_x < t->x0 || s->mcu_x >= t->x1) return;
    int c = component_of(w->header, s->block);
    const Component *k = &w->header->component[c];
    int x = (s->mcu_x - t->x0) * k->across, y = (s->mcu_y - t->y0) * k->down;
    if (c == 0) x += s->block % k->across, y += s->block / k->across;
    size_t stride = t->stride[c];
    uint8_t *out = t->plane[c] + 8 * ((size_t)y * stride + (size_t)x);
    Block block = {s->coefficients, w->header->quant[k->quant], out, stride};
    if (s->k == 1 + END_OF_BLOCK + 1) fill_flat(&block);
    else if (w->late.out) {
        inverse_dct(&w->late, &block);
        w->late.out = NULL;
        w->free = w->late.coefficients;
    } else {
        w->late = block;
        s->coefficients = w->free;
    }
}

/* From the end of a block to the first AC of the next. 0: the stream has no more, or is damaged. */
static __attribute__((noinline)) int next_block(Stream *s)
{
    const Header *h = s->work->header;
    int is_past_end = s->k > 64 && s->k <= END_OF_BLOCK; /* by a run of zeros */
    if (s->position > s->end || s->k >= NO_CODE || is_past_end) {
        s->work->is_damaged = 1;
        return 0;
    }
    end_block(s);
    if (++s->block == h->mcu_blocks) {
        s->block = 0;
        if (++s->mcu_x == h->columns) s->mcu_x = 0, s->mcu_y++;
        if (--s->mcus == 0 && !next_segment(s)) return 0;
    }
    return begin_block(s);
}

/* The compiler keeps these in registers. */
#define TAKE(S) \
    const uint8_t *S##_data = S->data; \
    uint64_t S##_position = S->position; \
    int64_t S##_k = S->k; \
    const Huffman *S##_ac = S->ac; \
    int16_t *S##_coefficients = S->coefficients;
#define GIVE(S) S->position = S##_position, S->k = S##_k;

#define SYMBOL(S) \
    entry = S##_ac->whole[bits >> (64 - WHOLE_BITS)]; \
    if (__builtin_expect(!entry, 0)) goto S##_longer; \
    S##_k += entry >> 8 & 255; \
    S##_coefficients[PLACE[S##_k - 1]] = (int16_t)(entry >> 16); \
    bits <<= entry & 63; \
    S##_position += entry & 63; \
    if (S##_k >= 64) goto S##_full;

/* Up to four symbols of a stream; to ENDED where it has no more. */
#define STEP(S, ENDED) \
    bits = bits_at(S##_data, S##_position); \
    SYMBOL(S) SYMBOL(S) SYMBOL(S) SYMBOL(S) \
    goto S##_on; \
S##_longer: \
    bits = bits_at(S##_data, S##_position); \
    entry = S##_ac->code[bits >> (64 - CODE_BITS)]; \
    if (__builtin_expect(!entry, 0)) entry = long_code(S##_ac, bits, 1); \
    S##_k += entry >> 16 & 255; \
    S##_coefficients[PLACE[S##_k]] = (int16_t)coded_value(bits << (entry & 63), entry >> 24); \
    S##_k++; \
    S##_position += entry >> 8 & 63; \
    if (S##_k < 64) goto S##_on; \
S##_full: \
    GIVE(S) \
    if (!next_block(S)) goto ENDED; \
    S##_position = S->position; \
    S##_k = S->k; \
    S##_ac = S->ac; \
    S##_coefficients = S->coefficients; \
S##_on:

static void read_one(Stream *a)
{
    uint32_t entry;
    uint64_t bits;
    TAKE(a)
    for (;;) {
        STEP(a, ended)
        ;
    }
ended:;
}

/* Until one of them ends; it is the one whose `mcus` are 0, or all are damaged. */
static void read_three(Stream *a, Stream *b, Stream *c)
{
    uint32_t entry;
    uint64_t bits;
    TAKE(a) TAKE(b) TAKE(c)
    for (;;) {
        STEP(a, a_ended)
        STEP(b, b_ended)
        STEP(c, c_ended)
        ;
    }
a_ended:
    GIVE(b) GIVE(c)
    return;
b_ended:
    GIVE(a) GIVE(c)
    return;
c_ended:
    GIVE(a) GIVE(b)
}

/* `rooms`: a segment's, three times where there are `lengths`. */
static int read_blocks(Work *w, uint8_t *rooms)
{
    enum { STREAMS = 3 };
    int16_t coefficients[STREAMS + 1][96] __attribute__((aligned(64)));
    Stream streams[STREAMS];
    int started = 0;
    w->free = coefficients[STREAMS];
    for (int n = 0; n < (w->lengths ? STREAMS : 1); n++) {
        Stream *s = &streams[n];
        s->work = w;
        s->coefficients = coefficients[n];
        s->room = rooms + (size_t)n * (SEGMENT + SPARE);
        if (!next_segment(s) || !begin_block(s)) break;
        started++;
    }
    if (started == STREAMS && !w->is_damaged) read_three(&streams[0], &streams[1], &streams[2]);
    for (int n = 0; n < started; n++)
        if (streams[n].mcus && !w->is_damaged) read_one(&streams[n]);
    if (w->late.out && !w->is_damaged) inverse_dct(&w->late, &w->late);
    w->late.coefficients = w->free = NULL;
    return w->is_damaged ? DAMAGED : DONE;
}

/* -- the one function that is called from outside ------------------------------------------------ */

static int has_segments(const Header *h, size_t num_segments)
{
    if (h->restart < 1 || h->columns % h->restart) return 0;
    return (size_t)(h->columns / h->restart) * (size_t)h->rows == num_segments;
}

/* Decode a box of a JPEG, uint8 (height, width) of a grey one and (height, width, 3) RGB of one in
   JFIF's YCbCr, into `out`. `lengths`: the bytes of the restart segments, uint16 each, of
   `num_lengths`; NULL for a file whose scan has no restart markers. `smooth`: chroma is interpolated
   as libjpeg does by default, otherwise repeated.

   Gives 0; 1 for a file that is not for this decoder; 2 for a damaged one; or, negative, how many
   bytes `scratch` needs where `scratch_size` are too few. */
__attribute__((visibility("default"))) int64_t decode_box(
    const uint8_t *file, size_t size, const uint8_t *lengths, size_t num_lengths, int left, int top,
    int width, int height, int smooth, uint8_t *out, uint8_t *scratch, size_t scratch_size)
{
    static _Thread_local Header h; /* 90 kB */
    int status = read_header(&h, file, size);
    if (status) return status;
    if (lengths ? !has_segments(&h, num_lengths) : h.restart) return NOT_OURS;
    if (left < 0 || top < 0 || width < 1 || height < 1) return NOT_OURS;
    if (width > h.width - left || height > h.height - top) return NOT_OURS;
    int margin = smooth && h.mcu_width == 16; /* interpolation looks one chroma sample farther */
    int right = left + width + margin, bottom = top + height + margin;
    Target t = {
        .x0 = (left > margin ? left - margin : 0) / h.mcu_width,
        .y0 = (top > margin ? top - margin : 0) / h.mcu_height,
        .x1 = ((right < h.width ? right : h.width) + h.mcu_width - 1) / h.mcu_width,
        .y1 = ((bottom < h.height ? bottom : h.height) + h.mcu_height - 1) / h.mcu_height,
    };
    size_t used = 0, place[3] = {0};
    for (int c = 0; c < h.num_components; c++) {
        const Component *k = &h.component[c];
        t.stride[c] = 8 * (size_t)(t.x1 - t.x0) * (size_t)k->across + RUN;
        place[c] = used;
        used += t.stride[c] * (8 * (size_t)(t.y1 - t.y0) * (size_t)k->down + 1);
    }
    size_t row_room = 8 * t.stride[0] + 8 * RUN; /* two rows of chroma, and sums */
    size_t rooms = lengths ? 3 * (SEGMENT + SPARE) : size + SPARE;
    size_t needed = used + (rooms > row_room ? rooms : row_room);
    if (scratch_size < needed) return -(int64_t)needed;
    for (int c = 0; c < h.num_components; c++) t.plane[c] = scratch + place[c];

    Work w = {.header = &h, .target = &t, .file = file, .size = size, .lengths = lengths};
    if (lengths) {
        w.row_segments = h.columns / h.restart;
        w.x = w.x0 = t.x0 / h.restart;
        w.x1 = (t.x1 + h.restart - 1) / h.restart;
        w.y = t.y0;
        w.place = h.scan;
        size_t before = (size_t)w.y * (size_t)w.row_segments + (size_t)w.x;
        for (size_t i = 0; i < before; i++) w.place += length_at(lengths, i);
    }
    status = read_blocks(&w, scratch + used);
    if (status == DONE)
        write_pixels(&h, &t, (Box){left, top, width, height}, smooth, out, scratch + used);
    return status;
}
