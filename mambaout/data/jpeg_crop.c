/* The pixels of a box of a baseline JPEG, and no more work than they need.

Gives what libjpeg-turbo gives with its accurate integer DCT, to the bit: the whole image decoded,
then the box cut out. Where a file has restart markers and their places are known (jpeg.py), only
the segments that the box touches are read. Blocks outside of the box get no inverse DCT.

Most of a JPEG decoder's time goes into Huffman codes, each of which begins where the one before
ends: a chain of dependent steps that leaves most of a core idle. Restart segments do not depend on
each other, so three of them are read in turns, symbol by symbol (`read_three`), and a table gives
code and value of a symbol in one look.

The Huffman codes, the zigzag order and the markers are those of ITU-T T.81; the inverse DCT is
Loeffler, Ligtenberg and Moschytz's (ICASSP 1989) in 13-bit fixed point, in which libjpeg has it.

Memory: nothing outside of the buffers given is read or written, whatever the file holds. A block
takes at most 27 + 63 * 26 bits, so it is enough that SPARE zero bytes follow each segment's data
and that a block only begins inside of it.
*/

#include <immintrin.h> /* AVX2 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { DONE = 0, NOT_OURS = 1, DAMAGED = 2 };

#define SPARE 320        /* zero bytes after a segment's data */
#define SEGMENT 65536    /* bytes that a segment has at most, by its index's uint16 */
#define WHOLE_BITS 12    /* four symbols of so many bits are in 57, which one load gives */
#define CODE_BITS 9
#define END_OF_BLOCK 80  /* steps: from any place of a block past all that a run can reach */
#define NO_CODE 160      /* steps: past all that an end of block can reach */

#define INLINE static inline __attribute__((always_inline))

/* -- Huffman tables ---------------------------------------------------------------------------- */

typedef struct {
    /* AC: by the next WHOLE_BITS bits, bits of code and value | steps << 8 | value << 16; 0 where
       they are too long. */
    uint32_t whole[1 << WHOLE_BITS];
    /* By the next CODE_BITS bits, bits of the code | of code and value << 8 | steps before the
       coefficient << 16 | bits of the value << 24; 0 where the code is longer. */
    uint32_t code[1 << CODE_BITS];
    int32_t limit[17]; /* codes of this length are below it, as 16 bits from the left */
    int32_t offset[17]; /* from a code of this length to its symbol */
    uint8_t symbols[256];
    int num_symbols;
} Huffman;

static uint32_t code_entry(int length, int symbol, int is_ac)
{
    int bits = is_ac ? symbol & 15 : symbol;
    int steps = is_ac ? symbol >> 4 : 0;
    if (is_ac && bits == 0 && symbol != 0xF0) steps = END_OF_BLOCK;
    return (uint32_t)length | (uint32_t)(length + bits) << 8 | (uint32_t)steps << 16
        | (uint32_t)bits << 24;
}

static void add_whole(Huffman *table, int code, int length, int symbol)
{
    int bits = symbol & 15, spare = WHOLE_BITS - length - bits;
    if (spare < 0) return;
    int steps = bits || symbol == 0xF0 ? (symbol >> 4) + 1 : END_OF_BLOCK + 1;
    uint32_t same = (uint32_t)(length + bits) | (uint32_t)steps << 8;
    uint32_t *at = table->whole + ((size_t)code << (WHOLE_BITS - length));
    for (int coded = 0; coded < 1 << bits; coded++) {
        int is_negative = bits && !(coded >> (bits - 1));
        int value = is_negative ? coded + 1 - (1 << bits) : coded;
        for (int n = 1 << spare; n; n--) *at++ = same | (uint32_t)value << 16;
    }
}

/* From the numbers of codes of each length, 16 bytes, and their symbols. 0: no such code. */
static int build(Huffman *table, const uint8_t *counts, const uint8_t *symbols, int is_ac)
{
    int code = 0, index = 0;
    memset(table->code, 0, sizeof table->code);
    if (is_ac) memset(table->whole, 0, sizeof table->whole);
    for (int length = 1; length <= 16; length++) {
        table->offset[length] = index - code;
        for (int i = 0; i < counts[length - 1]; i++, code++, index++) {
            int symbol = symbols[index];
            if (code >> length || (is_ac ? symbol & 15 : symbol) > (is_ac ? 10 : 11)) return 0;
            table->symbols[index] = (uint8_t)symbol;
            if (is_ac) add_whole(table, code, length, symbol);
            if (length <= CODE_BITS) {
                uint32_t *at = table->code + ((size_t)code << (CODE_BITS - length));
                for (int n = 1 << (CODE_BITS - length); n; n--)
                    *at++ = code_entry(length, symbol, is_ac);
            }
        }
        table->limit[length] = code << (16 - length);
        code <<= 1;
    }
    table->num_symbols = index;
    return 1;
}

/* The entry of a code that is longer than CODE_BITS. */
static __attribute__((noinline)) uint32_t long_code(const Huffman *table, uint64_t bits, int is_ac)
{
    int next = (int)(bits >> 48);
    for (int length = CODE_BITS + 1; length <= 16; length++)
        if (next < table->limit[length]) {
            int index = (next >> (16 - length)) + table->offset[length];
            if (index >= 0 && index < table->num_symbols)
                return code_entry(length, table->symbols[index], is_ac);
        }
    return is_ac ? NO_CODE << 16 : 0;
}

/* -- the header -------------------------------------------------------------------------------- */

typedef struct {
    int across, down; /* blocks in an MCU */
    int id, quant, dc, ac;
} Component;

typedef struct {
    int width, height, num_components;
    int mcu_width, mcu_height; /* in pixels */
    int columns, rows; /* of MCUs */
    int restart; /* MCUs between restart markers, or 0 */
    int luma_blocks, mcu_blocks;
    size_t scan; /* where its data begins */
    Component component[3];
    uint16_t quant[4][64]; /* by place in the block */
    Huffman dc[2], ac[2];
    unsigned has_quant, has_dc, has_ac; /* bits */
} Header;

/* From the coded order to places in the block; what lies past its end goes to a place behind it. */
static const uint8_t PLACE[256] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    [64 ... 255] = 64,
};

static int big16(const uint8_t *p) { return p[0] << 8 | p[1]; }

static int read_quant(Header *h, const uint8_t *p, const uint8_t *end)
{
    while (p < end) {
        int id = *p & 15, wide = *p >> 4;
        if (id > 3 || wide > 1 || end - p < 1 + (64 << wide)) return NOT_OURS;
        p++;
        for (int k = 0; k < 64; k++, p += 1 + wide)
            h->quant[id][PLACE[k]] = (uint16_t)(wide ? big16(p) : *p);
        h->has_quant |= 1u << id;
    }
    return DONE;
}

static int read_huffman(Header *h, const uint8_t *p, const uint8_t *end)
{
    while (p < end) {
        if (end - p < 17) return NOT_OURS;
        int is_ac = *p >> 4, id = *p & 15, total = 0;
        for (int i = 1; i <= 16; i++) total += p[i];
        if (is_ac > 1 || id > 1 || total > 256 || end - p < 17 + total) return NOT_OURS;
        if (!build(is_ac ? &h->ac[id] : &h->dc[id], p + 1, p + 17, is_ac)) return NOT_OURS;
        *(is_ac ? &h->has_ac : &h->has_dc) |= 1u << id;
        p += 17 + total;
    }
    return DONE;
}

static int read_frame(Header *h, const uint8_t *p, const uint8_t *end)
{
    if (h->num_components || end - p < 6 || p[0] != 8) return NOT_OURS;
    h->height = big16(p + 1), h->width = big16(p + 3);
    int num = p[5];
    if (!h->height || !h->width || (num != 1 && num != 3) || end - p < 6 + 3 * num) return NOT_OURS;
    h->num_components = num;
    for (int c = 0; c < num; c++) {
        const uint8_t *q = p + 6 + 3 * c;
        h->component[c] =
            (Component){.id = q[0], .across = q[1] >> 4, .down = q[1] & 15, .quant = q[2]};
    }
    return DONE;
}

static int read_scan(Header *h, const uint8_t *p, const uint8_t *end)
{
    int num = h->num_components;
    if (!num || end - p < 1 + 2 * num + 3 || p[0] != num) return NOT_OURS;
    for (int c = 0; c < num; c++) {
        Component *k = &h->component[c];
        const uint8_t *q = p + 1 + 2 * c;
        k->dc = q[1] >> 4, k->ac = q[1] & 15;
        if (q[0] != k->id || k->quant > 3 || k->dc > 1 || k->ac > 1) return NOT_OURS;
        if (!(h->has_quant >> k->quant & h->has_dc >> k->dc & h->has_ac >> k->ac & 1))
            return NOT_OURS;
    }
    Component *luma = h->component;
    if (num == 1) /* a scan of one component has its blocks one by one */
        luma->across = luma->down = 1;
    else
        for (int c = 1; c < 3; c++)
            if (luma[c].across != 1 || luma[c].down != 1) return NOT_OURS;
    int is_plain = luma->across == 1 && luma->down == 1;
    int is_halved = luma->across == 2 && (luma->down == 1 || luma->down == 2);
    if (!is_plain && !is_halved) return NOT_OURS;
    if (is_halved && h->width < 8) return NOT_OURS; /* libjpeg does not smooth so few samples */
    h->luma_blocks = luma->across * luma->down;
    h->mcu_blocks = h->luma_blocks + num - 1;
    h->mcu_width = 8 * luma->across, h->mcu_height = 8 * luma->down;
    h->columns = (h->width + h->mcu_width - 1) / h->mcu_width;
    h->rows = (h->height + h->mcu_height - 1) / h->mcu_height;
    return DONE;
}

static int read_header(Header *h, const uint8_t *file, size_t size)
{
    size_t at = 2;
    if (size < 4 || big16(file) != 0xFFD8) return NOT_OURS;
    h->num_components = h->restart = 0;
    h->has_quant = h->has_dc = h->has_ac = 0;
    for (;;) {
        if (size - at < 4 || file[at] != 0xFF) return NOT_OURS;
        int marker = file[at + 1], status = DONE;
        if (marker == 0xFF) { /* a fill byte */
            at++;
            continue;
        }
        size_t length = (size_t)big16(file + at + 2);
        if (length < 2 || length > size - at - 2) return NOT_OURS;
        const uint8_t *p = file + at + 4, *end = file + at + 2 + length;
        at += 2 + length;
        if (marker == 0xDB) status = read_quant(h, p, end);
        else if (marker == 0xC4) status = read_huffman(h, p, end);
        else if (marker == 0xC0 || marker == 0xC1) status = read_frame(h, p, end);
        else if (marker == 0xDD && end - p >= 2) h->restart = big16(p);
        else if (marker == 0xDA) {
            h->scan = at;
            return read_scan(h, p, end);
        } else if (marker < 0xE0) /* another coding, or no place for it here */
            return NOT_OURS;
        if (status) return status;
    }
}

/* -- the inverse DCT ---------------------------------------------------------------------------- */

typedef struct {
    int16_t *coefficients; /* 64 and what is written past the block's end */
    const uint16_t *quant;
    uint8_t *out; /* NULL: none */
    size_t stride;
} Block;

static void fill_flat(const Block *b)
{
    int value = ((b->coefficients[0] * b->quant[0] * 4 + 16) >> 5) + 128;
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

/* -- reading the scan --------------------------------------------------------------------------- */

/* The planes that blocks go to, and which MCUs they hold. */
typedef struct {
    uint8_t *plane[3];
    size_t stride[3];
    int x0, y0, x1, y1;
} Target;

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

/* The data of a segment without the zeros that follow each 0xFF in it; its bytes. */
static size_t unstuff(uint8_t *out, const uint8_t *from, size_t size)
{
    uint8_t *o = out;
    const uint8_t *end = from + size;
    while (from < end) {
        const uint8_t *mark = memchr(from, 0xFF, (size_t)(end - from));
        size_t plain = (size_t)((mark ? mark : end) - from);
        memcpy(o, from, plain);
        o += plain;
        if (!mark || end - mark < 2 || mark[1] != 0) break; /* a marker ends it */
        *o++ = 0xFF;
        from = mark + 2;
    }
    memset(o, 0, SPARE);
    return (size_t)(o - out);
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
        s->end = 8 * unstuff(s->room, w->file + w->place, length - 2); /* a marker ends it */
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
        s->end = 8 * unstuff(s->room, w->file + h->scan, w->size - h->scan);
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
    int count = 8 * (t->x1 - t->x0);
    if (count > chroma_width - chroma_left) count = chroma_width - chroma_left;
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
