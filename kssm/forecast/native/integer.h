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

/* The largest size of a number; NaN if one is NaN. */
static float largest(const float *x, int64_t size) {
    float lanes[16] = {0}, doubts[16] = {0}, most = 0.0f, doubt = 0.0f;
    for (int64_t first = 0; first < size; first += 16)
        for (int64_t j = 0; j < (size - first < 16 ? size - first : 16); j++) {
            float value = fabsf(x[first + j]);
            lanes[j] = value > lanes[j] ? value : lanes[j];
            doubts[j] += value * 0.0f;
        }
    for (int j = 0; j < 16; j++) {
        most = lanes[j] > most ? lanes[j] : most;
        doubt += doubts[j];
    }
    return most + doubt;
}

/* Row `row` of `to`: the largest number becomes 127; zeros stand past the end up to a whole four.
 * A row that is not finite gets a unit that is not. */
static void round_row(const float *restrict x, int64_t size, const Rounded *to, int64_t row) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds, ties to even */
    int8_t *restrict bytes = to->bytes + row * to->stride;
    float most = largest(x, size), inverse = most > 1e-30f ? 127.0f / most : 0.0f;
    int32_t total = 0, zero = to_bits(magic);
    for (int64_t i = 0; i < size; i++) {
        int32_t value = to_bits(fmaf(x[i], inverse, magic)) - zero;
        total += value;
        bytes[i] = (int8_t)value;
    }
    for (int64_t i = size; i < rounded_up(size, 4); i++) bytes[i] = 0;
    to->units[row] = most / 127.0f;
    to->totals[row] = total;
}

/* `panels` panels for `rows` rows, both constant, so that `sum` lives in registers. */
INLINE void integer_tile(const int rows, const int panels, const char *panel, const Matrix *m,
                         const float *units, const Rounded *x, int64_t row, float *y,
                         int64_t stride) {
    int64_t size = panel_bytes(INT8, m->inputs);
    const int8_t *bytes = x->bytes + row * x->stride;
    whole sum[ROWS][8];
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int p = 0; p < 2 * panels; p++) sum[r][p] = (whole){0};
    for (int64_t k = 0; k < size / PANEL; k += 4) {
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

static void integer_product(int64_t rows, const Matrix *m, const Rounded *x, float *y,
                            int64_t stride) {
    int64_t size = panel_bytes(INT8, m->inputs), count = padded(m->outputs) / PANEL;
#define TILE_OF(R, P) \
    integer_tile(R, P, m->panels + i * size, m, m->units + i * PANEL, x, row, y + i * PANEL, stride)
#define CASE(R) \
    case R: TILE_OF(R, 1); break
    for (int64_t i = 0; i < count;) {
        int64_t wide = rows == 1 && i + 4 <= count ? 4 : 1;
        for (int64_t row = 0; row < rows; row += ROWS) {
            switch (wide == 4 ? 0 : rows - row < ROWS ? rows - row : ROWS) {
                case 0: TILE_OF(1, 4); break;
                CASE(1); CASE(2); CASE(3); CASE(4);
#if ROWS == 8
                CASE(5); CASE(6); CASE(7); CASE(8);
#endif
            }
        }
        i += wide;
    }
#undef CASE
#undef TILE_OF
}

#endif
