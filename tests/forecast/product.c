/* One matrix product, packed and computed as in a step, for test_native_products.py. */
#include <stdlib.h>

#include "../../kssm/forecast/native/model.h"

/* y[rows][stride] = W x[rows][stride]; 0 if there is no memory. */
__attribute__((visibility("default"))) int product(int64_t rows, int64_t format, int64_t outputs,
                                                   int64_t inputs, const void *weight,
                                                   const float *units, const float *x, float *y,
                                                   int64_t stride) {
    const void *sources[] = {weight, units};
    Matrix empty = {(Format)format, outputs, inputs, NULL, NULL};
    int64_t size = panels_bytes(&empty) + 8 * padded(outputs) + 4 * LINE;
    char *memory = calloc(1, (size_t)size);
    char *aside = malloc((size_t)(rows * (2 * stride + 12) + stride * PANEL * 4));
    int done = memory && aside;
    if (done) {
        Cursor cursor = {memory, sources};
        Matrix matrix = stored_at(&cursor, (Format)format, outputs, inputs);
        int32_t *totals = (int32_t *)(aside + stride * PANEL * 4);
        float *unit = (float *)(totals + 2 * rows);
        Aside room = {{stride, (int8_t *)(unit + rows), totals, unit}, (float *)aside};
        linear(rows, &matrix, &room, x, y, stride);
    }
    free(memory);
    free(aside);
    return done;
}
