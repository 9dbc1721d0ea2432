/* Forecasts read off the head's nine quantiles: other levels, the row's own units, and the points
 * of a thinned copy on the row's own grid. The same formulas as kssm/forecast/distribution.py and
 * thinning.py.
 */
#ifndef KSSM_QUANTILES_H
#define KSSM_QUANTILES_H

#include "signal.h"

#define MAX_NORMALISED 12.0

/* A quantile between two of the nine, or (`high` < 0) beyond the outer one `low`. */
typedef struct {
    int64_t low, high;
    double weight;
} Level;

/* Forecasts of every `factor`-th sample, walked sample by sample. */
typedef struct {
    const float *forecast; /* [points, LEVELS] */
    Level level;
    double location, scale;
    int64_t factor, age; /* samples since the last point that has come, below `factor` */
    int64_t right;       /* the point at or after the sample last asked for */
    double left, next;   /* values before it and at it */
} Path;

/* Samples so far; in range whatever a corrupt clock says. */
static inline int64_t samples_of(double clock) {
    return clock >= 0.0 && clock < 1e15 ? (int64_t)clock : 0;
}

/* Samples since the last whole `period`. */
static inline int64_t phase(double clock, int64_t period) { return samples_of(clock) % period; }

static inline double bounded(double x, double limit) {
    return x > limit ? limit : x < -limit ? -limit : x;
}

static inline double quantile(const float *nine, Level level) {
    double median = nine[MEDIAN], low = nine[level.low];
    if (level.high < 0) return median + (low - median) * level.weight;
    return low * (1.0 - level.weight) + nine[level.high] * level.weight;
}

static inline double lerp(double left, double right, double share) {
    double way = right - left;
    return share < 0.5 ? left + share * way : right - way * (1.0 - share);
}

static Path path_of(const float *forecast, const Statistics *statistics, Level level,
                    int64_t factor, int64_t age, double anchor) {
    Path path = {forecast, level, statistics->mean, scale_of(statistics), factor, age, -1,
                 0.0,      anchor};
    return path;
}

/* The forecast of the sample so far ahead (1, 2, ...; asked for in this order). */
static double walk(Path *path, int64_t ahead) {
    int64_t lead = ahead + path->age, right = (lead + path->factor - 1) / path->factor - 1;
    while (path->right < right) {
        double z = quantile(path->forecast + ++path->right * LEVELS, path->level);
        path->left = path->next;
        path->next = sinh(bounded(z, MAX_NORMALISED)) * path->scale + path->location;
    }
    int64_t from = right * path->factor > path->age ? right * path->factor : path->age;
    double share = (double)(lead - from) / (double)((right + 1) * path->factor - from);
    return lerp(path->left, path->next, share);
}

#endif
