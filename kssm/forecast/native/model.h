/* The packed weights: their order in one buffer, for writing (packing) and for reading. */
#ifndef KSSM_MODEL_H
#define KSSM_MODEL_H

#include "linear.h"

/* Mirrors `Sizes` in library.py. */
typedef struct {
    int64_t features, d_model, layers, d_inner, d_mlp, rank, groups, conv_width;
    int64_t head_hidden, head_horizon;
    double eps;
} Sizes;

enum { HEAD_WIDTH = 10 }; /* numbers a horizon: median, gate, eight increments */

typedef struct {
    float *norm, *in_proj, *conv, *conv_bias, *select, *alpha_up, *omega_up, *dt_up;
    float *alpha_bias, *omega_bias, *omega_scale, *dt_bias, *c_re, *c_im, *skip;
    float *out_norm, *out_proj, *mlp_norm, *up, *down;
} Layer;

typedef struct {
    float *embed, *embed_bias, *norm, *head_hidden, *head_out, *head_bias;
} Ends;

static inline int64_t selected(const Sizes *s) { return 3 * s->rank + 2 * s->groups; }

/* A walk over the buffer. With `sources` it copies (packs) each of them on its way. */
typedef struct {
    float *at;
    const float *const *sources;
} Cursor;

static float *vector_at(Cursor *cursor, int64_t size) {
    float *here = cursor->at;
    cursor->at += padded(size);
    if (cursor->sources) memcpy(here, *cursor->sources++, (size_t)size * sizeof *here);
    return here;
}

static float *matrix_at(Cursor *cursor, int64_t outputs, int64_t inputs) {
    float *here = cursor->at;
    cursor->at += packed_size(outputs, inputs);
    if (cursor->sources) pack(*cursor->sources++, outputs, inputs, here);
    return here;
}

static Layer layer_at(Cursor *cursor, const Sizes *s) {
    int64_t inner = s->d_inner, rank = s->rank;
    Layer layer = {0};
    layer.norm = vector_at(cursor, s->d_model);
    layer.in_proj = matrix_at(cursor, 2 * inner, s->d_model);
    layer.conv = vector_at(cursor, s->conv_width * inner);
    layer.conv_bias = vector_at(cursor, inner);
    layer.select = matrix_at(cursor, selected(s), inner);
    layer.alpha_up = matrix_at(cursor, inner, rank);
    layer.omega_up = matrix_at(cursor, inner, rank);
    layer.dt_up = matrix_at(cursor, inner, rank);
    float **vectors[] = {&layer.alpha_bias, &layer.omega_bias, &layer.omega_scale, &layer.dt_bias,
                         &layer.c_re, &layer.c_im, &layer.skip, &layer.out_norm};
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        *vectors[i] = vector_at(cursor, inner);
    layer.out_proj = matrix_at(cursor, s->d_model, inner);
    if (s->d_mlp) {
        layer.mlp_norm = vector_at(cursor, s->d_model);
        layer.up = matrix_at(cursor, 2 * s->d_mlp, s->d_model);
        layer.down = matrix_at(cursor, s->d_model, s->d_mlp);
    }
    return layer;
}

static Ends ends_at(Cursor *cursor, const Sizes *s) {
    Ends ends;
    ends.embed = matrix_at(cursor, s->d_model, s->features);
    ends.embed_bias = vector_at(cursor, s->d_model);
    ends.norm = vector_at(cursor, s->d_model);
    ends.head_hidden = matrix_at(cursor, s->head_hidden, s->d_model);
    ends.head_out = matrix_at(cursor, s->head_horizon * HEAD_WIDTH, s->head_hidden);
    ends.head_bias = vector_at(cursor, s->head_horizon * HEAD_WIDTH);
    return ends;
}

#endif
