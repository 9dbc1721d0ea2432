/* What one core can do at most, for benchmarks/machine.py. */
#include "../kssm/forecast/native/lanes.h"

#define CHAINS 12 /* enough to hide the latency of each */

#if defined(__x86_64__)
#define KEEP(register) __asm__ volatile("" : "+v"(register))
#else
#define KEEP(register) __asm__ volatile("" : "+w"(register))
#endif

/* Runs `turns` times CHAINS vector multiply-adds; returns how many numbers each of them takes. */
__attribute__((visibility("default"))) int peak(long turns) {
    vector sums[CHAINS], x = {1.0f}, y = {0.5f};
    KEEP(x);
    KEEP(y);
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) sums[i] = (vector){0};
    for (long turn = 0; turn < turns; turn++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) {
            sums[i] += x * y;
            KEEP(sums[i]);
        }
    }
    return LANES * CHAINS;
}

/* Reads `size` bytes; returns a number that depends on all of them, so that none is left out. */
__attribute__((visibility("default"))) int read_all(const char *bytes, long size) {
    whole sums[8] = {{0}};
    long i = 0;
    for (; i + (long)sizeof sums <= size; i += (long)sizeof sums)
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) sums[j] += *(const stored_whole *)(bytes + i + j * sizeof *sums);
    int sum = 0;
    for (; i < size; i++) sum += bytes[i];
    for (int j = 0; j < 8; j++)
        for (int lane = 0; lane < LANES; lane++) sum += sums[j][lane];
    return sum;
}
