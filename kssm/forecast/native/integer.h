/* Products of matrices of bytes: y = unit(x) unit(w) (x . w), with x rounded to 15 bits by row.
 *
 * Sums are whole numbers of 32 bits, exact for up to 65,000 inputs; so results do not depend on
 * the order of summation. The same formulas as kssm/quantization.
 */
#ifndef KSSM_INTEGER_H
#define KSSM_INTEGER_H

#include <math.h>

#include "maths.h"
#include "matrix.h"

/* Rows of whole numbers up to LARGEST, each kept as two vectors of bytes: the number is
 * 128 * high + low. */
typedef struct {
    int64_t stride;  /* from a vector to the next: high of row 0, low of row 0, high of row 1 ... */
    int8_t *bytes;
    int32_t *totals; /* of each vector's bytes */
    float *units;    /* of each row: x = unit * number */
} Rounded;

#define LARGEST 16256 /* 127 * 128 */

/* Row `row` of `to`; zeros stand past its end up to a whole four. A row that is not finite gets a
 * unit that is not. */
static void round_row(const float *restrict x, int64_t size, const Rounded *to, int64_t row) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds, ties to even */
    int8_t *restrict high = to->bytes + 2 * row * to->stride, *restrict low = high + to->stride;
    int32_t most = 0, highs = 0, lows = 0, zero = to_bits(magic);
    for (int64_t i = 0; i < size; i++) { /* as bits: NaN is larger than infinity */
        int32_t value = to_bits(x[i]) & 0x7fffffff;
        most = value > most ? value : most;
    }
    float peak = from_bits(most), inverse = peak > 1e-30f ? LARGEST / peak : 0.0f;
    for (int64_t i = 0; i < size; i++) {
        int32_t value = to_bits(fmaf(x[i], inverse, magic)) - zero;
        int32_t upper = (value + 64) >> 7, lower = value - upper * 128;
        highs += upper;
        lows += lower;
        high[i] = (int8_t)upper;
        low[i] = (int8_t)lower;
    }
    for (int64_t i = size; i < rounded_up(size, 4); i++) high[i] = low[i] = 0;
    to->units[row] = peak / LARGEST;
    to->totals[2 * row] = highs;
    to->totals[2 * row + 1] = lows;
}

/* `panels` panels for `rows` rows, both constant, so that `sum` lives in registers. */
INLINE void integer_tile(const int rows, const int panels, const char *panel, const Matrix *m,
                         const float *units, const Rounded *x, int64_t row, float *y,
                         int64_t stride, Ahead ahead) {
    int64_t size = panel_bytes(INT8, m->inputs);
    const int8_t *bytes = x->bytes + 2 * row * x->stride;
    const int32_t *totals = x->totals + 2 * row;
    whole sum[ROWS][8];
    UNROLL
    for (int v = 0; v < 2 * rows; v++)
        UNROLL
        for (int p = 0; p < 2 * panels; p++) sum[v][p] = (whole){0} - 128 * totals[v];
    for (int64_t start = 0; start < m->inputs; start += CHAIN) {
        int64_t end = start + CHAIN < m->inputs ? start + CHAIN : m->inputs;
        ask(&ahead);
        for (int64_t k = start; k < end; k += 4)
            UNROLL
            for (int p = 0; p < 2 * panels; p++) {
                const char *at = panel + p / 2 * size + k * PANEL + p % 2 * 4 * LANES;
                whole w = *(const stored_whole *)at;
                UNROLL
                for (int v = 0; v < 2 * rows; v++) {
                    int32_t four;
                    memcpy(&four, bytes + v * x->stride + k, 4);
                    sum[v][p] = dot4(sum[v][p], w, (whole){0} + four);
                }
            }
    }
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int p = 0; p < 2 * panels; p++) {
            vector unit = *(const stored *)(units + p * LANES) * x->units[row + r];
            vector high = __builtin_convertvector(sum[2 * r][p], vector);
            vector low = __builtin_convertvector(sum[2 * r + 1][p], vector);
            *(stored *)(y + (row + r) * stride + p * LANES) = (128.0f * high + low) * unit;
        }
}

/* Rows go in groups of ROWS / 2, as for weights in floating point (see linear.h). For one or two
 * the processor itself fetches the next panel in time. */
static void integer_product(int64_t rows, const Matrix *m, const Rounded *x, const Kept *kept,
                            float *y, int64_t stride) {
    int64_t size = panel_bytes(INT8, m->inputs), count = padded(m->outputs) / PANEL;
    int64_t group = ROWS / 2, groups = (rows + group - 1) / group;
#define TILE_OF(R, P) \
    integer_tile(R, P, panel, m, m->units + i * PANEL, x, row, y + i * PANEL, stride, ahead)
    for (int64_t i = 0, wide; i < count; i += wide) {
        wide = rows == 1 && i + ALONE <= count ? ALONE : 1;
        int64_t share = wide * size / groups;
        const char *panel = m->panels + i * size, *next = panel + wide * size;
        for (int64_t row = 0; row < rows; row += group, next += share) {
            Ahead ahead = rows <= 2 ? keeping(kept, panel, wide * size, m->inputs)
                                    : ahead_of(1, next, share, m->inputs);
            switch (wide > 1 ? 0 : rows - row < group ? rows - row : group) {
                case 0: TILE_OF(1, ALONE); break;
                case 1: TILE_OF(1, 1); break;
                case 2: TILE_OF(2, 1); break;
#if ROWS == 8
                case 3: TILE_OF(3, 1); break;
                case 4: TILE_OF(4, 1); break;
#endif
            }
        }
    }
#undef TILE_OF
}

#endif
