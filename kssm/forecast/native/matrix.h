/* Weight matrices in the formats they may be stored in, packed for reading front to back.
 *
 * A matrix [outputs, inputs] is stored as panels of PANEL outputs. A panel of floating-point
 * numbers is [inputs][PANEL]; one of bytes is [inputs / 4][PANEL][4], each byte 128 more than the
 * weight, and the sizes of the weights' units, one an output, follow the panels.
 */
#ifndef KSSM_MATRIX_H
#define KSSM_MATRIX_H

#include "lanes.h"

#define CHAIN 32 /* inputs added up at a time: one long sum would round four times as much */
#define LINE 64  /* bytes in a line of the caches */

/* Mirrored in weights.py. */
typedef enum { FLOAT32, FLOAT16, BFLOAT16, INT8 } Format;

typedef struct {
    Format format;
    int64_t outputs, inputs;
    const char *panels;
    const float *units; /* INT8 only: weight = unit * byte */
} Matrix;

static inline int64_t rounded_up(int64_t size, int64_t step) {
    return (size + step - 1) / step * step;
}

static inline int64_t padded(int64_t size) { return rounded_up(size, PANEL); }

static inline int64_t panel_bytes(Format format, int64_t inputs) {
    if (format == INT8) return rounded_up(inputs, 4) * PANEL;
    return inputs * PANEL * (format == FLOAT32 ? 4 : 2);
}

static inline int64_t panels_bytes(const Matrix *m) {
    return padded(m->outputs) / PANEL * panel_bytes(m->format, m->inputs);
}

/* One panel of numbers of `size` bytes. */
static inline void pack_panel(int size, const char *weight, int64_t first, const Matrix *m,
                              char *out) {
    for (int64_t k = 0; k < m->inputs; k++)
        for (int64_t j = first; j < first + PANEL; j++, out += size)
            if (j < m->outputs) memcpy(out, weight + (j * m->inputs + k) * size, (size_t)size);
}

static void pack_bytes(const int8_t *weight, int64_t first, const Matrix *m, uint8_t *out) {
    for (int64_t k = 0; k < m->inputs; k += 4)
        for (int64_t j = first; j < first + PANEL; j++)
            for (int64_t i = k; i < k + 4; i++)
                *out++ = j < m->outputs && i < m->inputs
                             ? (uint8_t)(weight[j * m->inputs + i] + 128)
                             : 128;
}

/* Fills the panels at `out`, which hold zeros, from a row-major matrix. */
static void pack(const void *weight, const Matrix *m, char *out) {
    int64_t size = panel_bytes(m->format, m->inputs);
    for (int64_t first = 0; first < m->outputs; first += PANEL, out += size) {
        if (m->format == INT8) pack_bytes(weight, first, m, (uint8_t *)out);
        else if (m->format == FLOAT32) pack_panel(4, weight, first, m, out);
        else pack_panel(2, weight, first, m, out);
    }
}

/* What a product asks for on its way: with each chain `burst` bytes from `next` on, for the cache
 * of `level`. */
typedef struct {
    int level; /* 1 or 2 */
    const char *next;
    int64_t burst;
} Ahead;

/* To ask for `share` bytes in a product of `inputs`. */
INLINE Ahead ahead_of(const int level, const char *next, int64_t share, int64_t inputs) {
    return (Ahead){level, next, rounded_up(share * CHAIN / inputs, LINE)};
}

/* Asks for the next burst. */
INLINE void ask(Ahead *ahead) {
    const char *next = ahead->next;
    for (int64_t i = 0; i < ahead->burst; i += LINE)
        if (ahead->level == 1) __builtin_prefetch(next + i, 0, 3);
        else __builtin_prefetch(next + i, 0, 2);
    ahead->next = next + ahead->burst;
}

/* Asks for the first lines of the panels that will be read at once: the processor sees that more
 * is to come only when some of a sequence was asked for. */
INLINE void ask_for_first(const Matrix *m, int64_t panels) {
    int64_t size = panel_bytes(m->format, m->inputs);
    for (int64_t p = 0; p < panels && p * PANEL < m->outputs; p++)
        for (int64_t i = 0; i < 8 * LINE && i < size; i += LINE)
            __builtin_prefetch(m->panels + p * size + i, 0, 2);
}

/* The first bytes of packed weights that do not fit into the second-level cache. It would drop each
 * line just before it is needed again, were these not asked for time and again while the others
 * pass through. No bytes: the weights fit, or nothing is known of the cache. */
typedef struct {
    const char *start;
    int64_t bytes;
} Kept;

/* While `size` bytes at `panel` are read, two fifths as many of those that are kept are asked for:
 * all of them each time that two and a half times as much has passed through. */
INLINE Ahead keeping(const Kept *kept, const char *panel, int64_t size, int64_t inputs) {
    if (!kept->bytes) return (Ahead){1, panel, 0};
    int64_t at = (panel - kept->start) * 2 / 5 % kept->bytes;
    return ahead_of(1, kept->start + at, size * 2 / 5, inputs);
}

#endif
