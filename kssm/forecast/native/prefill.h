/* Many samples of each row: consecutive tokens, of one row or of several, fill the tiles. */
#ifndef KSSM_PREFILL_H
#define KSSM_PREFILL_H

#include "tile.h"

/* The caller's arrays [rows, tokens]. Mirrored in library.py. */
typedef struct {
    int64_t tokens;
    const double *values, *dt; /* dt may be NULL: all 1 */
    const int64_t *lengths;    /* [rows]: valid tokens, at most `tokens` */
    double *tail;              /* written for valid tokens only */
    int64_t every;             /* all horizons are read at the last of each so many tokens; 0 */
    float *forecasts;          /* [rows, tokens / every, head_horizon, 9], or NULL */
} Series;

static Reading reading_of(const Series *series, int64_t row, int64_t token) {
    int64_t next = token + 1;
    if (next == series->lengths[row]) return EVERYTHING;
    if (series->every && next % series->every == 0) return EVERYTHING;
    return is_visible(series->values[row * series->tokens + next]) ? SCORED : NOTHING;
}

static void prefill_tile(const Sizes *s, char *weights, const Arena *arena, Tile *tile,
                         const Workspace *space, const Series *series) {
    run_tile(s, weights, arena, tile, space);
    for (int64_t r = 0; r < tile->count; r++) {
        int64_t out = tile->outputs[r], row = tile->slots[r];
        int64_t next = out - row * series->tokens + 1, size = forecast_size(s);
        series->tail[out] = tile->tail[r];
        if (!series->every || next % series->every) continue;
        int64_t place = row * (series->tokens / series->every) + next / series->every - 1;
        memcpy(series->forecasts + place * size, space->quantiles + r * size,
               (size_t)size * sizeof *series->forecasts);
    }
    tile->count = 0;
}

/* Rows [first, last), each at its own row of the arena. */
static void prefill_rows(const Sizes *s, char *weights, const Arena *arena,
                         const Workspace *space, int64_t first, int64_t last,
                         const Series *series) {
    Tile tile = {0};
    for (int64_t row = first; row < last; row++)
        for (int64_t token = 0; token < series->lengths[row]; token++) {
            int64_t r = tile.count++, at = row * series->tokens + token;
            tile.slots[r] = row;
            tile.outputs[r] = at;
            tile.values[r] = series->values[at];
            tile.dt[r] = series->dt ? series->dt[at] : 1.0;
            tile.readings[r] = reading_of(series, row, token);
            if (tile.count == TILE) prefill_tile(s, weights, arena, &tile, space, series);
        }
    if (tile.count) prefill_tile(s, weights, arena, &tile, space, series);
}

#endif
