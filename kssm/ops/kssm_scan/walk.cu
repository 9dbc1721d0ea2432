// The element-wise scan over 16-bit inputs, a row in one go (CUDA; see README.md).
//
// A program of one warp takes 64 channels of a row, two a lane, and walks all tokens. Inputs wait in
// shared memory: a ring of AHEAD places for groups of 8 tokens, filled by asynchronous copies. The
// copies of AHEAD - 1 groups are always under way, without a register or a wait of their own.
//
// Given by the compiler's command line, beside what parts.cuh says: AHEAD.

#include "parts.cuh"
#include "rows.cuh"

#define GROUP 8   // tokens; a multiple of KEEP
#define LINE 128  // words of a token in shared memory: 4 streams of 32 lanes

// What a lane copies of the next group: 16 bytes of two tokens, 4 apart, of each stream.
struct Source {
  const u16* at[4];
};

DEVICE void ask_for_group(const Arguments& g, u32* to, Source& from, int left) {
#pragma unroll
  for (int s = 0; s < 4; s++) {
    copy_async(to + s * 32, from.at[s], left > 0);
    copy_async(to + s * 32 + 4 * LINE, from.at[s] + 4ll * g.spacing[s], left > 4);
    from.at[s] += (long long)GROUP * g.spacing[s];
  }
  end_group();
}

struct Walker {
  Channel c0, c1;
  Pair h0, h1;
  u32* y;
  float* kept;
};

// Walk the first `count` tokens of a group.
DEVICE void walk(Walker& w, const u32* words, const Pair* b, const float* factor, int count) {
#pragma unroll
  for (int u = 0; u < GROUP; u++) {
    if (u >= count) return;
    if (KEEP && u % KEPT == 0) keep_states(w.kept + u / KEPT * (2 * D), w.h0, w.h1);
    const u32* at = words + u * LINE;
    Quad in = {at[0], at[32], at[64], at[96]};
    float f = FACTOR ? factor[u] : 1.0f;
    Pair next0 = evolve(w.h0, gate_of(first_of(in, f), w.c0), b[u]);
    Pair next1 = evolve(w.h1, gate_of(second_of(in, f), w.c1), b[u]);
    if (!FACTOR || f != 0.0f) {
      w.h0 = next0;
      w.h1 = next1;
    }
    w.y[u * (D / 2)] = pack(seen(w.c0, w.h0), seen(w.c1, w.h1));
  }
}

KERNEL(32, 8) walk_kernel(CONSTANT Arguments g) {
  u32* ring = (u32*)memory;                       // [AHEAD, GROUP, LINE]
  Pair* b = (Pair*)(ring + AHEAD * GROUP * LINE);  // [NARROW]
  float* factor = (float*)(b + NARROW);            // [NARROW]
  int lane = threadIdx.x, block = blockIdx.x % BLOCKS, group = block / (BLOCKS / GROUPS);
  int channel = block * 64 + 2 * lane;
  Row row = find(g, blockIdx.x / BLOCKS);
  Source from;
#pragma unroll
  for (int s = 0; s < 4; s++)
    from.at[s] = g.streams[s] + (row.first_token + lane / 8) * g.spacing[s] + block * 64 + lane % 8 * 8;
  u32* target = ring + lane / 8 * LINE + lane % 8 * 4;
  int left = row.length - lane / 8;
#pragma unroll
  for (int k = 0; k < AHEAD - 1; k++, left -= GROUP)
    ask_for_group(g, target + k * GROUP * LINE, from, left);
  Narrow next = read_narrow(g, row.first_token + lane, lane < row.length, group);
  Walker w = {load_channel(g, channel), load_channel(g, channel + 1)};
  read_initial(g, row.number, channel, w.h0, w.h1);
  w.y = g.y + row.first_token * (D / 2) + channel / 2;
  w.kept = KEEP ? kept_of(g, row.number, row.first_token, 0) + channel : 0;
  int full = 0, empty = AHEAD - 1;
  for (int t = 0; t < row.length; t += GROUP, left -= GROUP) {
    wait_for_group<AHEAD - 2>();
    __syncwarp();
    if (t % NARROW == 0) {
      b[lane] = next.b;
      if (FACTOR) factor[lane] = next.factor;
      int later = t + NARROW + lane;
      next = read_narrow(g, row.first_token + later, later < row.length, group);
      __syncwarp();
    }
    ask_for_group(g, target + empty * GROUP * LINE, from, left);
    const u32* words = ring + full * GROUP * LINE + lane;
    if (t + GROUP <= row.length)
      walk(w, words, b + t % NARROW, factor + t % NARROW, GROUP);
    else
      walk(w, words, b + t % NARROW, factor + t % NARROW, row.length - t);
    w.y += GROUP * (D / 2);
    w.kept += GROUP / KEPT * (2 * D);
    full = full + 1 == AHEAD ? 0 : full + 1;
    empty = empty + 1 == AHEAD ? 0 : empty + 1;
  }
  *(Quad*)(g.last + (row.number * D + channel) * 2) = as_quad(w.h0, w.h1);
}
