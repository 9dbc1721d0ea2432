/* Multiply-adds a second that one core can do: the arithmetic's limit for benchmarks/cpu_prefill.py. */
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
