/* Matrix-vector and small matrix-matrix products over weights packed for streaming reads.
 *
 * A weight matrix [outputs, inputs] is stored as panels of PANEL outputs, each panel as
 * [inputs][PANEL]: the product reads it front to back once for each ROWS rows. Every
 * output is a sum of chains of multiply-adds in a fixed order, whatever the number of rows, so a
 * row's result does not depend on its batch.
 */
#ifndef KSSM_LINEAR_H
#define KSSM_LINEAR_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define ROWS 8
#elif defined(__AVX__)
#define LANES 8
#define ROWS 4
#else
#define LANES 4
#define ROWS 4
#endif
#define PANEL (2 * LANES)
#define CHAIN 32 /* inputs added up at a time: one long sum would round four times as much */
#define AHEAD 64 /* inputs: how far before their use weights are asked for */
#define LINE 16  /* numbers in a line of the caches */

typedef float vector __attribute__((vector_size(4 * LANES)));
/* The same in memory, where it may start at any number. */
typedef float stored __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline int64_t padded(int64_t size) { return (size + PANEL - 1) / PANEL * PANEL; }

static inline int64_t packed_size(int64_t outputs, int64_t inputs) {
    return padded(outputs) * inputs;
}

static void pack(const float *weight, int64_t outputs, int64_t inputs, float *out) {
    for (int64_t first = 0; first < outputs; first += PANEL)
        for (int64_t k = 0; k < inputs; k++)
            for (int64_t j = first; j < first + PANEL; j++)
                *out++ = j < outputs ? weight[j * inputs + k] : 0.0f;
}

/* One panel for `rows` rows; a constant argument, so that `sum` lives in registers. With each
 * chain `burst` numbers are asked for from `next` on; if 0, this panel's own a little ahead. */
static inline __attribute__((always_inline)) void panel_rows(
    const int rows, const float *panel, int64_t inputs, const float *x, int64_t stride_x, float *y,
    int64_t stride_y, const float *next, int64_t burst) {
    vector total[ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) total[r][0] = total[r][1] = (vector){0};
    for (int64_t start = 0; start < inputs; start += CHAIN) {
        int64_t end = start + CHAIN < inputs ? start + CHAIN : inputs;
        for (int64_t i = 0; i < burst; i += LINE) __builtin_prefetch(next + i, 0, 2);
        next += burst;
        vector sum[ROWS][2];
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (vector){0};
        for (int64_t k = start; k < end; k++) {
            const stored *w = (const stored *)(panel + k * PANEL);
            if (!burst) {
                __builtin_prefetch(panel + (k + AHEAD) * PANEL);
                __builtin_prefetch(panel + (k + AHEAD) * PANEL + LANES);
            }
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                sum[r][0] += w[0] * x[r * stride_x + k];
                sum[r][1] += w[1] * x[r * stride_x + k];
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            total[r][0] += sum[r][0];
            total[r][1] += sum[r][1];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) memcpy(y + r * stride_y, total[r], sizeof total[r]);
}

static void panel_product(int64_t rows, const float *panel, int64_t inputs, const float *x,
                          int64_t stride_x, float *y, int64_t stride_y, const float *next,
                          int64_t burst) {
#define CASE(R) \
    case R: panel_rows(R, panel, inputs, x, stride_x, y, stride_y, next, burst); break
    switch (rows) {
        CASE(1); CASE(2); CASE(3); CASE(4);
#if ROWS == 8
        CASE(5); CASE(6); CASE(7); CASE(8);
#endif
    }
#undef CASE
}

/* y[r][:] = W x[r][:]; y has room for padded(outputs) numbers a row.
 *
 * A panel comes from far away for the first group of rows and from near for the others. So each
 * group asks for its share of the next panel: the memory is busy all the time, not in turns. */
static void linear(int64_t rows, const float *packed, int64_t outputs, int64_t inputs,
                   const float *x, int64_t stride_x, float *y, int64_t stride_y) {
    int64_t size = inputs * PANEL, groups = (rows + ROWS - 1) / ROWS;
    int64_t burst = groups > 1 ? CHAIN * PANEL / groups : 0;
    for (int64_t first = 0; first < outputs; first += PANEL) {
        const float *next = packed + size;
        for (int64_t r = 0; r < rows; r += ROWS) {
            int64_t some = rows - r < ROWS ? rows - r : ROWS;
            panel_product(some, packed, inputs, x + r * stride_x, stride_x,
                          y + r * stride_y + first, stride_y, next, burst);
            next += size / groups;
        }
        packed += size;
    }
}

#endif
