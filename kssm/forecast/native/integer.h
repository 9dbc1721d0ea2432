/* Products of matrices of bytes: y = unit(x) unit(w) (x . w), with x rounded to bytes by row.
 *
 * Sums are whole numbers of 32 bits, exact for up to 65,000 inputs; so results do not depend on
 * the order of summation. The same formulas as kssm/quantization.
 */
#ifndef KSSM_INTEGER_H
#define KSSM_INTEGER_H

#include <math.h>

#include "maths.h"
#include "matrix.h"

/* Rows as bytes: x = unit * byte; total: the sum of a row's bytes. */
typedef struct {
    int64_t stride;
    int8_t *bytes;
    float *units;
    int32_t *totals;
} Rounded;

/* Row `row` of `to`: the largest number becomes 127; zeros stand past the end up to a whole four.
 * A row that is not finite gets a unit that is not. */
static void round_row(const float *restrict x, int64_t size, const Rounded *to, int64_t row) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds, ties to even */
    int8_t *restrict bytes = to->bytes + row * to->stride;
    int32_t most = 0, total = 0, zero = to_bits(magic);
    for (int64_t i = 0; i < size; i++) { /* as bits: NaN is larger than infinity */
        int32_t value = to_bits(x[i]) & 0x7fffffff;
        most = value > most ? value : most;
    }
    float peak = from_bits(most), inverse = peak > 1e-30f ? 127.0f / peak : 0.0f;
    for (int64_t i = 0; i < size; i++) {
        int32_t value = to_bits(fmaf(x[i], inverse, magic)) - zero;
        total += value;
        bytes[i] = (int8_t)value;
    }
    for (int64_t i = size; i < rounded_up(size, 4); i++) bytes[i] = 0;
    to->units[row] = peak / 127.0f;
    to->totals[row] = total;
}

/* `panels` panels for `rows` rows, both constant, so that `sum` lives in registers. With each chain
 * `burst` bytes are asked for from `next` on. */
INLINE void integer_tile(const int rows, const int panels, const char *panel, const Matrix *m,
                         const float *units, const Rounded *x, int64_t row, float *y,
                         int64_t stride, const char *next, int64_t burst) {
    int64_t size = panel_bytes(INT8, m->inputs);
    const int8_t *bytes = x->bytes + row * x->stride;
    whole sum[ROWS][8];
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int p = 0; p < 2 * panels; p++) sum[r][p] = (whole){0};
    for (int64_t start = 0; start < m->inputs; start += CHAIN) {
        int64_t end = start + CHAIN < m->inputs ? start + CHAIN : m->inputs;
        next = ask_for(next, burst);
        for (int64_t k = start; k < end; k += 4)
            UNROLL
            for (int p = 0; p < 2 * panels; p++) {
                const char *at = panel + p / 2 * size + k * PANEL + p % 2 * 4 * LANES;
                whole w = *(const stored_whole *)at;
                UNROLL
                for (int r = 0; r < rows; r++) {
                    int32_t four;
                    memcpy(&four, bytes + r * x->stride + k, 4);
                    sum[r][p] = dot4(sum[r][p], w, (whole){0} + four);
                }
            }
    }
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int p = 0; p < 2 * panels; p++) {
            vector unit = *(const stored *)(units + p * LANES) * x->units[row + r];
            whole exact = sum[r][p] - 128 * x->totals[row + r];
            *(stored *)(y + (row + r) * stride + p * LANES) =
                __builtin_convertvector(exact, vector) * unit;
        }
}

/* As for weights in floating point, see linear.h. */
static void integer_product(int64_t rows, const Matrix *m, const Rounded *x, float *y,
                            int64_t stride) {
    int64_t size = panel_bytes(INT8, m->inputs), count = padded(m->outputs) / PANEL;
    int64_t groups = (rows + ROWS - 1) / ROWS;
#define TILE_OF(R, P) \
    integer_tile(R, P, m->panels + i * size, m, m->units + i * PANEL, x, row, y + i * PANEL, \
                 stride, next, rows == 1 ? 0 : burst_of(share, m->inputs))
#define CASE(R) \
    case R: TILE_OF(R, 1); break
    for (int64_t i = 0, wide; i < count; i += wide) {
        wide = rows == 1 && i + 4 <= count ? 4 : 1;
        int64_t share = wide * size / groups;
        const char *next = m->panels + (i + wide) * size;
        for (int64_t row = 0; row < rows; row += ROWS, next += share) {
            switch (wide == 4 ? 0 : rows - row < ROWS ? rows - row : ROWS) {
                case 0: TILE_OF(1, 4); break;
                CASE(1); CASE(2); CASE(3); CASE(4);
#if ROWS == 8
                CASE(5); CASE(6); CASE(7); CASE(8);
#endif
            }
        }
    }
#undef CASE
#undef TILE_OF
}

#endif
