/* The packed weights: their order in one buffer, for writing (packing) and for reading. */
#ifndef KSSM_MODEL_H
#define KSSM_MODEL_H

#include "linear.h"

/* Mirrors `Sizes` in library.py. */
typedef struct {
    int64_t features, d_model, layers, d_inner, d_mlp, rank, groups, conv_width;
    int64_t head_hidden, head_horizon;
    int64_t format; /* of all matrices but the embedding's */
    double eps;
    int64_t kept; /* bytes at the start to be kept near, see matrix.h */
} Sizes;

enum { HEAD_WIDTH = 10 }; /* numbers a horizon: median, gate, eight increments */

typedef struct {
    Matrix in_proj, select, alpha_up, omega_up, dt_up, out_proj, up, down;
    const float *norm, *conv, *conv_bias, *alpha_bias, *omega_bias, *omega_scale, *dt_bias;
    const float *c_re, *c_im, *skip, *out_norm, *mlp_norm;
} Layer;

typedef struct {
    Matrix embed, head_hidden, head_out;
    const float *embed_bias, *norm, *head_bias;
} Ends;

static inline int64_t selected(const Sizes *s) { return 3 * s->rank + 2 * s->groups; }

/* A walk over the buffer, which starts with zeros. With `sources` it copies (packs) each of them
 * on its way: every vector and matrix, and after a matrix of bytes its units. */
typedef struct {
    char *at;
    const void *const *sources;
} Cursor;

static float *vector_at(Cursor *cursor, int64_t size) {
    char *here = cursor->at;
    cursor->at += rounded_up(padded(size) * 4, LINE);
    if (cursor->sources) memcpy(here, *cursor->sources++, (size_t)size * sizeof(float));
    return (float *)here;
}

static Matrix stored_at(Cursor *cursor, Format format, int64_t outputs, int64_t inputs) {
    Matrix matrix = {format, outputs, inputs, cursor->at, NULL};
    cursor->at += rounded_up(panels_bytes(&matrix), LINE);
    if (cursor->sources) pack(*cursor->sources++, &matrix, (char *)matrix.panels);
    if (format == INT8) matrix.units = vector_at(cursor, outputs);
    return matrix;
}

static Matrix matrix_at(Cursor *cursor, const Sizes *s, int64_t outputs, int64_t inputs) {
    return stored_at(cursor, (Format)s->format, outputs, inputs);
}

static Layer layer_at(Cursor *cursor, const Sizes *s) {
    int64_t inner = s->d_inner, rank = s->rank;
    Layer layer = {0};
    layer.norm = vector_at(cursor, s->d_model);
    layer.in_proj = matrix_at(cursor, s, 2 * inner, s->d_model);
    layer.conv = vector_at(cursor, s->conv_width * inner);
    layer.conv_bias = vector_at(cursor, inner);
    layer.select = matrix_at(cursor, s, selected(s), inner);
    layer.alpha_up = matrix_at(cursor, s, inner, rank);
    layer.omega_up = matrix_at(cursor, s, inner, rank);
    layer.dt_up = matrix_at(cursor, s, inner, rank);
    const float **vectors[] = {&layer.alpha_bias, &layer.omega_bias, &layer.omega_scale,
                               &layer.dt_bias, &layer.c_re, &layer.c_im, &layer.skip,
                               &layer.out_norm};
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        *vectors[i] = vector_at(cursor, inner);
    layer.out_proj = matrix_at(cursor, s, s->d_model, inner);
    if (s->d_mlp) {
        layer.mlp_norm = vector_at(cursor, s->d_model);
        layer.up = matrix_at(cursor, s, 2 * s->d_mlp, s->d_model);
        layer.down = matrix_at(cursor, s, s->d_model, s->d_mlp);
    }
    return layer;
}

static Ends ends_at(Cursor *cursor, const Sizes *s) {
    Ends ends;
    ends.embed = stored_at(cursor, FLOAT32, s->d_model, s->features);
    ends.embed_bias = vector_at(cursor, s->d_model);
    ends.norm = vector_at(cursor, s->d_model);
    ends.head_hidden = matrix_at(cursor, s, s->head_hidden, s->d_model);
    ends.head_out = matrix_at(cursor, s, s->head_horizon * HEAD_WIDTH, s->head_hidden);
    ends.head_bias = vector_at(cursor, s->head_horizon * HEAD_WIDTH);
    return ends;
}

#endif
