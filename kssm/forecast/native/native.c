/* A SignalForecaster on one core, in fp32: packing its weights, the step and prefill.
 *
 * Built by build.py, called by library.py. No globals, no I/O, reentrant. One translation unit,
 * so that step and prefill run the same instructions and give the same bits.
 */
#include "forecast.h"
#include "monitor.h"
#include "prefill.h"
#include "step.h"

#define EXPORT __attribute__((visibility("default")))

enum { DONE, OUTSIDE, NO_MEMORY };

/* Bytes in a packed buffer; with `sources` also packs them into it, where there are zeros. */
EXPORT int64_t kssm_pack(const Sizes *s, const void *const *sources, char *packed) {
    Cursor cursor = {packed, sources};
    ends_at(&cursor, s);
    for (int64_t i = 0; i < s->layers; i++) layer_at(&cursor, s);
    return cursor.at - packed;
}

/* OUTSIDE (a slot is not in the arena) and NO_MEMORY mean that nothing was changed. */
EXPORT int kssm_step(const Sizes *s, char *weights, const Rows *rows, const Samples *samples) {
    for (int64_t i = 0; i < samples->count; i++)
        if (samples->slots[i] >= rows->parts->rows) return OUTSIDE;
    if (!samples->count) return DONE;
    int64_t tokens = samples->count * (1 + rows->copies);
    Workspace space;
    if (tokens > TILE) tokens = TILE;
    if (!reserve(s, weights, tokens, &space)) return NO_MEMORY;
    float *backup = malloc((size_t)(tokens * backup_size(s)) * sizeof *backup);
    if (backup) step_rows(s, weights, rows, &space, backup, samples);
    free(backup);
    free(space.memory);
    return backup ? DONE : NO_MEMORY;
}

/* Advances rows [first, last) by their samples; as for kssm_step otherwise. */
EXPORT int kssm_prefill(const Sizes *s, char *weights, const Rows *rows, int64_t first,
                        int64_t last, const Series *series) {
    for (int64_t row = first; row < last; row++)
        if (row >= rows->parts->rows || series->lengths[row] > series->tokens) return OUTSIDE;
    Workspace space;
    if (!reserve(s, weights, TILE, &space)) return NO_MEMORY;
    prefill_rows(s, weights, rows, &space, first, last, series);
    free(space.memory);
    return DONE;
}

/* Answers the question for rows [first, last). */
EXPORT int kssm_forecast(const Question *question, int64_t first, int64_t last) {
    return answer_rows(question, first, last) ? DONE : NO_MEMORY;
}

/* Brings the monitors of some rows forward by their samples. */
EXPORT void kssm_watch(const Watched *watched) { watch_all(watched); }
