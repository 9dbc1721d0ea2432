/* Matrix-vector and small matrix-matrix products over packed weights.
 *
 * A panel is read front to back once for each ROWS rows. Every output of floating-point weights
 * is a sum of chains of multiply-adds in a fixed order, whatever the number of rows, so a row's
 * result does not depend on its batch; nor on whether the same numbers are stored in 32 or 16 bits.
 */
#ifndef KSSM_LINEAR_H
#define KSSM_LINEAR_H

#include "integer.h"

#define CHAIN 32 /* inputs added up at a time: one long sum would round four times as much */
#define LINE 64  /* bytes in a line of the caches */

/* Where a product keeps what it needs on the way. */
typedef struct {
    Rounded rounded;
    float *panel; /* a panel of 16 bits, widened */
} Aside;

INLINE vector weight_at(const Format format, const char *panel, int64_t at) {
    if (format == FLOAT16) return widen_float16((const uint16_t *)panel + at);
    if (format == BFLOAT16) return widen_bfloat16((const uint16_t *)panel + at);
    return *(const stored *)((const float *)panel + at);
}

/* `panels` panels for `rows` rows; constant arguments, so that `sum` lives in registers. With each
 * chain `burst` bytes are asked for from `next` on. */
INLINE void float_tile(const Format format, const int rows, const int panels, const char *panel,
                       int64_t inputs, const float *x, float *y, int64_t stride, const char *next,
                       int64_t burst) {
    int64_t size = panel_bytes(format, inputs);
    vector total[ROWS][8];
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int p = 0; p < 2 * panels; p++) total[r][p] = (vector){0};
    for (int64_t start = 0; start < inputs; start += CHAIN) {
        int64_t end = start + CHAIN < inputs ? start + CHAIN : inputs;
        for (int64_t i = 0; i < burst; i += LINE) __builtin_prefetch(next + i, 0, 2);
        next += burst;
        vector sum[ROWS][8];
        UNROLL
        for (int r = 0; r < rows; r++)
            UNROLL
            for (int p = 0; p < 2 * panels; p++) sum[r][p] = (vector){0};
        for (int64_t k = start; k < end; k++)
            UNROLL
            for (int p = 0; p < 2 * panels; p++) {
                vector w = weight_at(format, panel + p / 2 * size, k * PANEL + p % 2 * LANES);
                UNROLL
                for (int r = 0; r < rows; r++) sum[r][p] += w * x[r * stride + k];
            }
        UNROLL
        for (int r = 0; r < rows; r++)
            UNROLL
            for (int p = 0; p < 2 * panels; p++) total[r][p] += sum[r][p];
    }
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int p = 0; p < 2 * panels; p++) *(stored *)(y + r * stride + p * LANES) = total[r][p];
}

/* As many panels at once as hide the latency of an addition, for one row. */
INLINE void float_vector(const Format format, const Matrix *m, const float *x, float *y) {
    int64_t size = panel_bytes(format, m->inputs), count = padded(m->outputs) / PANEL, i = 0;
    for (; i + 4 <= count; i += 4)
        float_tile(format, 1, 4, m->panels + i * size, m->inputs, x, y + i * PANEL, 0, NULL, 0);
    for (; i < count; i++)
        float_tile(format, 1, 1, m->panels + i * size, m->inputs, x, y + i * PANEL, 0, NULL, 0);
}

static void float_rows(int64_t rows, const float *panel, int64_t inputs, const float *x, float *y,
                       int64_t stride, const char *next, int64_t burst) {
#define CASE(R) \
    case R: \
        float_tile(FLOAT32, R, 1, (const char *)panel, inputs, x, y, stride, next, burst); \
        break
    switch (rows) {
        CASE(1); CASE(2); CASE(3); CASE(4);
#if ROWS == 8
        CASE(5); CASE(6); CASE(7); CASE(8);
#endif
    }
#undef CASE
}

static const float *widened(const Matrix *m, const char *panel, float *to) {
    if (m->format == FLOAT32) return (const float *)panel;
    for (int64_t i = 0; i < m->inputs * PANEL; i += LANES)
        *(stored *)(to + i) = m->format == FLOAT16 ? weight_at(FLOAT16, panel, i)
                                                   : weight_at(BFLOAT16, panel, i);
    return to;
}

/* A panel comes from far away for the first group of rows and from near for the others. So each
 * group asks for its share of the next panel: the memory is busy all the time, not in turns. */
static void float_product(int64_t rows, const Matrix *m, const Aside *aside, const float *x,
                          float *y, int64_t stride) {
    int64_t size = panel_bytes(m->format, m->inputs), groups = (rows + ROWS - 1) / ROWS;
    int64_t chains = (m->inputs + CHAIN - 1) / CHAIN, share = size / groups;
    int64_t burst = groups > 1 ? share / chains : 0;
    for (int64_t i = 0; i < padded(m->outputs) / PANEL; i++) {
        const char *panel = m->panels + i * size, *next = panel + size;
        const float *wide = widened(m, panel, aside->panel);
        for (int64_t r = 0; r < rows; r += ROWS, next += share)
            float_rows(rows - r < ROWS ? rows - r : ROWS, wide, m->inputs, x + r * stride,
                       y + r * stride + i * PANEL, stride, next, burst);
    }
}

/* y[r][:] = W x[r][:]; y has room for padded(outputs) numbers a row. */
static void linear(int64_t rows, const Matrix *m, const Aside *aside, const float *x, float *y,
                   int64_t stride) {
    if (m->format == INT8) {
        for (int64_t r = 0; r < rows; r++) round_row(x + r * stride, m->inputs, &aside->rounded, r);
        integer_product(rows, m, &aside->rounded, y, stride);
    } else if (rows != 1) {
        float_product(rows, m, aside, x, y, stride);
    } else if (m->format == FLOAT16) {
        float_vector(FLOAT16, m, x, y);
    } else if (m->format == BFLOAT16) {
        float_vector(BFLOAT16, m, x, y);
    } else {
        float_vector(FLOAT32, m, x, y);
    }
}

#endif
