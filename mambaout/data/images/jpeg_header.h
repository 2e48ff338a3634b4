/* What a baseline JPEG's header says: ITU-T T.81's markers, and Huffman codes as tables to look up. */

#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { DONE = 0, NOT_OURS = 1, DAMAGED = 2 };

#define WHOLE_BITS 12   /* four symbols of so many bits are in 57, which one load gives */
#define CODE_BITS 9
#define END_OF_BLOCK 80 /* steps: from any place of a block past all that a run can reach */
#define NO_CODE 160     /* steps: past all that an end of block can reach */

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
