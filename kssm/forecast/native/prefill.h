/* Many samples of each row: consecutive tokens, of one row or of several, fill the tiles. */
#ifndef KSSM_PREFILL_H
#define KSSM_PREFILL_H

#include "copies.h"

/* The caller's arrays [rows, tokens]. Mirrored in library.py. */
typedef struct {
    int64_t tokens;
    const double *values, *dt; /* dt may be NULL: all 1 */
    const int64_t *lengths;    /* [rows]: valid tokens, at most `tokens` */
    double *tail;              /* written for valid tokens only */
    int64_t every;             /* all horizons are read at the last of each so many tokens; 0 */
    float *forecasts;          /* [rows, tokens / every, head_horizon, 9], or NULL */
} Series;

/* A tile, and after which of its tokens the row's block ended, so that the tokens of the row's
 * copies follow; `row` is the last such row, or -1. */
typedef struct {
    Tile tile;
    int ends[TILE];
    int64_t row;
} Pass;

static Reading reading_of(const Series *series, int64_t row, int64_t token) {
    int64_t next = token + 1;
    if (next == series->lengths[row]) return EVERYTHING;
    if (series->every && next % series->every == 0) return EVERYTHING;
    return is_visible(series->values[row * series->tokens + next]) ? SCORED : NOTHING;
}

/* A token's results to the caller's arrays. */
static void hand_out(const Sizes *s, const Tile *tile, int64_t r, const Workspace *space,
                     const Series *series) {
    int64_t out = tile->outputs[r], row = tile->slots[r];
    int64_t next = out - row * series->tokens + 1, size = forecast_size(s);
    series->tail[out] = tile->tail[r];
    if (!series->every || next % series->every) return;
    int64_t place = row * (series->tokens / series->every) + next / series->every - 1;
    memcpy(series->forecasts + place * size, space->quantiles + r * size,
           (size_t)size * sizeof *series->forecasts);
}

static void run_pass(const Sizes *s, char *weights, const Rows *rows, Pass *pass,
                     const Workspace *space, const Series *series) {
    Tile *tile = &pass->tile;
    run_tile(s, weights, rows->parts, tile, space);
    for (int64_t r = 0; r < tile->count; r++) {
        if (tile->outputs[r] >= 0) hand_out(s, tile, r, space, series);
        if (!pass->ends[r]) continue;
        Readings readings;
        for (int64_t i = 0; i <= rows->copies; i++) {
            readings.forecasts[i] = space->quantiles + (r + i) * forecast_size(s);
            readings.statistics[i] = &tile->after[r + i];
        }
        keep_rivals(rows, tile->slots[r], s->head_horizon, &readings);
    }
    tile->count = 0;
    pass->row = -1;
}

/* The tokens of the row's copies that are due with the sample that was added last. A copy's
 * forecasts are read where a block ends, and where the copy does. */
static void follow(const Sizes *s, const Rows *rows, Pass *pass, int64_t row, int64_t left) {
    Tile *tile = &pass->tile;
    int64_t first = tile->count, last = first - 1, size = s->head_horizon;
    hold(rows, row, size, tile->values[last], tile->dt[last]);
    add_copies(rows, row, size, NOTHING, tile);
    pass->ends[last] = tick(rows, row, size);
    if (pass->ends[last]) tile->readings[last] = EVERYTHING, pass->row = row;
    for (int64_t r = first; r < tile->count; r++) {
        int is_last = left < rows->factors[tile->parts[r] - 1];
        if (pass->ends[last] || is_last) tile->readings[r] = EVERYTHING;
        pass->ends[r] = 0;
    }
}

/* Rows [first, last), each at its own row of the arenas. */
static void prefill_rows(const Sizes *s, char *weights, const Rows *rows, const Workspace *space,
                         int64_t first, int64_t last, const Series *series) {
    Pass pass = {.row = -1};
    Tile *tile = &pass.tile;
    for (int64_t row = first; row < last; row++)
        for (int64_t token = 0; token < series->lengths[row]; token++) {
            int64_t at = row * series->tokens + token, size = s->head_horizon;
            /* Forecasts of a block are kept when the tile has run, and judged when the block ends:
             * no tile may hold two ends of a row's blocks. */
            int again = pass.row == row && phase_of(rows, row, size) + 1 == size;
            if (again || tile->count + 1 + rows->copies > TILE)
                run_pass(s, weights, rows, &pass, space, series);
            add_token(tile, 0, row, series->values[at], series->dt ? series->dt[at] : 1.0,
                      reading_of(series, row, token));
            tile->outputs[tile->count - 1] = at;
            pass.ends[tile->count - 1] = 0;
            if (rows->copies) follow(s, rows, &pass, row, series->lengths[row] - token - 1);
        }
    if (tile->count) run_pass(s, weights, rows, &pass, space, series);
}

#endif
