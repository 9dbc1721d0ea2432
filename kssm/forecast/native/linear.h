/* Matrix-vector and small matrix-matrix products over packed weights.
 *
 * A panel is read front to back once for each ROWS rows. Every output of floating-point weights
 * is a sum of chains of multiply-adds in a fixed order, whatever the number of rows, so a row's
 * result does not depend on its batch; nor on whether the same numbers are stored in 32 or 16 bits.
 */
#ifndef KSSM_LINEAR_H
#define KSSM_LINEAR_H

#include "integer.h"

/* Where a product keeps what it needs on the way. */
typedef struct {
    Rounded rounded;
    float *panel; /* a panel of 16 bits, widened */
    Kept kept;
} Aside;

INLINE vector weight_at(const Format format, const char *panel, int64_t at) {
    if (format == FLOAT16) return widen_float16((const uint16_t *)panel + at);
    if (format == BFLOAT16) return widen_bfloat16((const uint16_t *)panel + at);
    return *(const stored *)((const float *)panel + at);
}

/* `panels` panels for `rows` rows; constant arguments, so that `sum` lives in registers. If not
 * NULL, `copy` gets the panel in fp32. */
INLINE void float_tile(const Format format, const int rows, const int panels, const char *panel,
                       int64_t inputs, const float *x, float *y, int64_t stride, Ahead ahead,
                       float *copy) {
    int64_t size = panel_bytes(format, inputs);
    vector total[ROWS][8];
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int p = 0; p < 2 * panels; p++) total[r][p] = (vector){0};
    for (int64_t start = 0; start < inputs; start += CHAIN) {
        int64_t end = start + CHAIN < inputs ? start + CHAIN : inputs;
        ask(&ahead);
        vector sum[ROWS][8];
        UNROLL
        for (int r = 0; r < rows; r++)
            UNROLL
            for (int p = 0; p < 2 * panels; p++) sum[r][p] = (vector){0};
        for (int64_t k = start; k < end; k++)
            UNROLL
            for (int p = 0; p < 2 * panels; p++) {
                vector w = weight_at(format, panel + p / 2 * size, k * PANEL + p % 2 * LANES);
                if (copy) *(stored *)(copy + k * PANEL + p * LANES) = w;
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

/* One panel for up to ROWS rows. */
INLINE void float_rows(const Format format, int64_t rows, const char *panel, int64_t inputs,
                       const float *x, float *y, int64_t stride, Ahead ahead) {
#define CASE(R) \
    case R: float_tile(format, R, 1, panel, inputs, x, y, stride, ahead, NULL); break
    switch (rows) {
        CASE(1); CASE(2); CASE(3); CASE(4);
#if ROWS == 8
        CASE(5); CASE(6); CASE(7); CASE(8);
#endif
    }
#undef CASE
}

/* Up to ROWS rows: every weight is used as it comes. One row takes as many panels at once as hide
 * the latency of an addition. */
INLINE void few_rows(const Format format, int64_t rows, const Matrix *m, const Kept *kept,
                     const float *x, float *y, int64_t stride) {
    int64_t size = panel_bytes(format, m->inputs), count = padded(m->outputs) / PANEL;
    for (int64_t i = 0, wide; i < count; i += wide, y += wide * PANEL) {
        wide = rows == 1 && i + ALONE <= count ? ALONE : 1;
        const char *panel = m->panels + i * size;
        Ahead ahead = keeping(kept, panel, wide * size, m->inputs);
        if (wide == ALONE)
            float_tile(format, 1, ALONE, panel, m->inputs, x, y, stride, ahead, NULL);
        else
            float_rows(format, rows, panel, m->inputs, x, y, stride, ahead);
    }
}

/* ROWS rows, which leave the panel behind in fp32 for the others. */
static void first_rows(Format format, const char *panel, int64_t inputs, const float *x, float *y,
                       int64_t stride, Ahead ahead, float *copy) {
    if (format == FLOAT16) float_tile(FLOAT16, ROWS, 1, panel, inputs, x, y, stride, ahead, copy);
    else float_tile(BFLOAT16, ROWS, 1, panel, inputs, x, y, stride, ahead, copy);
}

/* A panel comes from far away for the first group of rows and from near for the others. So each
 * group asks for its share of the next panel: the memory is busy all the time, not in turns. */
static void many_rows(int64_t rows, const Matrix *m, const Aside *aside, const float *x, float *y,
                      int64_t stride) {
    int64_t size = panel_bytes(m->format, m->inputs), groups = (rows + ROWS - 1) / ROWS;
    int64_t share = size / groups;
    for (int64_t i = 0; i < padded(m->outputs) / PANEL; i++) {
        const char *panel = m->panels + i * size, *next = panel + size;
        float *to = y + i * PANEL;
        int64_t done = 0;
        if (m->format != FLOAT32) {
            first_rows(m->format, panel, m->inputs, x, to, stride,
                       ahead_of(2, next, share, m->inputs), aside->panel);
            panel = (const char *)aside->panel;
            done = ROWS;
            next += share;
        }
        for (; done < rows; done += ROWS, next += share)
            float_rows(FLOAT32, rows - done < ROWS ? rows - done : ROWS, panel, m->inputs,
                       x + done * stride, to + done * stride, stride,
                       ahead_of(2, next, share, m->inputs));
    }
}

/* y[r][:] = W x[r][:]; y has room for padded(outputs) numbers a row. */
static void linear(int64_t rows, const Matrix *m, const Aside *aside, const float *x, float *y,
                   int64_t stride) {
    if (!rows) return;
    if (rows == 1) ask_for_first(m, ALONE);
    if (m->format == INT8) {
        for (int64_t r = 0; r < rows; r++) round_row(x + r * stride, m->inputs, &aside->rounded, r);
        integer_product(rows, m, &aside->rounded, &aside->kept, y, stride);
    } else if (rows > ROWS) {
        many_rows(rows, m, aside, x, y, stride);
    } else if (m->format == FLOAT32) {
        few_rows(FLOAT32, rows, m, &aside->kept, x, y, stride);
    } else if (m->format == FLOAT16) {
        few_rows(FLOAT16, rows, m, &aside->kept, x, y, stride);
    } else {
        few_rows(BFLOAT16, rows, m, &aside->kept, x, y, stride);
    }
}

#endif
